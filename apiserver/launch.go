package apiserver

import (
	"slices"
	"time"

	"github.com/depotctl/depot/bus"
)

// The events of a launch: the machine's volume is its own, the agent is about to launch, an action has ended, the
// cloud shows an instance or shows none.
type (
	machineVolume   struct{ volume bus.VolumeID }
	machineIntended struct {
		attempt             int
		nonceHash, offering string
	}
	machineDone struct {
		kind    bus.ActionKind
		attempt int
		fault   *bus.Fault
		agentAt time.Time // on the agent's clock
	}
	machineObserved  struct{ status bus.MachineStatus }
	machineMissing   struct{ agentAt time.Time } // on the agent's clock
	machineCondemned struct {
		reason string
		final  bool
	}
)

func (machineVolume) name() string    { return "volume" }
func (machineIntended) name() string  { return "intended" }
func (machineDone) name() string      { return "done" }
func (machineObserved) name() string  { return "observed" }
func (machineMissing) name() string   { return "missing" }
func (machineCondemned) name() string { return "condemned" }

// newMachine is a machine as a slot wants it.
func newMachine(id bus.MachineID, s Slot, at moment) Machine {
	return Machine{
		ID: id, Organization: s.Organization, Project: s.Project, Connection: s.Connection, Architecture: s.Architecture, Volume: s.Volume,
		CreatedAt: at.now, State: MachineWanted, Since: at.now, IdleSince: at.now, Attempt: 1, Leases: map[bus.LeaseID]Lease{},
	}
}

// launch begins once the volume is held for this machine and no other.
func (m *Machine) launch(ev machineVolume, at moment) []effect {
	if m.State != MachineWanted || ev.volume != m.Volume {
		return nil
	}
	m.Launched = true
	m.enter(MachineLaunching, "", at)
	return append([]effect{m.action(bus.CreateMachine, at)}, m.tell(at, "launching a machine")...)
}

// intended fences a launch: an agent that is refused here must not launch.
func (m *Machine) intended(ev machineIntended) error {
	switch {
	case ev.attempt != m.Attempt:
		return bus.Faultf(bus.CodeConflict, "machine %s is at attempt %d, not %d", m.ID, m.Attempt, ev.attempt)
	case !m.in(MachineLaunching, MachineStarting, MachineBooting):
		return bus.Faultf(bus.CodeConflict, "machine %s is %s and shall not be launched", m.ID, m.State)
	case m.NonceUsed && m.NonceHash != ev.nonceHash:
		return bus.Faultf(bus.CodeConflict, "machine %s has registered with another nonce", m.ID)
	}
	m.NonceHash = ev.nonceHash
	return nil
}

// done takes the agent's word on how an action of this attempt ended.
func (m *Machine) done(ev machineDone, at moment) []effect {
	if ev.attempt != m.Attempt {
		return nil
	}
	switch ev.kind {
	case bus.CreateMachine, bus.StartMachine:
		if !m.in(MachineLaunching, MachineStarting) && (ev.fault == nil || m.State != MachineBooting) {
			return nil
		}
		if ev.fault != nil {
			return m.fail(reasonOf(ev.fault), isFinal(ev.fault), at)
		}
		m.enter(MachineBooting, "", at)
		return m.tell(at, "the machine boots")
	case bus.StopMachine:
		if m.State != MachineStopping {
			return nil
		}
		if ev.fault != nil {
			return m.fail("stop: "+ev.fault.Message, false, at)
		}
		m.enter(MachineStopped, "", at)
	case bus.DeleteMachine:
		if m.State == MachineDeleting && ev.fault == nil && m.DeletedAt.IsZero() {
			m.DeletedAt = ev.agentAt
		} else if m.State == MachineDeleting && ev.fault != nil {
			m.Reason = "delete: " + ev.fault.Message
		}
	case bus.CreateVolume, bus.AttachVolume, bus.DetachVolume, bus.DeleteVolume:
	}
	return nil
}

// isFinal reports whether asking the same again is in vain: the agent refuses it on principle, or lacks something that
// only its operator can provide.
func isFinal(f *bus.Fault) bool {
	return f.Code == bus.CodeInvalid || f.Code == bus.CodeForbidden || f.Code == bus.CodeUnavailable
}

// reasonOf is a fault in one line, with what to do about it.
func reasonOf(f *bus.Fault) string {
	if f.Hint == "" {
		return f.Message
	}
	return f.Message + " (" + f.Hint + ")"
}

// observed compares the machine with what its cloud shows.
func (m *Machine) observed(ev machineObserved, at moment) []effect {
	s := ev.status
	if s.Attempt != m.Attempt || m.State == MachineWanted {
		return nil
	}
	m.MissingSince = time.Time{}
	if s.Instance != "" {
		m.Instance = s.Instance
	}
	if len(s.Addresses) > 0 && !slices.Equal(m.Hosts, s.Addresses) {
		m.Hosts = slices.Clone(s.Addresses)
	}
	switch s.State {
	case bus.CloudPending, bus.CloudRunning:
		if m.in(MachineLaunching, MachineStarting) {
			m.enter(MachineBooting, "", at)
			return m.tell(at, "the machine boots")
		}
	case bus.CloudStopping, bus.CloudStopped:
		return m.observedStopped(s, at)
	case bus.CloudShuttingDown, bus.CloudTerminated:
		if m.State == MachineDeleting {
			if s.State == bus.CloudTerminated && !m.DeletedAt.IsZero() {
				return m.gone(at)
			}
			return nil
		}
		return m.fail(orText(s.Reason, "the cloud says that the instance has ended"), false, at)
	case bus.CloudCreating, bus.CloudAvailable, bus.CloudInUse, bus.CloudDeleting:
	}
	return nil
}

func (m *Machine) observedStopped(s bus.MachineStatus, at moment) []effect {
	if m.in(MachineStopped, MachineStarting, MachineFailed, MachineDeleting) {
		return nil
	}
	if m.State != MachineStopping {
		return m.fail(orText(s.Reason, "the instance was stopped from outside"), false, at)
	}
	if s.State == bus.CloudStopped {
		m.enter(MachineStopped, "", at)
	}
	return nil
}

// missing believes that an instance is gone only when inventories have lacked it for a while: clouds list late. What
// was never seen, or is being launched, is left to its deadline.
func (m *Machine) missing(ev machineMissing, at moment) []effect {
	if m.State == MachineDeleting {
		if !m.DeletedAt.IsZero() && !ev.agentAt.Before(m.DeletedAt) {
			return m.gone(at)
		}
		return nil
	}
	if m.in(MachineWanted, MachineLaunching, MachineFailed) {
		return nil
	}
	if m.MissingSince.IsZero() {
		m.MissingSince = ev.agentAt
		return nil
	}
	if ev.agentAt.Sub(m.MissingSince) < at.Missing {
		return nil
	}
	return m.fail("the cloud does not have the instance any more", false, at)
}

// fail tells every build on the machine, and lets nothing of it leak.
func (m *Machine) fail(reason string, final bool, at moment) []effect {
	if m.in(MachineFailed, MachineDeleting) {
		return nil
	}
	m.enter(MachineFailed, reason, at)
	m.Final = final
	return m.lose()
}

func (m Machine) lose() []effect {
	effects := []effect{release{m.ID, ""}} // even with no lease: that is what moves the machine on
	for id, l := range m.Leases {
		effects = append(effects, lose{l.Build, id, "machine " + string(m.ID) + ": " + m.Reason, m.Final})
	}
	return effects
}

func (m *Machine) gone(at moment) []effect {
	m.enter(MachineDeleted, m.Reason, at)
	return []effect{free{m.Volume, m.ID}}
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
