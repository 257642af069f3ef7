package apiserver

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// cloud is a connection's cloud-agent, scripted, with a cloud of machines that speak for themselves over the bus.
type cloud struct {
	t     testing.TB
	w     *world
	conn  *bus.Conn
	token bus.Token

	refuse  func(bus.Action) *bus.Fault           // refuses actions
	drop    func(bus.Action) bool                 // acknowledges actions and does nothing
	script  func(ctx context.Context, m *machine) // what a machine does; the default serves
	archs   []bus.Arch                            // that it offers
	mu      sync.Mutex
	actions []bus.Action
	running map[bus.MachineID]*machine
	volumes map[bus.VolumeID]bus.MachineID
	killed  map[bus.MachineID]bool
}

func (w *world) cloud(t testing.TB, x tenant, configure ...func(*cloud)) *cloud {
	t.Helper()
	c := &cloud{
		t: t, w: w, conn: w.connect(t, x.agent), token: x.agent, archs: []bus.Arch{bus.AMD64, bus.ARM64},
		running: map[bus.MachineID]*machine{}, volumes: map[bus.VolumeID]bus.MachineID{}, killed: map[bus.MachineID]bool{},
		script: func(ctx context.Context, m *machine) { m.serve(ctx) },
	}
	for _, f := range configure {
		f(c)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- bus.Actions.Consume(ctx, c.conn, c.carryOut) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
		c.stopAll()
	})
	require.NoError(t, bus.AgentHint.Subscribe(t.Context(), c.conn, func(bus.Empty) { c.report() }))
	c.report()
	return c
}

func (c *cloud) carryOut(ctx context.Context, d bus.Delivery[bus.Action]) error {
	a := d.Message
	c.mu.Lock()
	c.actions = append(c.actions, a)
	c.mu.Unlock()
	if c.drop != nil && c.drop(a) {
		return nil
	}
	result := bus.ActionResult{Action: a.ID, Kind: a.Kind, Machine: a.Machine, Attempt: a.Attempt, Volume: a.Volume, At: time.Now().UTC()}
	if c.refuse != nil {
		result.Fault = c.refuse(a)
	}
	if result.Fault == nil {
		err := c.do(ctx, a)
		if errors.Is(err, bus.CodeUnavailable) {
			return err // again later
		}
		if err != nil {
			result.Fault = bus.AsFault(err)
		}
	}
	if _, err := bus.ReportResult.Call(ctx, c.conn, result); err != nil {
		return err
	}
	c.report()
	return nil
}

func (c *cloud) do(ctx context.Context, a bus.Action) error {
	switch a.Kind {
	case bus.CreateMachine:
		nonce := bus.LaunchNonce(c.token, a.Machine, a.Attempt)
		if _, err := bus.ReportIntent.Call(ctx, c.conn, bus.LaunchIntent{Machine: a.Machine, Attempt: a.Attempt, NonceHash: nonce.Hash()}); err != nil {
			return err
		}
		c.launch(a, nonce)
	case bus.DeleteMachine:
		c.kill(a.Machine)
		c.mu.Lock()
		delete(c.running, a.Machine)
		delete(c.killed, a.Machine)
		c.mu.Unlock()
	case bus.CreateVolume:
		c.mu.Lock()
		if _, ok := c.volumes[a.Volume]; !ok {
			c.volumes[a.Volume] = ""
		}
		c.mu.Unlock()
	case bus.StartMachine, bus.StopMachine, bus.AttachVolume, bus.DetachVolume, bus.DeleteVolume:
	}
	return nil
}

// launch is where a cloud may break the two rules: one instance per machine, one machine per volume.
func (c *cloud) launch(a bus.Action, nonce bus.Nonce) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running[a.Machine] != nil {
		return // carried out already
	}
	for other, m := range c.running {
		if m.volume == a.Volume && !c.killed[other] {
			c.t.Errorf("volume %s is attached to %s and shall be attached to %s", a.Volume, other, a.Machine)
		}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	m := newMachineScript(c.t, c.w, a, nonce)
	m.stop = func() { cancel(); m.done.Wait() }
	c.running[a.Machine] = m
	m.done.Go(func() { c.script(ctx, m) })
}

// kill ends a machine as a cloud would on its own.
func (c *cloud) kill(id bus.MachineID) {
	c.mu.Lock()
	m := c.running[id]
	c.killed[id] = true
	c.mu.Unlock()
	if m != nil {
		m.stop()
	}
}

func (c *cloud) stopAll() {
	c.mu.Lock()
	var all []*machine
	for _, m := range c.running {
		all = append(all, m)
	}
	c.mu.Unlock()
	for _, m := range all {
		m.stop()
	}
}

// report sends the inventory.
func (c *cloud) report() {
	inv := bus.Inventory{Version: "test", Architectures: c.archs, MaxMachines: 10, At: time.Now().UTC()}
	c.mu.Lock()
	for id, m := range c.running {
		state := bus.CloudRunning
		if c.killed[id] {
			state = bus.CloudTerminated
		}
		inv.Machines = append(inv.Machines, bus.MachineStatus{Machine: id, Attempt: m.attempt, Instance: "i-" + string(id), State: state, Volume: m.volume, Project: m.project})
	}
	c.mu.Unlock()
	_, _ = bus.ReportInventory.Call(c.t.Context(), c.conn, inv) // the next one makes up for it
}

// machineIDs returns the machines that the agent was told to create, in order, without repeats.
func (c *cloud) machineIDs() []bus.MachineID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []bus.MachineID
	seen := map[bus.MachineID]bool{}
	for _, a := range c.actions {
		if a.Kind == bus.CreateMachine && !seen[a.Machine] {
			seen[a.Machine] = true
			ids = append(ids, a.Machine)
		}
	}
	return ids
}

func (c *cloud) machine(id bus.MachineID) *machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running[id]
}
