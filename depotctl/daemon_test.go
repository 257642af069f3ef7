package depotctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

// daemon is a real buildkitd on a unix socket, in a PID namespace of its own so that its steps end with it.
type daemon struct {
	socket string
	cmd    *exec.Cmd
	dir    string
}

// tool finds a program where the Makefile puts it, else in PATH.
func tool(name string) (string, error) {
	if dir := os.Getenv("DEPOT_TOOLS"); dir != "" {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return exec.LookPath(name)
}

func startDaemon(dir string) (*daemon, error) {
	path, err := tool("buildkitd")
	if err != nil {
		return nil, err
	}
	d := &daemon{socket: filepath.Join(dir, "d.sock"), dir: dir}
	log, err := os.Create(filepath.Join(dir, "buildkitd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd = exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc",
		path, "--addr", "unix://"+d.socket, "--root", filepath.Join(dir, "root"), "--config", os.DevNull,
		"--oci-worker-net=host", "--containerd-worker=false", "--oci-worker-platform=linux/arm64", "--oci-worker-platform=linux/386")
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	if err := d.wait(); err != nil {
		text, _ := os.ReadFile(log.Name())
		d.stop()
		return nil, fmt.Errorf("%w:\n%s", err, text)
	}
	return d, nil
}

// wait returns when the daemon answers.
func (d *daemon) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := client.New(ctx, "unix://"+d.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Wait(ctx)
}

// pid is buildkitd's own: the only child of unshare.
func (d *daemon) pid() (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(bytes.TrimSpace(text))))
}

func (d *daemon) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	pid, err := d.pid()
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, s))
}

func (d *daemon) stop() {
	_ = d.cmd.Process.Kill() // unshare takes the rest with it
	_ = d.cmd.Wait()
	// What buildkitd mounted was in its own mount namespace; its directory is only files now.
	_ = os.RemoveAll(d.dir)
}

// shared is the daemon of all tests that do it no harm.
var shared struct {
	once   sync.Once
	daemon *daemon
	err    error
}

func sharedDaemon(t testing.TB) *daemon {
	t.Helper()
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "depotctl-daemon-") //nolint:usetesting // it outlives the test that needs it first
		if err != nil {
			shared.err = err
			return
		}
		shared.daemon, shared.err = startDaemon(dir)
	})
	requireDaemon(t, shared.err)
	return shared.daemon
}

// ownDaemon is for tests that hurt it.
func ownDaemon(t testing.TB) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "depotctl-daemon-") //nolint:usetesting // the path of a unix socket is short
	require.NoError(t, err)
	d, err := startDaemon(dir)
	requireDaemon(t, err)
	t.Cleanup(d.stop)
	return d
}

func requireDaemon(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("no buildkitd: run `make tools`, then set DEPOT_TOOLS to the directory that it prints")
	}
	if os.Geteuid() != 0 {
		t.Skip("buildkitd needs root: run the tests as root")
	}
	require.NoError(t, err)
}
