package bus

import (
	"fmt"
	"testing"

	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"
)

func TestUserKey_SignsAfterItWasStored(t *testing.T) {
	t.Parallel()
	made, err := NewUserKey()
	require.NoError(t, err)
	seed, err := made.Seed()
	require.NoError(t, err)
	read, err := ParseUserKey(NewSecret(seed.Reveal() + "\n"))
	require.NoError(t, err)
	require.Equal(t, made.Public(), read.Public())

	signature, err := read.Sign([]byte("nonce"))
	require.NoError(t, err)
	verifier, err := nkeys.FromPublicKey(made.Public())
	require.NoError(t, err)
	require.NoError(t, verifier.Verify([]byte("nonce"), signature))
	require.NotContains(t, fmt.Sprintf("%v %+v %#v", read, read, read), seed.Reveal())
}

func TestParseUserKey_RefusesOtherKinds(t *testing.T) {
	t.Parallel()
	account, err := nkeys.CreateAccount()
	require.NoError(t, err)
	seed, err := account.Seed()
	require.NoError(t, err)
	_, err = ParseUserKey(NewSecret(string(seed)))
	require.ErrorContains(t, err, "not a user's")
	_, err = ParseUserKey(NewSecret("SUxx"))
	require.Error(t, err)
}
