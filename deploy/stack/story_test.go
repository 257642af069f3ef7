package stack_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// TestStory walks the six steps of a first build through the real components, as the bus saw them.
func TestStory(t *testing.T) {
	in := newInstallation(t)
	in.depotd(t)
	wire := in.tap(t)
	b := in.build(t, source(t, append(image, runStep("write", "/greeting", "hello"))...))
	require.Zero(t, b.exitCode(t), "%s", b.out)
	view := in.builds(t)[0]
	lease := view.Leases[0]
	lines := wire.rows()
	var at int // how far the story has come

	t.Run("1 the client asks", func(t *testing.T) {
		asked, l := firstOf[bus.BuildCreate](t, lines, bus.CreateBuild.Row(), 0, nil)
		require.Equal(t, view.Build, asked.Build)
		require.Contains(t, asked.CSR, "CERTIFICATE REQUEST")
		require.True(t, strings.HasPrefix(l.subject, "org."), l.subject)
		at = l.at
	})
	t.Run("2 the API server decides, durably and with a net", func(t *testing.T) {
		pointer, l := firstOf[bus.BuildRef](t, lines, bus.BuildRequests.Row(), at, nil)
		require.Equal(t, bus.BuildRef{Build: view.Build}, pointer)
		stored := false
		for _, m := range wire.all()[at:l.at] {
			stored = stored || strings.HasPrefix(m.Subject, "$KV.builds.") && strings.Contains(string(m.Data), string(view.Build))
		}
		require.True(t, stored, "the pointer was published before the build was in its bucket")
	})
	t.Run("3 the cloud-agent acts", func(t *testing.T) {
		volume, l := firstOf(t, lines, bus.Actions.Row(), at, func(a bus.Action) bool { return a.Kind == bus.CreateVolume })
		_, l = firstOf(t, lines, bus.ReportResult.Row(), l.at, func(r bus.ActionResult) bool { return r.Action == volume.ID && r.Fault == nil })
		launch, l := firstOf(t, lines, bus.Actions.Row(), l.at, func(a bus.Action) bool { return a.Kind == bus.CreateMachine })
		require.Equal(t, lease.Machine, launch.Machine)
		require.Equal(t, volume.Volume, launch.Volume)
		require.Equal(t, view.Project, launch.Project)
		intent, l := firstOf[bus.LaunchIntent](t, lines, bus.ReportIntent.Row(), l.at, nil)
		require.Equal(t, lease.Machine, intent.Machine)
		_, l = firstOf(t, lines, bus.ReportInventory.Row(), l.at, func(i bus.Inventory) bool {
			return len(i.Machines) == 1 && i.Machines[0].Machine == lease.Machine
		})
		require.True(t, strings.HasPrefix(l.subject, "conn."), l.subject)
		at = l.at
	})
	t.Run("4 the machine proves who it is and serves", func(t *testing.T) {
		_, l := firstOf[bus.Empty](t, lines, bus.ChallengeMachine.Row(), 0, nil)
		registered, l := firstOf[bus.MachineRegister](t, lines, bus.RegisterMachine.Row(), l.at, nil)
		require.NotEmpty(t, registered.Signature)
		require.Contains(t, l.subject, string(lease.Machine))
		_, l = firstOf(t, lines, bus.InstructMachine.Row(), l.at, func(i bus.Instruct) bool { return i.Daemon.State == bus.DaemonReady })
		serving, l := firstOf(t, lines, bus.InstructMachine.Row(), l.at-1, func(i bus.Instruct) bool { return len(i.Serving) == 1 })
		require.Equal(t, lease.Lease, serving.Serving[0].Lease)
		at = l.at
	})
	t.Run("5 the client learns", func(t *testing.T) {
		ready, l := firstOf(t, lines, bus.BuildStory.Row(), at, func(e bus.BuildEvent) bool { return e.State == bus.BuildReady })
		require.Equal(t, view.Build, ready.Build)
		_, l = firstOf[bus.BuildRef](t, lines, bus.GetBuild.Row(), l.at, nil)
		at = l.at
	})
	t.Run("6 the client builds and says how it ended", func(t *testing.T) {
		finished, l := firstOf[bus.BuildFinish](t, lines, bus.FinishBuild.Row(), at, nil)
		require.Equal(t, bus.BuildFinish{Build: view.Build, State: bus.BuildSucceeded}, finished)
		_, _ = firstOf(t, lines, bus.BuildStory.Row(), l.at, func(e bus.BuildEvent) bool { return e.State == bus.BuildSucceeded })
	})
	t.Run("each stage is told once and in order", func(t *testing.T) {
		var told []bus.Stage
		for _, l := range lines {
			var e bus.BuildEvent
			if l.row == bus.BuildStory.Row().Name {
				require.NoError(t, json.Unmarshal(l.data, &e))
				if e.Stage != "" && (len(told) == 0 || told[len(told)-1] != e.Stage) {
					told = append(told, e.Stage)
				}
			}
		}
		require.Equal(t, []bus.Stage{bus.StageQueued, bus.StageLaunching, bus.StageBooting, bus.StageRegistered, bus.StageStarting, bus.StageServing}, told)
	})
}
