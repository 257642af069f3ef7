package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// hasty are timeouts with which scans make good what crashes left, in a test's time.
var hasty = Timeouts{Backoff: 20 * time.Millisecond, Settle: 50 * time.Millisecond, Fail: 200 * time.Millisecond, Grace: 100 * time.Millisecond, Attempts: 10}

// TestReplicas_WithCrashesDecideOnce runs many builds of many projects through three API servers that die all the
// time: between a write and what should follow it, and as a whole.
func TestReplicas_WithCrashesDecideOnce(t *testing.T) {
	t.Parallel()
	const projects, builds = 6, 60
	w := emptyWorld(t, hasty)
	var crashes atomic.Int32
	w.crash = func(effect) bool {
		if rand.N(100) >= 5 {
			return false
		}
		crashes.Add(1)
		return true
	}
	var stops []func()
	for range 3 {
		stops = append(stops, w.start(t))
	}
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)
	for i := range projects {
		_, err := bus.CreateProject.Call(patiently(t), c.conn, bus.ProjectCreate{Name: fmt.Sprintf("p%d", i), Architectures: []bus.Arch{bus.AMD64}})
		require.NoError(t, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var killer sync.WaitGroup
	killer.Go(func() { // replaces one replica after the other
		for i := range 9 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
				stops[i%3]()
				stops[i%3] = w.start(t)
			}
		}
	})
	var all sync.WaitGroup
	for i := range builds {
		ask := bus.BuildCreate{Build: bus.NewBuildID(), Project: fmt.Sprintf("p%d", i%projects), CSR: c.csr}
		all.Go(func() { buildThrough(t, c, ask) })
	}
	all.Wait()
	cancel()
	killer.Wait()
	t.Logf("%d effects were lost in crashes", crashes.Load())
	require.Len(t, cloud.machineIDs(), projects, "one machine per project")
	s := w.newest()
	require.Eventually(t, func() bool {
		for m := range s.mirrors.machines.all() {
			if len(m.Leases) > 0 {
				return false
			}
		}
		return true
	}, patience, 20*time.Millisecond, "every lease is given back")
}

// buildThrough asks until it is answered, as the CLI does, and ends the build once it is ready.
func buildThrough(t *testing.T, c *client, ask bus.BuildCreate) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	for {
		_, err := bus.CreateBuild.Call(ctx, c.conn, ask)
		if err == nil {
			break
		}
		if !errors.Is(err, bus.CodeUnavailable) || ctx.Err() != nil {
			t.Errorf("build %s: %v", ask.Build, err)
			return
		}
	}
	for ctx.Err() == nil {
		v, err := bus.GetBuild.Call(ctx, c.conn, bus.BuildRef{Build: ask.Build})
		if err == nil && v.State.Ended() {
			t.Errorf("build %s has ended: %s %s", ask.Build, v.State, v.Reason)
			return
		}
		if err == nil && v.State == bus.BuildReady {
			v, err = bus.FinishBuild.Call(ctx, c.conn, bus.BuildFinish{Build: ask.Build, State: bus.BuildSucceeded})
			if err == nil && v.State == bus.BuildSucceeded {
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Errorf("build %s was not served", ask.Build)
}

// TestScan_FinishesWhatACrashLeft lets the API server die before its first effect of each kind, and before its second.
func TestScan_FinishesWhatACrashLeft(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"act", "hint", "tell", "release", "free", "fill", "lose", "place"} {
		for _, nth := range []int32{1, 2} {
			t.Run(fmt.Sprintf("%s/%d", kind, nth), func(t *testing.T) {
				t.Parallel()
				w := emptyWorld(t, hasty)
				var n atomic.Int32
				w.crash = func(e effect) bool { return fmt.Sprintf("%T", e) == "apiserver."+kind && n.Add(1) == nth }
				w.start(t)
				x := w.tenant(t, "acme")
				cloud := w.cloud(t, x)
				c := w.client(t, x.user)
				v := c.untilState(t, c.create(t).Build, bus.BuildReady)
				first := v.Leases[0].Machine
				waiting := c.create(t)
				cloud.kill(first) // one build is ready, one is about to be
				cloud.report()
				c.finish(t, v.Build)
				c.until(t, waiting.Build, func(v bus.BuildView) bool { return v.State == bus.BuildReady })
				c.finish(t, waiting.Build)
				next := c.untilState(t, c.create(t).Build, bus.BuildReady)
				require.NotEqual(t, first, next.Leases[0].Machine)
				require.Len(t, cloud.machineIDs(), 2)
				require.Eventually(t, func() bool { return w.machine(t, first).State == MachineDeleted }, patience, 10*time.Millisecond)
				c.finish(t, next.Build)
				require.Eventually(t, func() bool { return w.leasesOn(t, next.Leases[0].Machine) == 0 }, patience, 10*time.Millisecond)
			})
		}
	}
}
