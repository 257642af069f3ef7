package local

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

func TestMachine_KillOfItsFirstProcessLeavesNothing(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	create(t, p, spec)
	ask(t, p, spec.MachineRef, "/deaf")
	for _, kind := range []string{"process ", "cgroup ", "link ", "rules of "} {
		require.Contains(t, strings.Join(leftovers(t, spec.Machine), "\n"), kind, "the test can tell")
	}
	require.NoError(t, syscall.Kill(pidOf(p, spec.Machine), syscall.SIGKILL))
	require.Eventually(t, func() bool {
		return machine(t, p, spec.MachineRef).State == bus.CloudStopped // List cleans up
	}, eventually, tick)
	requireNothingLeft(t, spec.Machine)
}

func TestMachine_StopEndsChildrenThatIgnoreIt(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.StopGrace = 300 * time.Millisecond
	p := newProvider(t, cfg)
	spec := newSpec()
	create(t, p, spec)
	ask(t, p, spec.MachineRef, "/deaf")
	began := time.Now()
	require.NoError(t, p.StopMachine(t.Context(), spec.MachineRef))
	require.GreaterOrEqual(t, time.Since(began), cfg.StopGrace, "it was asked first")
	requireNothingLeft(t, spec.Machine)
}

func TestMachine_StopLetsItShutDown(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	create(t, p, spec)
	shell(t, p, spec.MachineRef, "true") // it is up
	require.NoError(t, p.StopMachine(t.Context(), spec.MachineRef))
	log, err := os.ReadFile(p.LogPath(spec.Machine))
	require.NoError(t, err)
	require.Contains(t, string(log), "shutting down")
}

func TestProvider_FindsMachinesAgainAfterItsRestart(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	first := newProvider(t, cfg)
	spec := newSpec()
	create(t, first, spec)
	pid := pidOf(first, spec.Machine)

	second := newProvider(t, cfg)
	require.Equal(t, bus.CloudRunning, machine(t, second, spec.MachineRef).State)
	require.NoError(t, second.CreateMachine(t.Context(), spec, announced))
	require.NoError(t, second.StartMachine(t.Context(), spec.MachineRef))
	require.Equal(t, pid, pidOf(second, spec.Machine), "it was not started again")
	require.Len(t, processesOf(t, spec.Machine), 1)
	require.NoError(t, second.StopMachine(t.Context(), spec.MachineRef))
	require.Equal(t, bus.CloudStopped, machine(t, first, spec.MachineRef).State)
	requireNothingLeft(t, spec.Machine)
}

func TestProvider_TwoOnOneDirectoryNeverLaunchTwice(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	providers := []*Provider{newProvider(t, cfg), newProvider(t, cfg)}
	for range 3 {
		spec := newSpec()
		everyone := func(call func(p *Provider) error) {
			var group errgroup.Group
			for i := range 8 {
				group.Go(func() error { return call(providers[i%2]) })
			}
			require.NoError(t, group.Wait())
		}
		everyone(func(p *Provider) error { return p.CreateMachine(t.Context(), spec, announced) })
		require.Equal(t, 1, boots(t, providers[0], spec.Machine))
		require.NoError(t, syscall.Kill(pidOf(providers[0], spec.Machine), syscall.SIGKILL))
		require.Eventually(t, func() bool { return machine(t, providers[1], spec.MachineRef).State == bus.CloudStopped }, eventually, tick)
		everyone(func(p *Provider) error { return p.StartMachine(t.Context(), spec.MachineRef) })
		require.Equal(t, 2, boots(t, providers[0], spec.Machine))
	}
}

func pidOf(p *Provider, id bus.MachineID) int {
	pid, _ := p.readAlive(id)
	return pid
}

// boots counts how often a machine's program was started, once the last one is up.
func boots(t *testing.T, p *Provider, id bus.MachineID) int {
	t.Helper()
	rec, _, err := p.readMachine(id)
	require.NoError(t, err)
	shell(t, p, cloudagent.MachineRef{Connection: rec.Connection, Machine: id, Attempt: rec.Attempt}, "true")
	log, err := os.ReadFile(p.LogPath(id))
	require.NoError(t, err)
	return strings.Count(string(log), "serving ")
}

// TestProvider_CompletesALaunchThatAnyCrashCutShort kills a provider's process at random moments of a launch.
func TestProvider_CompletesALaunchThatAnyCrashCutShort(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	p := newProvider(t, cfg)
	volumes := 0
	for range 6 {
		spec := newSpec()
		spec.Volume = newVolume(t, p, spec)
		text, err := json.Marshal(launchRequest{Dir: cfg.Dir, Ref: spec.MachineRef, Project: spec.Project, Volume: spec.Volume})
		require.NoError(t, err)
		cmd := exec.Command(cfg.Tools.Machineagent, roleLaunch, string(text))
		cmd.Stderr = t.Output()
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = out.Read(make([]byte, 1)) // it begins
		require.NoError(t, err)
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) //nolint:forbidigo // the moment of the crash is what varies
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()

		state := bus.CloudState("unlisted")
		listing, err := p.List(t.Context(), spec.Connection)
		require.NoError(t, err)
		if len(listing.Machines) > 0 {
			state = listing.Machines[0].State
		}
		if listing.Volumes[0].State == bus.CloudInUse {
			volumes++
		}
		require.NoError(t, p.CreateMachine(t.Context(), spec, announced), "after a crash that left it %s", state)
		require.Equal(t, bus.CloudRunning, machine(t, p, spec.MachineRef).State)
		require.Equal(t, 1, boots(t, p, spec.Machine))
		require.Len(t, processesOf(t, spec.Machine), 1)
		require.NoError(t, p.DeleteMachine(t.Context(), spec.MachineRef))
		requireNothingLeft(t, spec.Machine)
	}
	t.Logf("%d of 6 crashes came after the volume was attached", volumes)
}

const roleLaunch = "launch"

// launchRequest is what a provider in another process shall launch.
type launchRequest struct {
	Dir     string
	Ref     cloudagent.MachineRef
	Project bus.ProjectID
	Volume  bus.VolumeID
}

func launchOnce(text string) {
	var request launchRequest
	err := json.Unmarshal([]byte(text), &request)
	if err == nil {
		spec := cloudagent.MachineSpec{
			MachineRef: request.Ref, Project: request.Project, Volume: request.Volume, Architecture: hostArch,
			Nonce: bus.LaunchNonce(bus.NewToken(), request.Ref.Machine, request.Ref.Attempt),
		}
		self, _ := os.Executable()
		var p *Provider
		p, err = New(Config{Dir: request.Dir, Tools: Tools{Machineagent: self, Buildkitd: self, Runc: self}, AllowHostNetwork: true})
		if err == nil {
			fmt.Fprint(os.Stdout, ".")
			err = p.CreateMachine(context.Background(), spec, announced)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	select {} // until it is killed
}

func TestProvider_FinishesWhatAnInterruptedStopBegan(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	create(t, p, spec)
	ask(t, p, spec.MachineRef, "/deaf")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, p.StopMachine(ctx, spec.MachineRef), context.DeadlineExceeded)
	require.Equal(t, bus.CloudStopping, machine(t, p, spec.MachineRef).State)
	p.cfg.StopGrace = 100 * time.Millisecond
	require.NoError(t, p.StartMachine(t.Context(), spec.MachineRef))
	require.Equal(t, bus.CloudRunning, machine(t, p, spec.MachineRef).State)
	require.Equal(t, 2, boots(t, p, spec.Machine))
	require.Len(t, processesOf(t, spec.Machine), 1)
}

func TestList_RemovesWhatOthersLeft(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	dead := bus.NewMachineID()
	hierarchies, err := readHierarchies()
	require.NoError(t, err)
	for _, h := range hierarchies {
		require.Eventually(t, func() bool { // other tests remove the parent, and this, while it is empty
			return os.MkdirAll(h.machine(string(dead))+"/buildkit/step", 0o755) == nil
		}, eventually, tick)
	}
	require.NoError(t, addRules(t.Context(), hostLink(dead), p.cfg.Subnet))
	_, err = p.List(t.Context(), bus.NewConnectionID())
	require.NoError(t, err)
	require.NoError(t, removeStaleRules(t.Context())) // as Run does
	requireNothingLeft(t, dead)
}

func TestList_FailsRatherThanLeaveSomethingOut(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	create(t, p, spec)
	record := p.machineFile(spec.Machine, machineFile)
	good, err := os.ReadFile(record)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(record, good[:len(good)/2], 0o600))
	_, err = p.List(t.Context(), spec.Connection)
	require.ErrorContains(t, err, record)
	require.NoError(t, os.WriteFile(record, good, 0o600))
}

func TestProvider_ForgetsDeletedMachinesAfterAnHour(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	now := time.Now()
	cfg.Now = func() time.Time { return now }
	p := newProvider(t, cfg)
	spec := newSpec()
	create(t, p, spec)
	require.NoError(t, p.DeleteMachine(t.Context(), spec.MachineRef))
	require.Equal(t, bus.CloudTerminated, machine(t, p, spec.MachineRef).State)
	now = now.Add(tombstoneLife)
	machine(t, p, spec.MachineRef) // for the last time
	listing, err := p.List(t.Context(), spec.Connection)
	require.NoError(t, err)
	require.Empty(t, listing.Machines)
	require.NoDirExists(t, p.machineDir(spec.Machine))
	require.NoFileExists(t, p.lockPath(string(spec.Machine)))
}
