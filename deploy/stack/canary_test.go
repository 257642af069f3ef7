package stack_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/depotctl/config"
)

// A canary is a secret, and where it may be found: paths below the installation's directory.
type canary struct {
	name    string
	pattern *regexp.Regexp
	allowed *regexp.Regexp
}

// TestSecrets_AreNowhereButWhereTheyBelong runs a build with everything that there is of secrets, and then searches every
// message, every file (streams and buckets among them), and the arguments and environment of every process.
func TestSecrets_AreNowhereButWhereTheyBelong(t *testing.T) {
	in := newInstallation(t)
	d := in.depotd(t, "--log-level=debug")
	wire := in.tap(t)
	in.env = append(in.env, "BUILD_SECRET=canary-of-the-build-secret") // depotctl's alone
	b := in.build(t, "--secret", "id=s,env=BUILD_SECRET", source(t, append(image,
		`RUN --mount=type=secret,id=s,required `+strings.TrimPrefix(runStep("sum", "/run/secrets/s", hash("canary-of-the-build-secret")), "RUN "))...))
	require.Zero(t, b.exitCode(t), "%s", b.out)

	user, err := config.File{Path: filepath.Join(in.dir, "config", "depot", "config.json")}.Load()
	require.NoError(t, err)
	agent, err := os.ReadFile(filepath.Join(in.state, "agent-token"))
	require.NoError(t, err)
	canaries := []canary{
		{"user token", literal(user.Token.Reveal()), regexp.MustCompile(`^(config/depot/config\.json|state/user-token)$`)},
		{"agent token", literal(strings.TrimSpace(string(agent))), regexp.MustCompile(`^state/agent-token$`)},
		{"any token", regexp.MustCompile(`depot_tok-[a-z2-7]{16}_[0-9a-f]{64}`), regexp.MustCompile(`^(config/depot/config\.json|state/(user|agent)-token)$`)},
		{"launch nonce", regexp.MustCompile(`nonce\.mch-[a-z2-7]{16}\.\d+\.[\w-]{43}`), regexp.MustCompile(`^state/local/machines/[^/]+/user-data.json$`)},
		{"private key", regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----`), regexp.MustCompile(`^state/local/machines/[^/]+/state/`)},
		{"NATS seed", regexp.MustCompile(`\bS[OAUX][A-Z2-7]{56}\b`), regexp.MustCompile(`^state/(trust/|local/machines/[^/]+/state/)`)},
		{"build secret", literal("canary-of-the-build-secret"), nil},
	}
	for _, c := range canaries {
		t.Run(c.name, func(t *testing.T) {
			for _, m := range wire.all() {
				require.False(t, c.pattern.Match(m.Data), "a message on %s holds it", m.Subject)
			}
			require.False(t, c.pattern.MatchString(d.out.String()), "depotd's log holds it")
			require.False(t, c.pattern.MatchString(b.out.String()), "depotctl's output holds it")
			for path, text := range in.files(t) {
				if c.allowed == nil || !c.allowed.MatchString(path) {
					require.False(t, c.pattern.Match(text), "%s holds it", path)
				}
			}
			for process, text := range in.processes(t) {
				require.False(t, c.pattern.Match(text), "the arguments or the environment of %s hold it", process)
			}
			require.True(t, c.allowed == nil || in.anywhere(t, c), "it is not even where it belongs: the search finds nothing")
		})
	}
}

func hash(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

func literal(s string) *regexp.Regexp { return regexp.MustCompile(regexp.QuoteMeta(s)) }

func (in *installation) anywhere(t testing.TB, c canary) bool {
	t.Helper()
	for path, text := range in.files(t) {
		if c.allowed.MatchString(path) && c.pattern.Match(text) {
			return true
		}
	}
	return false
}

// files returns the content of every file of the installation, but for BuildKit's own stores: what is in the context or
// in a layer is the user's.
func (in *installation) files(t testing.TB) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	require.NoError(t, filepath.WalkDir(in.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(in.dir, path)
		if err != nil {
			return err
		}
		if e.IsDir() && strings.HasPrefix(relative, "state/local/volumes/") {
			return fs.SkipDir
		}
		if !e.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(path)
		all[relative] = text
		return err
	}))
	return all
}

// processes returns arguments and environment of every process that has to do with the installation.
func (in *installation) processes(t testing.TB) map[string][]byte {
	t.Helper()
	pids, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	all := map[string][]byte{}
	for _, p := range pids {
		args, _ := os.ReadFile(filepath.Join(p, "cmdline")) // a process may end while it is looked at
		environ, _ := os.ReadFile(filepath.Join(p, "environ"))
		if bytes.Contains(args, []byte(in.state)) {
			all[string(bytes.ReplaceAll(args, []byte{0}, []byte{' '}))] = append(args, environ...)
		}
	}
	require.NotEmpty(t, all, "not even depotd was found")
	return all
}
