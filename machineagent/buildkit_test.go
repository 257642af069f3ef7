package machineagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

var bridges atomic.Int32

// withBuildkitd gives the machine the real daemon.
func (h *host) withBuildkitd(t *testing.T) *host {
	t.Helper()
	n := int(bridges.Add(1)) + os.Getpid()%200
	h.launcher, h.data.HostNetwork = nil, false
	h.data.Buildkitd, h.data.Runc, h.data.CNIDir = tool(t, "buildkitd"), tool(t, "runc"), filepath.Dir(tool(t, "buildkit-cni-bridge"))
	h.data.BuildSubnet = fmt.Sprintf("10.99.%d.0/24", n)
	return h
}

// build makes a file in a new image and exports it to a directory.
func build(ctx context.Context, t *testing.T, c *client.Client, content string) error {
	t.Helper()
	state, err := llb.Scratch().File(llb.Mkfile("/file", 0o644, []byte(content))).Marshal(ctx)
	require.NoError(t, err)
	dir := t.TempDir()
	_, err = c.Solve(ctx, state, client.SolveOpt{Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: dir}}}, nil)
	if err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(dir, "file"))
	require.NoError(t, err)
	require.Equal(t, content, string(got))
	return nil
}

func TestAgent_BuildsWithBuildKitOverMutualTLS(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c).withBuildkitd(t)
	r := h.startReady(t, c)
	first, second := c.serve(t), c.serve(t)
	for _, l := range []*testLease{first, second} {
		require.NoError(t, build(t.Context(), t, dialBuildKit(t, c.address(t), c.client(t, l)), string(l.Lease)))
	}
	require.Contains(t, c.daemon().Version, "v0.")

	live := dialBuildKit(t, c.address(t), c.client(t, first))
	_, err := live.Info(t.Context())
	require.NoError(t, err)
	c.end(t, first)
	require.Eventually(t, func() bool { _, err := live.Info(t.Context()); return err != nil }, time.Second, time.Millisecond)
	require.Error(t, info(t.Context(), c.address(t), c.client(t, first)))
	require.NoError(t, build(t.Context(), t, dialBuildKit(t, c.address(t), c.client(t, second)), "more"))
	require.NoError(t, r.usage.measure(t.Context()))
	require.Positive(t, r.usage.cache.Load())

	r.stop(t)
	require.Equal(t, []bus.MachineGoodbye{{Clean: true, Reason: "machine-agent was stopped"}}, c.heard())
	requireNothingLeft(t, h)
}

func TestAgent_BuildKitIsKilledAndComesBack(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c).withBuildkitd(t)
	h.startReady(t, c)
	l := c.serve(t)
	client := dialBuildKit(t, c.address(t), c.client(t, l))
	require.NoError(t, build(t.Context(), t, client, "before"))
	for _, pid := range processesWith(t, h.data.StateDir) {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	c.wait(t, "the daemon failed", func() bool { return c.lastDaemon().State == bus.DaemonFailed })
	require.ErrorContains(t, errors.New(c.daemon().Reason), "buildkitd ended: signal: killed")
	c.wait(t, "the daemon is ready again", func() bool { return c.lastDaemon().State == bus.DaemonReady })
	require.NoError(t, build(t.Context(), t, dialBuildKit(t, c.address(t), c.client(t, l)), "after"))
}

// TestAgent_DaemonHasNothingToSteal looks at a running daemon as a step that has escaped would.
func TestAgent_DaemonHasNothingToSteal(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c).withBuildkitd(t)
	h.startReady(t, c)
	c.serve(t)
	pids := processesWith(t, h.data.StateDir)
	require.Len(t, pids, 1)
	proc := fmt.Sprintf("/proc/%d/", pids[0])
	environ, err := os.ReadFile(proc + "environ")
	require.NoError(t, err)
	require.Len(t, strings.Split(strings.Trim(string(environ), "\x00"), "\x00"), 2, "PATH and HOME")
	cmdline, err := os.ReadFile(proc + "cmdline")
	require.NoError(t, err)
	require.Equal(t, []string{h.data.Buildkitd, "--config", h.data.StateDir + "/buildkitd.toml"}, strings.Split(strings.Trim(string(cmdline), "\x00"), "\x00"))
	files, err := filepath.Glob(proc + "fd/*")
	require.NoError(t, err)
	for _, f := range files {
		target, _ := os.Readlink(f)
		for _, secret := range []string{identityFile, userKeyFile, credentialFile} {
			require.NotContains(t, target, secret)
		}
	}
	require.Empty(t, listeningTCP(t, pids[0]), "the daemon listens on TCP")
}

// listeningTCP returns the sockets of a process that listen on TCP.
func listeningTCP(t *testing.T, pid int) []string {
	t.Helper()
	inodes := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	var found []string
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	require.NoError(t, err)
	for _, f := range files {
		if target, err := os.Readlink(f); err == nil && inodes[target] {
			found = append(found, target)
		}
	}
	return found
}

// TestCommand_RunsAsAProcess runs the binary as a cloud-agent does: a user data file, and a signal at the end.
func TestCommand_RunsAsAProcess(t *testing.T) {
	t.Parallel()
	buildkitd := tool(t, "buildkitd")
	c := newControl(t, func(c *control) {
		c.Server = bustest.New(t, bustest.WithListener())
	})
	h := newHost(t, c).withBuildkitd(t)
	h.data.BusURL, h.data.Buildkitd = c.URL, buildkitd
	dir := t.TempDir()
	binary, file := filepath.Join(dir, "machineagent"), filepath.Join(dir, "user-data.json")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/machineagent").CombinedOutput()
	require.NoError(t, err, string(out))
	text, err := json.Marshal(h.data)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, text, 0o644))
	out, err = exec.CommandContext(t.Context(), binary, "--user-data", file).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "can be read by others; run chmod 600 on it")
	require.NoError(t, os.Chmod(file, 0o600))

	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Env = append(os.Environ(), "DEPOT_USER_DATA="+file)
	cmd.Stderr = h.log
	require.NoError(t, cmd.Start())
	l := c.lease(t, time.Hour)
	c.waitServing(t, l, 1)
	require.NoError(t, build(t.Context(), t, dialBuildKit(t, c.address(t), c.client(t, l)), "hello"))
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait(), h.log)
	require.Len(t, c.heard(), 1)
	require.True(t, c.heard()[0].Clean)
	requireNothingLeft(t, h)
}

func requireNothingLeft(t *testing.T, h *host) {
	t.Helper()
	require.Empty(t, processesWith(t, h.data.StateDir))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), h.data.CacheDir)
	require.NoFileExists(t, filepath.Join(h.data.StateDir, "buildkitd.sock"))
}

// processesWith returns the processes with text in their command line.
func processesWith(t *testing.T, text string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var pids []int
	for _, f := range files {
		if cmdline, err := os.ReadFile(f); err == nil && strings.Contains(string(cmdline), text) {
			var pid int
			_, err := fmt.Sscanf(f, "/proc/%d/", &pid)
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}
