package cloudtest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

var _ cloudagent.Provider = (*Fake)(nil)

// Fake is a cloud in memory. Its zero value is empty and ready.
//
// Before and After let a test interfere: each is called with the name of the method, before anything was done or after
// everything was; the error that it returns is the method's. An error of After is a lost reply: the effect is there.
type Fake struct {
	Before func(ctx context.Context, method string) error
	After  func(ctx context.Context, method string) error
	// Slow leaves machines pending or stopping until Settle.
	Slow bool
	// Now is the clock; default time.Now.
	Now func() time.Time

	mu       sync.Mutex
	calls    []string
	launches map[cloudagent.MachineRef]int
	machines map[bus.MachineID]*fakeMachine
	volumes  map[bus.VolumeID]*fakeVolume
}

type fakeMachine struct {
	cloudagent.MachineSpec
	state  bus.CloudState
	reason string
	since  time.Time
}

type fakeVolume struct {
	cloudagent.VolumeSpec
	machine bus.MachineID
}

// Calls returns the names of the methods called so far, in their order.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Launches returns how often an attempt of a machine was launched.
func (f *Fake) Launches(m cloudagent.MachineRef) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.launches[m]
}

// Nonce returns what the user data of a machine holds.
func (f *Fake) Nonce(machine bus.MachineID) bus.Nonce {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.machines[machine]; m != nil {
		return m.Nonce
	}
	return bus.Nonce{}
}

// Settle ends the transitions of all machines.
func (f *Fake) Settle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.machines {
		switch m.state {
		case bus.CloudPending:
			m.state = bus.CloudRunning
		case bus.CloudStopping:
			m.state = bus.CloudStopped
		case bus.CloudShuttingDown:
			m.state = bus.CloudTerminated
		case bus.CloudRunning, bus.CloudStopped, bus.CloudTerminated, bus.CloudCreating, bus.CloudAvailable, bus.CloudInUse, bus.CloudDeleting:
		}
	}
}

// Crash stops a machine by no one's wish.
func (f *Fake) Crash(machine bus.MachineID, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.machines[machine]; m != nil {
		m.state, m.reason = bus.CloudStopped, reason
	}
}

// List implements cloudagent.Provider.
func (f *Fake) List(ctx context.Context, connection bus.ConnectionID) (listing cloudagent.Listing, err error) {
	err = f.call(ctx, "List", func() error {
		for id, m := range f.machines {
			if m.Connection != connection {
				continue
			}
			status := bus.MachineStatus{
				Machine: id, Attempt: m.Attempt, Instance: "i-" + string(id), State: m.state, Reason: m.reason,
				Project: m.Project, Addresses: []string{}, Since: m.since,
			}
			if m.state != bus.CloudTerminated {
				status.Volume = m.Volume
			}
			if m.state == bus.CloudRunning {
				status.Addresses = append(status.Addresses, "192.0.2.1")
			}
			listing.Machines = append(listing.Machines, status)
		}
		for id, v := range f.volumes {
			if v.Connection != connection {
				continue
			}
			status := bus.VolumeStatus{Volume: id, State: bus.CloudAvailable, Project: v.Project, SizeGB: v.SizeGB}
			if v.machine != "" {
				status.State, status.Machine = bus.CloudInUse, v.machine
			}
			listing.Volumes = append(listing.Volumes, status)
		}
		slices.SortFunc(listing.Machines, func(a, b bus.MachineStatus) int { return strings.Compare(string(a.Machine), string(b.Machine)) })
		slices.SortFunc(listing.Volumes, func(a, b bus.VolumeStatus) int { return strings.Compare(string(a.Volume), string(b.Volume)) })
		return nil
	})
	return listing, err
}

// CreateMachine implements cloudagent.Provider.
func (f *Fake) CreateMachine(ctx context.Context, spec cloudagent.MachineSpec, announce func(ctx context.Context, offering string) error) error {
	if done, err := f.known(spec); done || err != nil {
		return err
	}
	if err := announce(ctx, "fake."+string(spec.Architecture)); err != nil {
		return fmt.Errorf("announce launch: %w", err)
	}
	return f.call(ctx, "CreateMachine", func() error {
		if done, err := f.settleAttempt(spec); done || err != nil {
			return err
		}
		if old := f.machines[spec.Machine]; old != nil {
			f.release(old)
		}
		m := &fakeMachine{MachineSpec: spec, state: f.towards(bus.CloudPending, bus.CloudRunning), since: f.now()}
		if spec.Volume != "" {
			if err := f.attach(m, spec.Volume); err != nil {
				return err
			}
		}
		if f.machines == nil {
			f.machines = map[bus.MachineID]*fakeMachine{}
			f.launches = map[cloudagent.MachineRef]int{}
		}
		f.machines[spec.Machine] = m
		f.launches[spec.MachineRef]++
		return nil
	})
}

// known is settleAttempt for a launch that has not been announced yet.
func (f *Fake) known(spec cloudagent.MachineSpec) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.settleAttempt(spec)
}

func (f *Fake) settleAttempt(spec cloudagent.MachineSpec) (done bool, err error) {
	m := f.machines[spec.Machine]
	switch {
	case m == nil || spec.Attempt > m.Attempt && m.Connection == spec.Connection:
		return false, nil
	case m.Connection != spec.Connection:
		return true, bus.Faultf(bus.CodeConflict, "machine %s is not this connection's", spec.Machine)
	case spec.Attempt < m.Attempt:
		return true, stale(spec.MachineRef, m.Attempt)
	case m.state == bus.CloudTerminated || m.state == bus.CloudShuttingDown:
		return true, bus.Faultf(bus.CodeConflict, "attempt %d of machine %s was deleted", spec.Attempt, spec.Machine)
	}
	return true, nil
}

// StartMachine implements cloudagent.Provider.
func (f *Fake) StartMachine(ctx context.Context, ref cloudagent.MachineRef) error {
	return f.call(ctx, "StartMachine", func() error {
		m, err := f.find(ref)
		if err == nil && m.state != bus.CloudRunning && m.state != bus.CloudPending {
			m.state, m.reason, m.since = f.towards(bus.CloudPending, bus.CloudRunning), "", f.now()
		}
		return err
	})
}

// StopMachine implements cloudagent.Provider.
func (f *Fake) StopMachine(ctx context.Context, ref cloudagent.MachineRef) error {
	return f.call(ctx, "StopMachine", func() error {
		m, err := f.find(ref)
		if err == nil && m.state != bus.CloudStopped {
			m.state = f.towards(bus.CloudStopping, bus.CloudStopped)
		}
		return err
	})
}

// DeleteMachine implements cloudagent.Provider.
func (f *Fake) DeleteMachine(ctx context.Context, ref cloudagent.MachineRef) error {
	return f.call(ctx, "DeleteMachine", func() error {
		m := f.machines[ref.Machine]
		switch {
		case m == nil:
			if f.machines == nil {
				f.machines = map[bus.MachineID]*fakeMachine{}
				f.launches = map[cloudagent.MachineRef]int{}
			}
			f.machines[ref.Machine] = &fakeMachine{MachineSpec: cloudagent.MachineSpec{MachineRef: ref}, state: bus.CloudTerminated}
		case m.Connection != ref.Connection:
		case ref.Attempt < m.Attempt:
			return stale(ref, m.Attempt)
		default:
			m.Attempt = ref.Attempt
			if m.state != bus.CloudTerminated {
				m.state = f.towards(bus.CloudShuttingDown, bus.CloudTerminated)
			}
			f.release(m)
		}
		return nil
	})
}

func (f *Fake) find(ref cloudagent.MachineRef) (*fakeMachine, error) {
	m := f.machines[ref.Machine]
	switch {
	case m == nil || m.Connection != ref.Connection || ref.Attempt > m.Attempt:
		return nil, bus.Faultf(bus.CodeNotFound, "machine %s does not exist", ref.Machine)
	case ref.Attempt < m.Attempt:
		return nil, stale(ref, m.Attempt)
	case m.state == bus.CloudTerminated || m.state == bus.CloudShuttingDown:
		return nil, bus.Faultf(bus.CodeNotFound, "machine %s does not exist", ref.Machine)
	}
	return m, nil
}

func (f *Fake) call(ctx context.Context, method string, effect func() error) error {
	f.mu.Lock()
	f.calls = append(f.calls, method)
	f.mu.Unlock()
	if f.Before != nil {
		if err := f.Before(ctx, method); err != nil {
			return err
		}
	}
	f.mu.Lock()
	err := effect()
	f.mu.Unlock()
	if err == nil && f.After != nil {
		err = f.After(ctx, method)
	}
	return err
}

func (f *Fake) towards(transition, end bus.CloudState) bus.CloudState {
	if f.Slow {
		return transition
	}
	return end
}

func (f *Fake) now() time.Time {
	if f.Now != nil {
		return f.Now()
	}
	return time.Now()
}

func stale(m cloudagent.MachineRef, newest int) error {
	return bus.Faultf(bus.CodeConflict, "attempt %d of machine %s is over: the newest is %d", m.Attempt, m.Machine, newest)
}
