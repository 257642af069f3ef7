package local

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

// daemonHost is a machine in which a real BuildKit runs, with its bridge network.
type daemonHost struct {
	p      *Provider
	spec   cloudagent.MachineSpec
	client string // buildctl
	step   string // a static program for Dockerfiles
}

func newDaemonHost(t *testing.T) *daemonHost {
	t.Helper()
	cfg := testConfig(t)
	tools := FindTools()
	client := find(append([]string{os.Getenv(ToolsVariable)}, filepath.SplitList(os.Getenv("PATH"))...), "buildctl")
	tools.Machineagent = cfg.Tools.Machineagent
	if err := tools.Check(false); err != nil || client == "" {
		t.Skipf("no BuildKit (%v): make tools builds it, and $%s names where it is", err, ToolsVariable)
	}
	cfg.Tools, cfg.AllowHostNetwork = tools, false
	h := &daemonHost{p: newProvider(t, cfg), spec: newSpec(), client: client, step: filepath.Join(t.TempDir(), "step")}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", h.step, "./testdata/step")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	h.spec.Volume = newVolume(t, h.p, h.spec)
	create(t, h.p, h.spec)
	h.startDaemon(t)
	return h
}

func (h *daemonHost) startDaemon(t *testing.T) {
	t.Helper()
	code, body := ask(t, h.p, h.spec.MachineRef, "/daemon")
	require.Equal(t, 200, code, body)
	require.Eventually(t, func() bool {
		return exec.CommandContext(t.Context(), h.client, "--addr", h.address(t), "debug", "workers").Run() == nil
	}, 2*eventually, 10*tick)
}

func (h *daemonHost) address(t *testing.T) string {
	t.Helper()
	return "tcp://" + net.JoinHostPort(machine(t, h.p, h.spec.MachineRef).Addresses[0], "1234")
}

// build runs RUN steps, each a line of arguments of the step program, and returns what was printed.
func (h *daemonHost) build(t *testing.T, steps ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	program, err := os.ReadFile(h.step)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "step"), program, 0o755))
	dockerfile := "FROM scratch\nCOPY step /step\n"
	for _, step := range steps {
		words, err := json.Marshal(append([]string{"/step"}, strings.Fields(step)...))
		require.NoError(t, err)
		dockerfile += "RUN " + string(words) + "\n"
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600))
	out, err := exec.CommandContext(t.Context(), h.client, "--addr", h.address(t), "build", "--progress=plain",
		"--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+dir).CombinedOutput()
	return string(out), err
}

func TestBuildKit_RunsStepsInAMachine(t *testing.T) {
	t.Parallel()
	h := newDaemonHost(t)
	away := goOutside(t)
	private, public := echo(t, "127.0.0.1"), echo(t, "0.0.0.0")
	gateway := gateway(t, h.p, h.spec.MachineRef)

	out, err := h.build(t,
		"addresses",
		"show /proc/self/cgroup", // runc made them
		"dial "+net.JoinHostPort(gateway, public),
		"dial "+net.JoinHostPort(away.address, "80"),
		"nodial "+net.JoinHostPort("127.0.0.1", private),
		"nodial "+net.JoinHostPort("localhost", private),
		"nodial "+net.JoinHostPort(gateway, private),
		"nodial 10.86.0.1:"+private,
	)
	require.NoError(t, err, out)
	require.Regexp(t, `addresses: .*10\.86\.0\.`, out, "a step is behind the machine's bridge")
	require.Regexp(t, `0::/buildkit/|memory:/buildkit/`, out, "its cgroups are below the machine's")
	require.Contains(t, out, "answer: "+away.host+":", "and masqueraded as the host")
	require.NotContains(t, out, "reached 127.0.0.1")

	out, err = h.build(t, "dial "+net.JoinHostPort("127.0.0.1", private))
	require.Error(t, err, out)
	require.Contains(t, out, "connection refused", "the test can tell")
}

func TestBuildKit_KeepsItsCacheOverStopAndKill(t *testing.T) {
	t.Parallel()
	h := newDaemonHost(t)
	steps := []string{"write /made " + string(bus.NewBuildID())}
	out, err := h.build(t, steps...)
	require.NoError(t, err, out)
	require.NotContains(t, out, "CACHED")
	restart := func(end func()) {
		end()
		require.NoError(t, h.p.StartMachine(t.Context(), h.spec.MachineRef))
		h.startDaemon(t)
		out, err := h.build(t, steps...)
		require.NoError(t, err, out)
		require.Contains(t, out, "CACHED")
	}
	restart(func() { require.NoError(t, h.p.StopMachine(t.Context(), h.spec.MachineRef)) })
	restart(func() {
		require.NoError(t, syscall.Kill(pidOf(h.p, h.spec.Machine), syscall.SIGKILL))
		require.Eventually(t, func() bool { return machine(t, h.p, h.spec.MachineRef).State == bus.CloudStopped }, eventually, tick)
		requireNothingLeft(t, h.spec.Machine)
	})
	require.NoError(t, h.p.DeleteMachine(t.Context(), h.spec.MachineRef))
	requireNothingLeft(t, h.spec.Machine)
	require.NoError(t, h.p.DeleteVolume(t.Context(), cloudagent.VolumeRef{Connection: h.spec.Connection, Volume: h.spec.Volume}))
	require.NoDirExists(t, h.p.volumeDir(h.spec.Volume))
}
