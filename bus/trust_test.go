package bus_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

func TestTrustIsTheSameAfterItWasSaved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "trust")
	_, err := bus.LoadTrust(dir)
	require.ErrorIs(t, err, fs.ErrNotExist)
	made, err := bus.NewTrust()
	require.NoError(t, err)
	require.NoError(t, made.Save(dir))
	require.NoError(t, made.Save(dir), "saving again is harmless")
	require.NoError(t, os.Remove(filepath.Join(dir, "operator-identity.nk")), "its owner has moved it away")
	loaded, err := bus.LoadTrust(dir)
	require.NoError(t, err)
	require.Equal(t, made.AccountKeys(), loaded.AccountKeys())

	// A server that was made with the one is governed with the other.
	e, err := bus.StartEmbedded(t.Context(), bus.EmbeddedConfig{Dir: t.TempDir(), Trust: made})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	control, err := bus.OpenControl(t.Context(), bus.ControlConfig{Server: e, Trust: loaded})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	account, err := bus.NewAccount()
	require.NoError(t, err)
	require.NoError(t, control.EnsureAccount(t.Context(), bus.ScopeConnection, account, "c"))
}

func TestTrustIsReadableByItsOwnerOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	trust, err := bus.NewTrust()
	require.NoError(t, err)
	require.NoError(t, trust.Save(dir))
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 2)
	for _, f := range files {
		info, err := f.Info()
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), f.Name())
	}
	require.NoError(t, os.Chmod(filepath.Join(dir, "trust.json"), 0o640))
	_, err = bus.LoadTrust(dir)
	require.ErrorContains(t, err, "readable by others")
}

func TestTheServersConfigurationHoldsNoSecret(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	trust, err := bus.NewTrust()
	require.NoError(t, err)
	require.NoError(t, trust.Save(dir))
	config, err := trust.ServerConfig(bus.ServerOptions{Name: "n1", Listen: ":4222", Dir: "/var/lib/nats"})
	require.NoError(t, err)
	require.Contains(t, config, `listen: "127.0.0.1:4222"`, "no host means loopback")
	seeds, found := regexp.MustCompile(`\bS[A-Z2-7]{57}\b`), 0
	for _, file := range []string{"trust.json", "operator-identity.nk"} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		require.NoError(t, err)
		for _, seed := range seeds.FindAllString(string(data), -1) {
			found++
			require.NotContains(t, config, seed)
		}
	}
	require.Equal(t, 10, found, "operator identity and signing key, two keys for users, callout user and box, four accounts")
	_, err = trust.ServerConfig(bus.ServerOptions{Name: "n1", Listen: ":4222", Dir: "d", Cluster: &bus.ClusterOptions{Listen: "0.0.0.0:6222"}})
	require.ErrorContains(t, err, "CAFile", "whoever joins a cluster reads everything")
}
