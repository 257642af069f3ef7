package apiserver

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// quick are timeouts with which a test need not wait.
var quick = Timeouts{Backoff: 50 * time.Millisecond, Settle: 100 * time.Millisecond, Fail: 200 * time.Millisecond, Grace: 200 * time.Millisecond}

func TestBuild_WaitingMovesToAnotherMachineWithTheSameCache(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	var first atomic.Bool
	cloud := w.cloud(t, x, func(c *cloud) {
		c.script = func(ctx context.Context, m *machine) {
			if first.CompareAndSwap(false, true) {
				<-ctx.Done() // hangs at boot
				return
			}
			m.serve(ctx)
		}
	})
	c := w.client(t, x.user)
	v := c.create(t)
	require.Eventually(t, func() bool { return len(cloud.machineIDs()) == 1 && cloud.machine(cloud.machineIDs()[0]) != nil }, patience, time.Millisecond)
	old := cloud.machine(cloud.machineIDs()[0])
	cloud.kill(old.id)
	cloud.report()
	v = c.untilState(t, v.Build, bus.BuildReady)
	require.Equal(t, 2, v.Leases[0].Attempt)
	require.NotEqual(t, old.id, v.Leases[0].Machine)
	require.Equal(t, old.volume, cloud.machine(v.Leases[0].Machine).volume, "the cache outlives the machine")
	require.Eventually(t, func() bool { return w.machine(t, old.id).State == MachineDeleted }, patience, 5*time.Millisecond, "nothing leaks")
}

func TestBuild_ReadyLearnsThatItsMachineIsLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)
	v := c.untilState(t, c.create(t).Build, bus.BuildReady)
	cloud.kill(v.Leases[0].Machine)
	cloud.report()
	v = c.until(t, v.Build, func(v bus.BuildView) bool { return v.Leases[0].Reason != "" })
	require.Equal(t, bus.BuildReady, v.State, "the client decides")
	require.Empty(t, v.Leases[0].Certificate)
	require.Empty(t, v.Leases[0].Addresses)
	require.Contains(t, v.Leases[0].Reason, "the instance has ended")
	require.Equal(t, bus.BuildFailed, c.finishAs(t, v.Build, bus.BuildFailed).State)

	next := c.untilState(t, c.create(t).Build, bus.BuildReady)
	require.NotEqual(t, v.Leases[0].Machine, next.Leases[0].Machine)
	require.Len(t, cloud.machineIDs(), 2)
}

func TestBuild_FailsAtOnceWhenTheAgentRefusesOnPrinciple(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x, func(c *cloud) {
		c.refuse = func(a bus.Action) *bus.Fault {
			if a.Kind == bus.CreateMachine {
				return bus.Faultf(bus.CodeForbidden, "this agent launches no amd64 machines")
			}
			return nil
		}
	})
	c := w.client(t, x.user)
	v := c.untilState(t, c.create(t).Build, bus.BuildFailed)
	require.Contains(t, v.Reason, "no builder for amd64")
	require.Contains(t, v.Reason, "this agent launches no amd64 machines")
	require.Len(t, cloud.machineIDs(), 1, "asking again is in vain")
}

func TestBuild_FailsAfterItsAttemptsWhenThereIsNoCapacity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x, func(c *cloud) {
		c.refuse = func(a bus.Action) *bus.Fault {
			if a.Kind == bus.CreateMachine {
				return bus.Faultf(bus.CodeNoCapacity, "no capacity in zone a")
			}
			return nil
		}
	})
	c := w.client(t, x.user)
	v := c.untilState(t, c.create(t).Build, bus.BuildFailed)
	require.Contains(t, v.Reason, "3 attempts, the last: ")
	require.Contains(t, v.Reason, "no capacity in zone a")
	require.Len(t, cloud.machineIDs(), 3)
}

func TestBuild_FailsWithTheReasonWhenItsVolumeCannotBeMade(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	var refused atomic.Bool
	refused.Store(true)
	cloud := w.cloud(t, x, func(c *cloud) {
		c.refuse = func(a bus.Action) *bus.Fault {
			if a.Kind == bus.CreateVolume && refused.Load() {
				return bus.Faultf(bus.CodeInvalid, "a volume of 50 GB is more than the limit of 10 GB")
			}
			return nil
		}
	})
	c := w.client(t, x.user)
	v := c.untilState(t, c.create(t).Build, bus.BuildFailed)
	require.Contains(t, v.Reason, "more than the limit of 10 GB")
	require.Empty(t, cloud.machineIDs(), "no machine without a volume")

	refused.Store(false)
	c.untilState(t, c.create(t).Build, bus.BuildReady)
}

func TestBuild_ExpiresNamingTheStageInWhichItWaited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	w.cloud(t, x, func(c *cloud) { c.script = func(ctx context.Context, _ *machine) { <-ctx.Done() } })
	c := w.client(t, x.user)
	v, err := bus.CreateBuild.Call(patiently(t), c.conn, bus.BuildCreate{Build: bus.NewBuildID(), CSR: c.csr, AcquireSeconds: 4})
	require.NoError(t, err)
	v = c.untilState(t, v.Build, bus.BuildExpired)
	require.Equal(t, `no builder within 4s: amd64 is in stage "booting"`, v.Reason)
	require.Eventually(t, func() bool { return w.leasesOn(t, v.Leases[0].Machine) == 0 }, patience, 5*time.Millisecond)
}

func TestBuild_ExpiresAtItsDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)
	v, err := bus.CreateBuild.Call(patiently(t), c.conn, bus.BuildCreate{Build: bus.NewBuildID(), CSR: c.csr, TimeoutSeconds: 8})
	require.NoError(t, err)
	c.untilState(t, v.Build, bus.BuildReady)
	v = c.untilState(t, v.Build, bus.BuildExpired)
	require.Equal(t, "the build's time of 8s is over", v.Reason)
	require.Eventually(t, func() bool {
		_, _, ok := cloud.machine(v.Leases[0].Machine).holds(v.Leases[0].Lease)
		return !ok
	}, patience, 5*time.Millisecond, "its lease is cut")
}

func TestBuild_IsCanceledFromAnywhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	w.cloud(t, x)
	c, colleague := w.client(t, x.user), w.client(t, x.user)
	v := c.untilState(t, c.create(t).Build, bus.BuildReady)
	v, err := bus.CancelBuild.Call(patiently(t), colleague.conn, bus.BuildRef{Build: v.Build})
	require.NoError(t, err)
	require.Equal(t, bus.BuildCanceled, v.State)
	require.Contains(t, v.Reason, string(x.user.ID))
	require.Equal(t, bus.BuildCanceled, c.finish(t, v.Build).State, "the first end wins")
}

func TestBuild_EndsWhenClientAndConnectionsAreSilent(t *testing.T) {
	t.Parallel()
	timeouts := quick
	timeouts.Silence = 5 * time.Second
	w := newWorld(t, timeouts)
	w.start(t) // a second replica, which must hear what the first hears
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)

	pulsing := c.untilState(t, c.create(t).Build, bus.BuildReady)
	connected := c.untilState(t, c.create(t).Build, bus.BuildReady)
	silent := c.untilState(t, c.create(t).Build, bus.BuildReady)
	m := cloud.machine(connected.Leases[0].Machine)
	ended := func(id bus.BuildID) bool {
		b, ok := w.newest().mirrors.builds.get(string(id)) // to ask for a build is a sign of life
		return ok && b.State.Ended()
	}
	for began := time.Now(); !ended(silent.Build) && time.Since(began) < patience; {
		require.NoError(t, bus.BuildIsLive.Send(t.Context(), c.conn, bus.BuildLive{Build: pulsing.Build}))
		require.NoError(t, bus.MachineIsLive.Send(t.Context(), m.connection(), bus.MachineReport{
			DiskFreeBytes: 7, Live: []bus.LiveLease{{Lease: connected.Leases[0].Lease, Connections: 1}, {Lease: silent.Leases[0].Lease}},
		}))
		<-time.After(100 * time.Millisecond)
	}
	list, err := bus.ListRecentBuilds.Call(patiently(t), c.conn, bus.ListBuilds{})
	require.NoError(t, err)
	states := map[bus.BuildID]bus.BuildView{}
	for _, b := range list.Builds {
		states[b.Build] = b
	}
	require.Equal(t, bus.BuildReady, states[pulsing.Build].State)
	require.Equal(t, bus.BuildRunning, states[connected.Build].State, "a connection makes it running, and is a sign of life")
	require.Equal(t, bus.BuildCanceled, states[silent.Build].State)
	require.Contains(t, states[silent.Build].Reason, "sign of life")

	machines, err := bus.ListLiveMachines.Call(patiently(t), c.conn, bus.Empty{})
	require.NoError(t, err)
	require.Len(t, machines.Machines, 1)
	require.Equal(t, int64(7), machines.Machines[0].DiskFreeBytes)
	require.Equal(t, "serving", machines.Machines[0].State)
}

// A replica that was cut off does not know who was silent meanwhile.
func TestPulses_SilenceIsCountedOnlyWhileListening(t *testing.T) {
	t.Parallel()
	p := newPulses()
	b := Build{ID: someBuild}
	p.listening = time.Now().Add(-time.Hour)
	require.Greater(t, p.silence(b, 2*time.Hour), 59*time.Minute)
	require.Equal(t, time.Second, p.silence(b, time.Second), "a build is not silent for longer than it exists")
	p.build(someBuild)
	require.Less(t, p.silence(b, 2*time.Hour), time.Minute)
	delete(p.builds, someBuild)
	p.deaf()
	require.Less(t, p.silence(b, 2*time.Hour), time.Minute)
}

func TestMachine_WithoutInstanceIsReplaced(t *testing.T) {
	t.Parallel()
	timeouts := quick
	timeouts.Missing = 300 * time.Millisecond
	w := newWorld(t, timeouts)
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)
	v := c.untilState(t, c.create(t).Build, bus.BuildReady)
	ghost := v.Leases[0].Machine
	cloud.machine(ghost).stop()
	cloud.mu.Lock()
	delete(cloud.running, ghost) // the cloud knows nothing of it any more
	cloud.mu.Unlock()
	require.Eventually(t, func() bool {
		cloud.report()
		return w.machine(t, ghost).State == MachineDeleted
	}, patience, 50*time.Millisecond)
	require.Contains(t, w.machine(t, ghost).Reason, "does not have the instance any more")
}

func TestMachine_WithoutRecordIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	_, err := bus.ReportInventory.Call(patiently(t), cloud.conn, bus.Inventory{
		Architectures: cloud.archs, At: time.Now(), Machines: []bus.MachineStatus{{Machine: bus.NewMachineID(), Attempt: 1, State: bus.CloudRunning}},
	})
	require.NoError(t, err)
	c := w.client(t, x.user)
	c.untilState(t, c.create(t).Build, bus.BuildReady)
	cloud.mu.Lock()
	defer cloud.mu.Unlock()
	for _, a := range cloud.actions {
		require.NotEqual(t, bus.DeleteMachine, a.Kind, "what has no record is never deleted")
	}
}

func TestMachine_WhoseDaemonFailsTellsWhy(t *testing.T) {
	t.Parallel()
	timeouts := quick
	timeouts.Attempts = 1
	w := newWorld(t, timeouts)
	x := w.tenant(t, "acme")
	w.cloud(t, x, func(c *cloud) {
		c.script = func(ctx context.Context, m *machine) {
			credential, err := m.register(ctx)
			if err != nil {
				return
			}
			cfg := w.bus.Config()
			cfg.User = &bus.UserCredential{Machine: m.id, JWT: credential.JWT, Sign: m.user.Sign}
			conn, err := bus.Connect(ctx, cfg)
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			_, _ = bus.InstructMachine.Call(ctx, conn, bus.Instruct{Daemon: bus.DaemonStatus{State: bus.DaemonFailed, Reason: "runc is not installed"}})
			<-ctx.Done()
		}
	})
	c := w.client(t, x.user)
	v := c.untilState(t, c.create(t).Build, bus.BuildFailed)
	require.True(t, strings.HasSuffix(v.Reason, "BuildKit: runc is not installed"), v.Reason)
}

func (w *world) machine(t *testing.T, id bus.MachineID) Machine {
	t.Helper()
	m, _, err := w.newest().store.machines.Get(t.Context(), string(id))
	require.NoError(t, err)
	return m
}
