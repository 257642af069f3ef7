package cloudagent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

func TestReadToken_FromAFileFromStandardInputOrItself(t *testing.T) {
	t.Parallel()
	token := bus.NewToken()
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(token.Reveal()+"\n"), 0o600))
	for _, where := range []string{file, "-", token.Reveal()} {
		got, err := cloudagent.ReadToken(where, strings.NewReader(token.Reveal()+"\n"))
		require.NoError(t, err)
		require.Equal(t, token.Reveal(), got.Reveal())
	}
	_, err := cloudagent.ReadToken("-", strings.NewReader(""))
	require.Error(t, err)
	_, err = cloudagent.ReadToken(file+".missing", nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	secret := token.Reveal()[:len(token.Reveal())-1]
	_, err = cloudagent.ReadToken(secret, nil)
	require.Error(t, err)
	require.NotContains(t, err.Error(), secret, "a damaged token is a secret still")
}
