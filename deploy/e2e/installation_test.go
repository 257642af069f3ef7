package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience is how long anything but a build may take on a busy host.
const patience = 60 * time.Second

// installation is a running depotd, and a home in which depotctl finds it.
type installation struct {
	dir    string
	listen string
	args   []string
	depotd *exec.Cmd
	log    *buffer
}

// program finds one of our programs or tools.
func program(t testing.TB, name, remedy string) string {
	t.Helper()
	if dir := os.Getenv("DEPOT_TOOLS"); dir != "" {
		if path := filepath.Join(dir, name); exists(path) {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s: %s", name, remedy)
	}
	return path
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// newInstallation starts depotd with an empty state directory.
func newInstallation(t testing.TB, args ...string) *installation {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("machines of the local provider need root: run the tests as root")
	}
	for _, name := range []string{"depotd", "depotctl", "machineagent", "buildkitd"} {
		program(t, name, "run the tests with `make test`, which builds it")
	}
	dir, err := os.MkdirTemp("", "depot-e2e-") //nolint:usetesting // paths of unix sockets are short
	require.NoError(t, err)
	in := &installation{dir: dir, listen: freeAddress(t, "127.0.0.1"), args: args}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	in.start(t)
	t.Cleanup(func() { in.stop(t) })
	return in
}

// start runs depotd until it is ready.
func (in *installation) start(t testing.TB) {
	t.Helper()
	in.log = &buffer{}
	in.depotd = exec.Command(program(t, "depotd", "run `make build`"), // outlives the context of the test: stop ends it
		append([]string{"--dir", filepath.Join(in.dir, "state"), "--listen", in.listen, "--stop-machines", "--log-level=info"}, in.args...)...)
	in.depotd.Env = in.environment()
	in.depotd.Stdout, in.depotd.Stderr = in.log, in.log
	require.NoError(t, in.depotd.Start())
	require.Eventually(t, func() bool { return strings.Contains(in.log.String(), "depotd: ready") }, patience, 50*time.Millisecond, "depotd: %s", in.log)
}

// stop ends depotd and its machines in good order.
func (in *installation) stop(t testing.TB) {
	t.Helper()
	require.NoError(t, in.depotd.Process.Signal(os.Interrupt))
	done := make(chan error, 1)
	go func() { done <- in.depotd.Wait() }()
	select {
	case err := <-done:
		require.NoError(t, err, in.log.String())
	case <-time.After(patience):
		_ = in.depotd.Process.Kill()
		require.FailNow(t, "depotd does not stop", in.log.String())
	}
}

func (in *installation) environment(extra ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DEPOT_") && !strings.HasPrefix(v, "SUDO_") && !strings.HasPrefix(v, "BUILDX_") {
			env = append(env, v)
		}
	}
	env = append(env, "HOME="+in.dir, "XDG_CONFIG_HOME="+filepath.Join(in.dir, "config"), "XDG_STATE_HOME="+filepath.Join(in.dir, "home"),
		"DOCKER_HOST=unix:///nowhere/docker.sock", "BUILDKIT_PROGRESS=plain")
	return append(env, extra...)
}

// build is one run of depotctl build.
type build struct {
	dir    string // working directory, with the case's files
	args   []string
	env    []string
	stdin  []byte
	stdout string
	stderr string
}

// newBuild writes the files of a case: pairs of name and content. Every context also has the program for RUN steps.
func newBuild(t testing.TB, files ...string) *build {
	t.Helper()
	b := &build{dir: t.TempDir()}
	for i := 0; i < len(files); i += 2 {
		b.write(t, files[i], files[i+1])
	}
	b.write(t, "step", string(step(t)))
	require.NoError(t, os.Chmod(b.path("step"), 0o755)) // it is executed
	return b
}

func (b *build) path(name string) string { return filepath.Join(b.dir, name) }

func (b *build) write(t testing.TB, name, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(b.path(name)), 0o755))     // a build context
	require.NoError(t, os.WriteFile(b.path(name), []byte(content), 0o644)) // a build context
}

func (b *build) read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(b.path(name))
	require.NoError(t, err)
	return string(text)
}

// run builds and returns the exit code.
func (b *build) run(t testing.TB, in *installation, args ...string) int {
	t.Helper()
	b.args = args
	cmd := exec.CommandContext(t.Context(), program(t, "depotctl", "run `make build`"), append([]string{"build"}, args...)...)
	cmd.Dir, cmd.Env, cmd.Stdin = b.dir, in.environment(b.env...), bytes.NewReader(b.stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	b.stdout, b.stderr = stdout.String(), stderr.String()
	if cmd.ProcessState == nil {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode()
}

// succeeds builds and requires success.
func (b *build) succeeds(t testing.TB, in *installation, args ...string) {
	t.Helper()
	code := b.run(t, in, args...)
	require.Zero(t, code, "depotctl build %s\n%s", strings.Join(args, " "), b.stderr)
}

// step is the program that RUN steps execute, compiled once.
func step(t testing.TB) []byte {
	t.Helper()
	text, err := compileStep()
	require.NoError(t, err)
	return text
}

var compileStep = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "depot-step-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "step"), "./testdata/step") // outlives the test that needs it first
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile the step: %w: %s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "step"))
})

// freeAddress returns a free port of a host address.
func freeAddress(t testing.TB, host string) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// buffer can be read while a process writes.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
