package depotctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

func TestArchitectures_FollowThePlatforms(t *testing.T) {
	t.Parallel()
	for spec, want := range map[string][]bus.Arch{
		"linux/amd64":             {bus.AMD64},
		"linux/amd64/v3":          {bus.AMD64},
		"linux/386,linux/amd64":   {bus.AMD64},
		"linux/arm64/v8":          {bus.ARM64},
		"linux/arm":               {bus.ARM64},
		"linux/arm/v6":            {bus.ARM64},
		"linux/arm64,linux/amd64": {bus.ARM64, bus.AMD64},
	} {
		got, err := architectures([]string{spec})
		require.NoError(t, err, spec)
		require.Equal(t, want, got, spec)
	}
	none, err := architectures(nil)
	require.NoError(t, err)
	require.Empty(t, none)
	for _, spec := range []string{"windows/amd64", "linux/riscv64", "linux/amd64/v4", "linux/arm/v5", "linux/amd64,linux/s390x"} {
		_, err := architectures([]string{spec})
		require.ErrorContains(t, err, "no builder for platform", spec)
	}
}

func TestExplain_GivesEachFailureItsCode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want ExitCode
	}{
		{bus.ErrUnreachable, ExitNoServer},
		{bus.ErrNoAPIServer, ExitNoAPI},
		{bus.ErrProtocol, ExitProtocol},
		{bus.ErrBadToken, ExitToken},
		{bus.ErrExpiredToken, ExitToken},
		{bus.ErrRevokedToken, ExitToken},
		{bus.ErrForbidden, ExitForbidden},
		{context.DeadlineExceeded, ExitNoAPI},
		{bus.Faultf(bus.CodeInvalid, "x"), ExitUsage},
		{bus.Faultf(bus.CodeNotFound, "x"), ExitNotFound},
		{bus.Faultf(bus.CodeForbidden, "x"), ExitForbidden},
		{bus.Faultf(bus.CodeNoCapacity, "x"), ExitNoCapacity},
		{bus.Faultf(bus.CodeUnavailable, "x"), ExitNoAPI},
		{bus.Faultf(bus.CodeConflict, "x"), ExitFailed},
		{bus.Faultf(bus.CodeInternal, "x"), ExitFailed},
		{errors.New("x"), ExitFailed},
	} {
		err := explain("do something", "nats://here:1", fmt.Errorf("wrapped: %w", c.err))
		var out bytes.Buffer
		require.Equal(t, c.want, report(&out, err), "%v", c.err)
		require.Regexp(t, `^depotctl: [^\n]+\n(hint: [^\n]+\n)*$`, out.String())
		require.ErrorIs(t, err, c.err)
	}
}

func TestExitTable_HasEachCodeOnce(t *testing.T) {
	t.Parallel()
	for i, row := range exitTable {
		require.NotEmpty(t, row.meaning)
		if i > 0 {
			require.Less(t, exitTable[i-1].code, row.code)
		}
	}
}

func TestState_PrunesOnlyOldNotes(t *testing.T) {
	t.Parallel()
	s := &stateDir{path: t.TempDir()}
	dir := filepath.Join(s.path, "refs", builderName, defaultNode)
	require.NoError(t, os.MkdirAll(dir, 0o700))
	now := time.Now()
	for i := range 150 {
		path := filepath.Join(dir, fmt.Sprintf("ref-%03d", i))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		age := time.Duration(150-i) * time.Minute // ref-000 is the oldest; the last hour belongs to builds that may run
		require.NoError(t, os.Chtimes(path, now.Add(-age), now.Add(-age)))
	}
	s.prune(now)
	require.NoFileExists(t, filepath.Join(dir, "ref-000"))
	require.FileExists(t, filepath.Join(dir, "ref-149"))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, refsKept+60)
	s.prune(now)
	again, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, again, len(entries), "a second time there is nothing to do")
}

func TestGuess_IsMadeOnlyWhenItCanBeRight(t *testing.T) {
	token := bus.NewToken()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("DEPOT_TOKEN", token.Reveal())
	t.Setenv("DEPOT_SERVER", "nats://127.0.0.1:1")
	for name, c := range map[string]struct {
		args   []string
		server string // "": no guess
	}{
		"a build":                   {[]string{"build", "."}, "nats://127.0.0.1:1"},
		"another command":           {[]string{"list", "builds"}, ""},
		"help":                      {[]string{"build", "--help"}, ""},
		"token on standard input":   {[]string{"build", "--token", "-", "."}, ""},
		"server by flag":            {[]string{"build", "--server", "nats://127.0.0.1:2", "."}, "nats://127.0.0.1:2"},
		"server by flag, joined":    {[]string{"build", "--server=nats://127.0.0.1:3", "."}, "nats://127.0.0.1:3"},
		"a token that is not a one": {[]string{"build", "--token", "rubbish", "."}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := (&app{}).guess(c.args)
			if c.server == "" {
				require.Nil(t, r)
				return
			}
			require.NotNil(t, r)
			defer r.close()
			require.Equal(t, target{server: c.server, token: token}, r.target)
		})
	}
}

// TestConfig_IsLight keeps depotd, which writes the configuration file, from growing by all of buildx.
func TestConfig_IsLight(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "./config").CombinedOutput()
	require.NoError(t, err, string(out))
	require.NotContains(t, string(out), "github.com/docker/")
	require.NotContains(t, string(out), "github.com/moby/buildkit")
}
