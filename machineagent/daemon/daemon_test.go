package daemon

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestMain can be an agent that launches a daemon and is killed, see TestDaemon_DiesWithItsAgent.
func TestMain(m *testing.M) {
	if dir := os.Getenv("DAEMON_TEST_AGENT"); dir != "" {
		d, err := Launch(context.Background(), Config{
			Buildkitd: os.Getenv("DAEMON_TEST_BUILDKITD"), HostNetwork: true, StateDir: dir + "/s", CacheDir: dir + "/c", CgroupParent: "depot-agenttest",
		})
		if err != nil {
			panic(err)
		}
		_, _ = fmt.Fprintln(os.Stdout, d.cmd.Process.Pid)
		select {}
	}
	m.Run()
}

// tool finds a program in DEPOT_TOOLS, which make sets, or in PATH.
func tool(t *testing.T, name string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, as BuildKit with its own network does")
	}
	path, err := exec.LookPath(filepath.Join(os.Getenv("DEPOT_TOOLS"), name))
	if err != nil {
		path, err = exec.LookPath(name)
	}
	if err != nil {
		t.Skipf("needs %s: run `make tools` and set DEPOT_TOOLS to bin/, as `make test` does", name)
	}
	path, err = filepath.Abs(path)
	require.NoError(t, err)
	return path
}

var machines atomic.Int32

// launch starts a real daemon with names of its own, so that tests share the machine.
func launch(t *testing.T, adjust ...func(*Config)) *Daemon {
	t.Helper()
	n := int(machines.Add(1)) + os.Getpid()%200*20
	dir := t.TempDir()
	cfg := Config{
		Buildkitd: tool(t, "buildkitd"), Runc: tool(t, "runc"), CNIDir: filepath.Dir(tool(t, "buildkit-cni-bridge")),
		StateDir: filepath.Join(dir, "s"), CacheDir: filepath.Join(dir, "c"),
		Bridge: fmt.Sprintf("dt%d", n), BridgeSubnet: fmt.Sprintf("10.%d.%d.0/24", 100+n/250, n%250), CgroupParent: fmt.Sprintf("depot-test-%d", n),
	}
	for _, a := range adjust {
		a(&cfg)
	}
	d, err := Launch(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = d.Stop(context.Background()) //nolint:usetesting // t.Context has ended
	})
	return d
}

func connect(t *testing.T, d *Daemon) *client.Client {
	t.Helper()
	c, err := client.New(t.Context(), "unix://"+d.cfg.socket())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Wait(ctx))
	return c
}

// builds a static program with the given body of main into a build context, whose Dockerfile runs it.
func contextWith(t *testing.T, main string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("main.go", "package main\nimport (\"fmt\"; \"net\"; \"os\"; \"time\")\nvar _ = net.Dial\nvar _ = os.Args\nvar _ = time.Now\nfunc main() { fmt.Println(\"here\")\n"+main+"\n}\n")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", "prog", "main.go")
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GO111MODULE=off")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	write("Dockerfile", "FROM scratch\nCOPY prog /prog\nRUN [\"/prog\"]\n")
	return dir
}

func buildctl(t *testing.T, d *Daemon, dir string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), tool(t, "buildctl"), "--addr", "unix://"+d.cfg.socket(), "build", "--progress", "plain",
		"--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+dir)
}

func TestDaemon_BuildsWithANetworkOfItsOwn(t *testing.T) {
	t.Parallel()
	d := launch(t)
	workers, err := connect(t, d).ListWorkers(t.Context())
	require.NoError(t, err)
	require.Len(t, workers, 1)
	out, err := buildctl(t, d, contextWith(t, `
		addrs, _ := net.InterfaceAddrs()
		for _, a := range addrs { fmt.Println("address", a) }
	`)).CombinedOutput()
	require.NoError(t, err, string(out))
	subnet, _, _ := strings.Cut(d.cfg.BridgeSubnet, ".0/")
	require.Contains(t, string(out), "address "+subnet+".")

	require.NoError(t, d.Stop(t.Context()))
	require.ErrorContains(t, d.Err(), "buildkitd ended: ")
	requireNothingLeft(t, d)
	_, err = d.Dial(t.Context())
	require.Error(t, err)
}

func TestDaemon_KilledInARunLeavesNothing(t *testing.T) {
	t.Parallel()
	d := launch(t)
	connect(t, d)
	build := buildctl(t, d, contextWith(t, `time.Sleep(time.Hour)`))
	var out bytes.Buffer
	build.Stdout, build.Stderr = &out, &out
	require.NoError(t, build.Start())
	defer func() { _ = build.Wait() }()
	require.Eventually(t, func() bool { return stepRuns(d) }, 60*time.Second, 10*time.Millisecond)
	mounts, err := mountsBelow(d.cfg.CacheDir)
	require.NoError(t, err)
	require.NotEmpty(t, mounts)

	require.NoError(t, syscall.Kill(d.cmd.Process.Pid, syscall.SIGKILL))
	<-d.Done()
	require.ErrorContains(t, d.Err(), "signal: killed")
	requireNothingLeft(t, d)

	again, err := Launch(t.Context(), d.cfg) // on the same cache, at once
	require.NoError(t, err)
	connect(t, again)
	require.NoError(t, again.Stop(t.Context()))
	requireNothingLeft(t, again)
}

// stepRuns reports whether a process of a build step is there.
func stepRuns(d *Daemon) bool {
	for _, dir := range cgroupsOf(cgroupRoot, d.cfg.CgroupParent) {
		if procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err == nil && len(procs) > 0 {
			return true
		}
	}
	return false
}

func requireNothingLeft(t *testing.T, d *Daemon) {
	t.Helper()
	require.Empty(t, cgroupsOf(cgroupRoot, d.cfg.CgroupParent))
	mounts, err := mountsBelow(d.cfg.CacheDir)
	require.NoError(t, err)
	require.Empty(t, mounts)
	require.ErrorIs(t, syscall.Kill(d.cmd.Process.Pid, 0), syscall.ESRCH)
	require.NoDirExists(t, filepath.Join("/sys/class/net", d.cfg.Bridge))
}

func TestDaemon_DiesWithItsAgent(t *testing.T) {
	t.Parallel()
	buildkitd := tool(t, "buildkitd")
	self, err := os.Executable()
	require.NoError(t, err)
	agent := exec.CommandContext(t.Context(), self)
	agent.Env = append(os.Environ(), "DAEMON_TEST_AGENT="+t.TempDir(), "DAEMON_TEST_BUILDKITD="+buildkitd)
	out, err := agent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, agent.Start())
	line := make([]byte, 32)
	n, err := out.Read(line)
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	require.NoError(t, err, string(line[:n]))
	require.NoError(t, syscall.Kill(pid, 0))
	require.NoError(t, agent.Process.Kill())
	_ = agent.Wait()
	require.Eventually(t, func() bool { return !alive(pid) }, 10*time.Second, 5*time.Millisecond)
}

// alive does not count a zombie that nobody has collected.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func TestDaemon_SaysWhyItEnded(t *testing.T) {
	t.Parallel()
	first := launch(t)
	connect(t, first)
	_, err := Launch(t.Context(), Config{
		Buildkitd: first.cfg.Buildkitd, HostNetwork: true, CacheDir: first.cfg.CacheDir, StateDir: t.TempDir(), CgroupParent: first.cfg.CgroupParent + "-b",
	})
	require.ErrorContains(t, err, "another buildkitd uses "+first.cfg.CacheDir)

	d := launch(t, func(c *Config) { c.Runc = "/does/not/exist" })
	<-d.Done()
	require.ErrorContains(t, d.Err(), "buildkitd: ")
	t.Log(d.Err())

	_, err = Launch(t.Context(), Config{Buildkitd: "/does/not/exist", HostNetwork: true, CacheDir: t.TempDir(), StateDir: t.TempDir()})
	require.ErrorContains(t, err, "launch daemon: fork/exec /does/not/exist")
}

func TestDaemon_ThatHangsIsKilledAndThatIsNotClean(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "hang")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\ntrap '' TERM\necho hanging\nwhile :; do sleep 0.1; done\n"), 0o700))
	d := launch(t, func(c *Config) { c.Buildkitd = script })
	require.Eventually(t, func() bool { return d.log.lastWords() != "" }, 10*time.Second, time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, d.Stop(ctx), "was killed")
	require.ErrorContains(t, d.Err(), "hanging")
}

func TestDaemon_ClaimsAnotherArchitecture(t *testing.T) {
	t.Parallel()
	d := launch(t, func(c *Config) { c.Platforms = []string{"linux/arm64"} })
	workers, err := connect(t, d).ListWorkers(t.Context())
	require.NoError(t, err)
	require.Contains(t, fmt.Sprint(workers[0].Platforms), "arm64")
}

func TestSweep_UnmountsBelowButNotTheVolumeItself(t *testing.T) {
	t.Parallel()
	tool(t, "sh") // skips unless root
	volume := filepath.Join(t.TempDir(), "with blank")
	inner := filepath.Join(volume, "a", "rootfs")
	require.NoError(t, os.MkdirAll(inner, 0o700))
	require.NoError(t, unix.Mount("tmpfs", volume, "tmpfs", 0, "size=1m"))
	defer func() { require.NoError(t, unix.Unmount(volume, 0)) }()
	require.NoError(t, os.MkdirAll(inner, 0o700))
	require.NoError(t, unix.Mount("tmpfs", inner, "tmpfs", 0, "size=1m"))
	require.NoError(t, os.Mkdir(filepath.Join(inner, "deeper"), 0o700))
	require.NoError(t, unix.Mount("tmpfs", filepath.Join(inner, "deeper"), "tmpfs", 0, "size=1m"))
	before, err := mountsBelow(volume)
	require.NoError(t, err)
	require.Len(t, before, 2)

	require.NoError(t, unmountBelow(volume))
	after, err := mountsBelow(volume)
	require.NoError(t, err)
	require.Empty(t, after)
	require.DirExists(t, inner, "the volume is still mounted")
}
