package depotctl

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

// TestScripts runs testdata/script: each file is a manual page with the program as its proofreader. `exit CODE COMMAND`
// runs a command that must end with that code.
func TestScripts(t *testing.T) {
	t.Parallel()
	d := sharedDaemon(t)
	a := newAPI(t, newFront(t, d.socket))
	mute := bustest.New(t, bustest.WithListener(), bustest.WithoutCallout())
	tokens := map[string]string{
		"TOKEN":         a.token.Reveal(),
		"TOKEN_UNKNOWN": bus.NewToken().Reveal(),
		"TOKEN_REVOKED": revoked(a).Reveal(),
		"TOKEN_EXPIRED": expired(a).Reveal(),
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exit": exitWith, "tokenfile": tokenFile},
		Setup: func(env *testscript.Env) error {
			for name, text := range tokens {
				env.Setenv(name, text)
			}
			home := filepath.Join(env.WorkDir, "home")
			env.Setenv("HOME", home)
			env.Setenv("SERVER", a.bus.URL)
			env.Setenv("SERVER_MUTE", mute.URL)
			env.Setenv("SERVER_NONE", "nats://"+closedPort(t))
			env.Setenv("DEPOT_SERVER", a.bus.URL)
			env.Setenv("DEPOT_TOKEN", a.token.Reveal())
			env.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
			env.Setenv("BUILDKIT_PROGRESS", "plain")
			return os.MkdirAll(home, 0o700)
		},
	})
}

// exitWith runs a command and compares its exit code: `exit 13 depotctl projects list`.
func exitWith(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		got = -1
		if _, text, ok := strings.Cut(err.Error(), "exit status "); ok {
			got, _ = strconv.Atoi(text)
		}
	}
	if got != want {
		ts.Fatalf("%s: exit code %d, want %d (%v)", strings.Join(args[1:], " "), got, want, err)
	}
}

// tokenFile writes a token into a file: `tokenfile NAME $TOKEN`.
func tokenFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: tokenfile NAME TOKEN")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(args[1]+"\n"), 0o600))
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

func revoked(a *api) bus.Token {
	token := a.bus.Admit(bus.Grant{Role: bus.RoleUser, Account: a.org.Account, Organization: a.org.ID})
	a.bus.Revoke(token.ID)
	return token
}

func expired(a *api) bus.Token {
	token := a.bus.Admit(bus.Grant{Role: bus.RoleUser, Account: a.org.Account, Organization: a.org.ID})
	a.bus.Expire(token.ID, time.Now().Add(-time.Hour))
	return token
}
