package bus

import (
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/stretchr/testify/require"
)

// A push of an account makes the server forget the answers that are on their way to it, so an API server that starts
// must not push what is there already.
func TestAccountsAreTheSameInAnyOrder(t *testing.T) {
	t.Parallel()
	trust, err := NewTrust()
	require.NoError(t, err)
	for _, name := range infrastructureNames {
		signed, err := trust.infrastructureJWTs()
		require.NoError(t, err)
		want, err := trust.infrastructureClaims(name)
		require.NoError(t, err)
		old, err := jwt.DecodeAccountClaims(signed[trust.accounts[name].public])
		require.NoError(t, err)
		require.True(t, sameAccount(old, want), name)
	}
}
