package stack_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

func TestDepotd_ResumesItsStateAndItsMachines(t *testing.T) {
	in := newInstallation(t)
	first := in.depotd(t)
	context := counted(t)
	require.Equal(t, "1", in.count(t, context))
	machine, builds := in.machines(t)[0], in.builds(t)
	first.stop(t)

	in.depotd(t)
	require.Equal(t, builds, in.builds(t))
	require.Equal(t, "1", in.count(t, context))
	require.Len(t, in.machines(t), 1)
	require.Equal(t, machine.Machine, in.machines(t)[0].Machine)
	require.Equal(t, machine.CreatedAt, in.machines(t)[0].CreatedAt)
	require.Len(t, in.builds(t), 2)
}

func TestDepotd_KeepsTheCacheWhenTheMachineIsReplaced(t *testing.T) {
	in := newInstallation(t)
	first := in.depotd(t, "--stop-machines")
	context := counted(t)
	require.Equal(t, "1", in.count(t, context))
	machine := in.machines(t)[0]
	first.stop(t)

	in.depotd(t)
	require.Equal(t, "1", in.count(t, context), "the layers did not outlive the machine")
	require.Equal(t, "2", in.count(t, context, again(2)), "the cache mount did not outlive the machine")
	require.Equal(t, machine.Volume, in.machines(t)[0].Volume)
}

// stages are where a build request can be when something is killed.
var stages = []bus.Stage{bus.StageQueued, bus.StageLaunching, bus.StageBooting, bus.StageRegistered, bus.StageStarting, bus.StageServing}

// reached returns a channel that is closed when a build first reports the stage.
func (in *installation) reached(t testing.TB, stage bus.Stage) <-chan struct{} {
	t.Helper()
	there := make(chan struct{})
	done := false
	require.NoError(t, bus.BuildStory.Subscribe(t.Context(), in.user(t), func(e bus.BuildEvent) {
		if e.Stage == stage && !done {
			done = true
			close(there)
		}
	}, "*", "*"))
	return there
}

// A build whose control plane dies at any stage comes to one end on one machine, because everything that was decided is
// on disk and everything that was not is decided again.
func TestDepotd_KilledAtAnyStageOfABuildFinishesItAfterARestart(t *testing.T) {
	for _, stage := range stages {
		t.Run(string(stage), func(t *testing.T) {
			t.Parallel()
			in := newInstallation(t)
			d := in.depotd(t)
			there := in.reached(t, stage)
			b := in.build(t, source(t, append(image, runStep("sleep", "10ms"))...))
			await(t, there, b)
			d.kill()
			in.depotd(t)
			require.Zero(t, b.exitCode(t), "%s", b.out)
			in.requireOneEnd(t)
		})
	}
}

// await waits for a stage, and fails with the build's words if the build ends first without it.
func await(t testing.TB, there <-chan struct{}, b *process) {
	t.Helper()
	select {
	case <-there:
	case <-b.exited:
		select {
		case <-there:
		default:
			require.Fail(t, "never there", "the build ended (%v) before the stage was seen:\n%s", b.err, b.out)
		}
	case <-time.After(patience):
		require.Fail(t, "never there", "%s", b.out)
	}
}

// requireOneEnd checks that the only build succeeded, on the only machine.
func (in *installation) requireOneEnd(t testing.TB) {
	t.Helper()
	builds := in.builds(t)
	require.Len(t, builds, 1)
	require.Equal(t, bus.BuildSucceeded, builds[0].State)
	machines := in.machines(t)
	require.Len(t, machines, 1)
	require.Equal(t, machines[0].Machine, builds[0].Leases[0].Machine)
	require.Len(t, in.instances(t), 1, "more machines run than the API server knows")
	require.Zero(t, machines[0].Builds, "the ended build still holds a lease")
}
