package apiserver

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
)

func TestBuild_GetsABuilderFromNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)

	v := c.create(t)
	require.Len(t, v.Leases, 1)
	require.Equal(t, x.Project, v.Project)
	v = c.untilState(t, v.Build, bus.BuildReady)
	l := v.Leases[0]
	require.Equal(t, []string{"127.0.0.1:1234"}, l.Addresses)
	require.Equal(t, bus.StageServing, l.Stage)
	require.Equal(t, string(l.Lease), l.ServerName)
	require.Equal(t, []bus.MachineID{l.Machine}, cloud.machineIDs())
	grant, key, ok := cloud.machine(l.Machine).holds(l.Lease)
	require.True(t, ok)
	require.NoError(t, handshake(t, l, c.key, grant, key))

	require.Equal(t, bus.BuildSucceeded, c.finish(t, v.Build).State)
	require.Empty(t, c.get(t, v.Build).Leases[0].Certificate, "an ended build has no certificates")
	require.Eventually(t, func() bool {
		_, _, ok := cloud.machine(l.Machine).holds(l.Lease)
		return !ok
	}, patience, 5*time.Millisecond, "the machine is told that the lease has ended")
	require.Equal(t, bus.BuildSucceeded, c.finishAs(t, v.Build, bus.BuildFailed).State, "the first end wins")
}

// handshake connects the two ends as the front and the CLI do.
func handshake(t *testing.T, l bus.LeaseView, client *certs.Key, g bus.LeaseGrant, server *certs.Key) error {
	t.Helper()
	pin, err := certs.SPKI(l.Certificate)
	require.NoError(t, err)
	require.Equal(t, g.ClientSPKI, pin)
	serverConfig, err := certs.ServerConfig(string(g.Lease), g.CA, g.Certificate, server, g.ClientSPKI)
	require.NoError(t, err)
	clientConfig, err := certs.ClientConfig(l.ServerName, l.CA, l.Certificate, client)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	var accepting sync.WaitGroup
	accepting.Go(func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = io.WriteString(tls.Server(conn, serverConfig), "hello")
			_ = conn.Close()
		}
	})
	defer accepting.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: clientConfig}).DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_, err = io.ReadFull(conn, make([]byte, 5))
	return err
}

func TestBuild_SharesTheWarmMachineOfItsProject(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)
	first := c.untilState(t, c.create(t).Build, bus.BuildReady)
	second := c.untilState(t, c.create(t).Build, bus.BuildReady)
	require.Equal(t, first.Leases[0].Machine, second.Leases[0].Machine)
	require.NotEqual(t, first.Leases[0].Lease, second.Leases[0].Lease)
	require.NotEqual(t, first.Leases[0].CA, second.Leases[0].CA, "each lease has its own authority")
	require.Len(t, cloud.machineIDs(), 1)

	// A second project never shares it.
	_, err := bus.CreateProject.Call(patiently(t), c.conn, bus.ProjectCreate{Name: "other"})
	require.NoError(t, err)
	v, err := bus.CreateBuild.Call(patiently(t), c.conn, bus.BuildCreate{Build: bus.NewBuildID(), Project: "other", CSR: c.csr})
	require.NoError(t, err)
	v = c.untilState(t, v.Build, bus.BuildReady)
	require.NotEqual(t, first.Leases[0].Machine, v.Leases[0].Machine)
	require.Len(t, cloud.machineIDs(), 2)
	require.NotEqual(t, cloud.machine(v.Leases[0].Machine).volume, cloud.machine(first.Leases[0].Machine).volume)
}

func TestBuild_OfTwoArchitecturesIsReadyWhenBothServe(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	w.cloud(t, x)
	c := w.client(t, x.user)
	v := c.untilState(t, c.create(t, bus.ARM64, bus.AMD64).Build, bus.BuildReady)
	require.Equal(t, bus.ARM64, v.Leases[0].Architecture, "in the order in which they were asked for")
	require.NotEqual(t, v.Leases[0].Machine, v.Leases[1].Machine)
	for _, l := range v.Leases {
		require.NotEmpty(t, l.Certificate)
	}
}

func TestBuild_StoryNamesEveryStage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	w.cloud(t, x)
	c := w.client(t, x.user)
	id := bus.NewBuildID()
	heard := make(chan bus.BuildEvent, 64)
	require.NoError(t, bus.BuildStory.Subscribe(t.Context(), c.conn, func(e bus.BuildEvent) { heard <- e }, "*", string(id)))
	_, err := bus.CreateBuild.Call(patiently(t), c.conn, bus.BuildCreate{Build: id, CSR: c.csr})
	require.NoError(t, err)
	c.untilState(t, id, bus.BuildReady)
	c.finish(t, id)
	var stages []bus.Stage
	var last bus.BuildEvent
	for !last.State.Ended() {
		select {
		case last = <-heard:
			stages = append(stages, last.Stage)
		case <-time.After(patience):
			require.Fail(t, "the story has no end", "%v", stages)
		}
	}
	require.Equal(t, []bus.Stage{bus.StageQueued, bus.StageLaunching, bus.StageBooting, bus.StageRegistered, bus.StageServing, ""}, slices.Compact(stages))

	var replayed bus.BuildEvents
	require.Eventually(t, func() bool {
		replayed, err = bus.ReplayBuild.Call(patiently(t), c.conn, bus.BuildRef{Build: id})
		return err == nil && len(replayed.Events) == len(stages)
	}, patience, 20*time.Millisecond)
	for i, e := range replayed.Events {
		require.Equal(t, stages[i], e.Stage)
	}
}

func TestBuild_AskedForAgainIsTheSame(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x, stranger := w.tenant(t, "acme"), w.tenant(t, "evil")
	cloud := w.cloud(t, x)
	w.cloud(t, stranger)
	c, other := w.client(t, x.user), w.client(t, stranger.user)
	ask := bus.BuildCreate{Build: bus.NewBuildID(), CSR: c.csr}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			_, err := bus.CreateBuild.Call(patiently(t), c.conn, ask)
			if err != nil {
				t.Errorf("ask again: %v", err)
			}
		})
	}
	all.Wait()
	v := c.untilState(t, ask.Build, bus.BuildReady)
	require.Len(t, cloud.machineIDs(), 1)
	require.Equal(t, 1, w.leasesOn(t, v.Leases[0].Machine))

	_, err := bus.CreateBuild.Call(patiently(t), c.conn, bus.BuildCreate{Build: ask.Build, CSR: other.csr})
	require.ErrorIs(t, err, bus.CodeConflict, "another key is another build")
	_, err = bus.CreateBuild.Call(patiently(t), other.conn, bus.BuildCreate{Build: ask.Build, CSR: other.csr})
	require.ErrorIs(t, err, bus.CodeConflict)

	c.finish(t, ask.Build)
	again, err := bus.CreateBuild.Call(patiently(t), c.conn, ask)
	require.NoError(t, err)
	require.Equal(t, bus.BuildSucceeded, again.State)
	require.Eventually(t, func() bool { return w.leasesOn(t, v.Leases[0].Machine) == 0 }, patience, 5*time.Millisecond, "an ended build takes no lease")
}

func TestMachine_ThatLostItsKeyGetsANewGeneration(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)
	before := c.untilState(t, c.create(t).Build, bus.BuildReady)
	m := cloud.machine(before.Leases[0].Machine)
	old, oldKey, _ := m.holds(before.Leases[0].Lease)
	require.Equal(t, 1, old.Generation)
	m.loseKeys()
	m.wake("")
	after := c.until(t, before.Build, func(v bus.BuildView) bool {
		return v.State == bus.BuildReady && v.Leases[0].Certificate != before.Leases[0].Certificate
	})
	grant, key, ok := m.holds(after.Leases[0].Lease)
	require.True(t, ok)
	require.Equal(t, 2, grant.Generation)
	require.NotEqual(t, before.Leases[0].CA, after.Leases[0].CA)
	require.NoError(t, handshake(t, after.Leases[0], c.key, grant, key))
	require.Error(t, handshake(t, before.Leases[0], c.key, grant, key), "the old set opens nothing")
	require.Error(t, handshake(t, after.Leases[0], c.key, old, oldKey), "the old set serves nothing")
}

func TestMachine_ThatAsksWithTheSameRequestGetsTheSameSet(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)
	v := c.untilState(t, c.create(t).Build, bus.BuildReady)
	m := cloud.machine(v.Leases[0].Machine)
	grant, _, _ := m.holds(v.Leases[0].Lease)
	m.mu.Lock()
	conn, csr := m.conn, m.csrs[v.Leases[0].Lease]
	m.mu.Unlock()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			told, err := bus.InstructMachine.Call(patiently(t), conn, bus.Instruct{
				Daemon: bus.DaemonStatus{State: bus.DaemonReady}, CSRs: []bus.LeaseCSR{{Lease: v.Leases[0].Lease, CSR: csr}},
			})
			if err != nil || len(told.Leases) != 1 || told.Leases[0] != grant {
				t.Errorf("told %+v, %v", told, err)
			}
		})
	}
	all.Wait()
}

// leasesOn counts the leases in a machine's record.
func (w *world) leasesOn(t *testing.T, id bus.MachineID) int {
	t.Helper()
	m, _, err := w.newest().store.machines.Get(t.Context(), string(id))
	require.NoError(t, err)
	return len(m.Leases)
}

func (c *client) finishAs(t *testing.T, id bus.BuildID, s bus.BuildState) bus.BuildView {
	t.Helper()
	v, err := bus.FinishBuild.Call(patiently(t), c.conn, bus.BuildFinish{Build: id, State: s})
	require.NoError(t, err)
	return v
}
