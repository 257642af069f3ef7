package apiserver

import (
	"maps"

	"github.com/depotctl/depot/bus"
)

// The events that end a machine's work: a lease is given back, the machine says goodbye, time passes.
type (
	machineReleased struct{ lease bus.LeaseID }
	machineGoodbye  struct{ reason string }
	machineTick     struct{}
)

func (machineReleased) name() string { return "released" }
func (machineGoodbye) name() string  { return "goodbye" }
func (machineTick) name() string     { return "deadline" }

// released takes a lease off the machine. The front cuts its connections as soon as it is not instructed any more.
func (m *Machine) released(ev machineReleased, at moment) []effect {
	var effects []effect
	if _, ok := m.Leases[ev.lease]; ok {
		delete(m.Leases, ev.lease)
		if len(m.Leases) == 0 {
			m.IdleSince = at.now
		}
		if m.in(MachineRegistered, MachineServing, MachineDraining) {
			effects = append(effects, hint{m.Connection, m.ID, ""})
		}
	}
	return append(effects, m.proceed(at)...)
}

// proceed is what follows when the last lease is gone from a machine that was waiting for that.
func (m *Machine) proceed(at moment) []effect {
	if len(m.Leases) > 0 {
		return nil
	}
	switch {
	case m.State == MachineDraining && m.Retire, m.State == MachineFailed && m.Launched:
		return m.delete(at)
	case m.State == MachineFailed:
		return m.gone(at) // nothing was ever asked of the cloud
	case m.State == MachineDraining:
		m.enter(MachineStopping, m.Reason, at)
		return []effect{m.action(bus.StopMachine, at), hint{m.Connection, m.ID, ""}}
	}
	return nil
}

func (m *Machine) delete(at moment) []effect {
	m.enter(MachineDeleting, m.Reason, at)
	return []effect{m.action(bus.DeleteMachine, at)}
}

// start starts a stopped machine again, as a new attempt with a new nonce and the key that it is bound to.
func (m *Machine) start(at moment) []effect {
	m.Attempt++
	m.NonceHash, m.NonceUsed, m.Challenge = "", false, ""
	m.Daemon, m.Addresses = bus.DaemonStatus{}, nil
	m.enter(MachineStarting, "", at)
	return append([]effect{m.action(bus.StartMachine, at)}, m.tell(at, "starting a stopped machine")...)
}

// goodbye is welcome from a machine that was told to stop; from any other it is a loss.
func (m *Machine) goodbye(ev machineGoodbye, at moment) []effect {
	if !m.in(MachineBooting, MachineRegistered, MachineServing, MachineDraining) {
		return nil
	}
	return m.fail("machine-agent has ended: "+orText(ev.reason, "no reason given"), false, at)
}

// tick looks at the clock, and says again what is still to be done.
func (m *Machine) tick(at moment) []effect {
	m.expireLeases(at)
	if effects := m.idle(at); effects != nil {
		return effects
	}
	if at.past(m.Since, m.patience(at.Timeouts)) {
		if effects, moved := m.overdue(at); moved {
			return effects
		}
	}
	switch m.State {
	case MachineLaunching:
		return []effect{m.action(bus.CreateMachine, at)}
	case MachineStarting:
		return []effect{m.action(bus.StartMachine, at)}
	case MachineStopping:
		return []effect{m.action(bus.StopMachine, at)}
	case MachineDeleting:
		if !m.DeletedAt.IsZero() {
			return []effect{inquire{m.Connection}}
		}
		return []effect{m.action(bus.DeleteMachine, at)}
	case MachineFailed:
		return m.lose()
	case MachineWanted, MachineBooting, MachineRegistered, MachineServing, MachineDraining, MachineStopped, MachineDeleted:
	}
	return nil
}

// overdue is the exit of every state when its time is over. It reports whether there was one.
func (m *Machine) overdue(at moment) ([]effect, bool) {
	took := m.patience(at.Timeouts).String()
	switch m.State {
	case MachineWanted:
		return m.fail(orText(m.Reason, "its volume was not free within "+took), false, at), true
	case MachineLaunching, MachineStarting:
		return m.fail("the cloud-agent did not launch it within "+took, false, at), true
	case MachineBooting:
		return m.fail("it did not register within "+took, false, at), true
	case MachineRegistered:
		return m.fail("BuildKit did not start within "+took+": "+orText(m.Daemon.Reason, "no reason given"), false, at), true
	case MachineServing:
		if len(m.Leases) > 0 {
			return nil, false // never under a build
		}
		m.Retire = true
		m.enter(MachineDraining, "older than "+took, at)
		return []effect{release{m.ID, ""}, hint{m.Connection, m.ID, ""}}, true
	case MachineDraining:
		effects := m.proceed(at)
		return effects, effects != nil
	case MachineStopping:
		return m.fail("it did not stop within "+took, false, at), true
	case MachineStopped:
		return m.delete(at), true
	case MachineFailed:
		clear(m.Leases)
		return m.proceed(at), true
	case MachineDeleting:
		m.enter(MachineFailed, m.Reason, at)
		return m.lose(), true
	case MachineDeleted:
	}
	return nil, false
}

// idle stops a machine that has had nothing to do for long enough.
func (m *Machine) idle(at moment) []effect {
	if m.State != MachineServing || len(m.Leases) > 0 || !at.past(m.IdleSince, at.Idle) || !at.past(m.Since, at.Idle) {
		return nil
	}
	m.enter(MachineDraining, "idle for "+at.Idle.String(), at)
	return []effect{release{m.ID, ""}, hint{m.Connection, m.ID, ""}}
}

// expireLeases drops leases whose certificates have ended: the front has cut them by itself.
func (m *Machine) expireLeases(at moment) {
	had := len(m.Leases)
	maps.DeleteFunc(m.Leases, func(_ bus.LeaseID, l Lease) bool { return !at.now.Before(l.Deadline) })
	if had > 0 && len(m.Leases) == 0 {
		m.IdleSince = at.now
	}
}
