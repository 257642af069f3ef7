package stack_test

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/depotctl/config"
)

// installation is a state directory, an address, and a home for depotctl: everything that a restart finds again.
type installation struct {
	dir    string // of everything
	state  string // depotd's
	listen string
	env    []string
}

// newInstallation makes an empty one. Whatever runs out of it when the test ends is killed.
func newInstallation(t testing.TB) *installation {
	t.Helper()
	program(t, "depotd") // skips where there is none
	dir := shortDir(t)
	in := &installation{dir: dir, state: filepath.Join(dir, "state"), listen: freeAddress(t)}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DEPOT_") && !strings.HasPrefix(v, "SUDO_") {
			in.env = append(in.env, v)
		}
	}
	in.env = append(in.env, "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "XDG_STATE_HOME="+filepath.Join(dir, "home"), "HOME="+dir)
	t.Cleanup(func() { in.sweep(t) })
	return in
}

// shortDir is t.TempDir without the test's name, which is too long for the unix sockets below it.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "depot-") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// freeAddress returns an address of loopback at which nobody listens. It stays the same across restarts, which port 0
// would not.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// depotd starts the control plane and waits until it is ready.
func (in *installation) depotd(t testing.TB, args ...string) *process {
	t.Helper()
	p := in.start(t, "depotd", append([]string{"--dir", in.state, "--listen", in.listen}, args...)...)
	p.says(t, `(?m)^depotd: ready`)
	return p
}

// start runs one of our programs in the installation's environment.
func (in *installation) start(t testing.TB, name string, args ...string) *process {
	t.Helper()
	return run(t, in.env, program(t, name), args...)
}

// sweep removes machines that the test left running, by way of a depotd that takes them over and stops them.
func (in *installation) sweep(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(in.state); err != nil {
		return
	}
	cmd := exec.Command(program(t, "depotd"), "--dir", in.state, "--listen", in.listen, "--stop-machines")
	cmd.Env = in.env
	out := newOutput()
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	p := &process{name: "depotd", cmd: cmd, out: out, exited: make(chan struct{})}
	go func() {
		defer close(p.exited)
		p.err = cmd.Wait()
	}()
	defer p.kill()
	p.says(t, `(?m)^depotd: ready`)
	p.stop(t)
}

// user connects to the bus as the user whose token depotd wrote.
func (in *installation) user(t testing.TB) *bus.Conn {
	t.Helper()
	c, err := config.File{Path: filepath.Join(in.dir, "config", "depot", "config.json")}.Load()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := bus.Connect(ctx, bus.Config{URL: c.Server, Token: c.Token, Name: "test"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

// build starts depotctl build with plain progress.
func (in *installation) build(t testing.TB, args ...string) *process {
	t.Helper()
	return in.start(t, "depotctl", append([]string{"build", "--progress=plain"}, args...)...)
}

// builds returns all builds, the newest first.
func (in *installation) builds(t testing.TB) []bus.BuildView {
	t.Helper()
	list, err := bus.ListRecentBuilds.Call(t.Context(), in.user(t), bus.ListBuilds{Limit: 500})
	require.NoError(t, err)
	return list.Builds
}

// machines returns the machines that are not deleted.
func (in *installation) machines(t testing.TB) []bus.MachineView {
	t.Helper()
	list, err := bus.ListLiveMachines.Call(t.Context(), in.user(t), bus.Empty{})
	require.NoError(t, err)
	return list.Machines
}

// instances returns the machines whose program runs on this host, whatever anybody believes.
func (in *installation) instances(t testing.TB) []string {
	t.Helper()
	pids, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	var found []string
	for _, p := range pids {
		text, _ := os.ReadFile(filepath.Join(p, "cmdline")) // a process may end while it is looked at
		args := strings.Split(string(text), "\x00")
		if filepath.Base(args[0]) == "machineagent" && strings.Contains(string(text), in.state) {
			found = append(found, filepath.Base(p))
		}
	}
	return found
}

// step is the static binary that RUN steps execute, built once.
var step = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "depot-step-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "step")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", path, "./testdata/step")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// source makes a build context out of a Dockerfile and the binary for its RUN steps.
func source(t testing.TB, dockerfile ...string) string {
	t.Helper()
	dir := t.TempDir()
	binary, err := step()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "step"), binary, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(strings.Join(dockerfile, "\n")+"\n"), 0o600))
	return dir
}

// image is the first lines of most Dockerfiles here.
var image = []string{"FROM scratch AS image", "COPY step /step"}

// runStep is a RUN instruction in its form without a shell.
func runStep(args ...string) string {
	text, _ := json.Marshal(append([]string{"/step"}, args...)) // of strings: cannot fail
	return "RUN " + string(text)
}

// eventually waits until check is true. It is for what no event tells, such as a list that the server computes.
func eventually(t testing.TB, what string, check func() bool) {
	t.Helper()
	require.Eventually(t, check, patience, 50*time.Millisecond, what)
}
