package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

func parse(t *testing.T, args ...string) flags {
	t.Helper()
	var f flags
	parser, err := kong.New(&f, defaults)
	require.NoError(t, err)
	_, err = parser.Parse(args)
	require.NoError(t, err)
	return f
}

func TestFlags_BecomeAConfiguration(t *testing.T) {
	t.Parallel()
	token := bus.NewToken()
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(file, []byte(token.Reveal()), 0o600))
	roots := filepath.Join(dir, "roots.pem")
	require.NoError(t, os.WriteFile(roots, []byte("PEM"), 0o600))

	f := parse(t, "--server=tls://bus.example.com", "--ca-file="+roots, "--token="+file, "--state="+dir, "--max-machines=3", "--max-volume-gb=7", "--architectures=amd64,arm64", "--log-level=error")
	cfg, err := f.config(t.Context())
	require.NoError(t, err)
	require.Equal(t, token.Hash(), cfg.Bus.Token.Hash())
	require.Equal(t, "tls://bus.example.com", cfg.Bus.URL)
	require.Equal(t, "PEM", cfg.BusCA)
	require.Equal(t, cloudagent.Limits{MaxMachines: 3, MaxVolumeGB: 7, Architectures: []bus.Arch{bus.AMD64, bus.ARM64}}, cfg.Limits)
	require.False(t, cfg.Log.Enabled(t.Context(), slog.LevelWarn))

	cfg, err = parse(t, "--token="+file, "--state="+dir).config(t.Context())
	require.NoError(t, err)
	require.Equal(t, cloudagent.DefaultMaxMachines, cfg.Limits.MaxMachines)
	require.Len(t, cfg.Limits.Architectures, 1, "this host's")
	_, err = parse(t, "--token="+file, "--state="+dir, "--server=localhost:4250").config(t.Context())
	require.ErrorContains(t, err, "want nats://host:port")
}

func TestFlags_EachHasAVariable(t *testing.T) {
	t.Parallel()
	for _, kind := range []reflect.Type{reflect.TypeFor[flags](), reflect.TypeFor[localFlags]()} {
		for field := range kind.Fields() {
			if field.Name == "Version" || field.Name == "Local" {
				continue
			}
			require.True(t, strings.HasPrefix(field.Tag.Get("env"), "DEPOT_"), "%s has no DEPOT_ variable", field.Name)
		}
	}
}
