package apiserver

import (
	"slices"

	"github.com/depotctl/depot/bus"
)

// The events of a machine at work: it reports what it does, a build takes a lease, a lease gets its certificates.
type (
	machineReported struct {
		daemon    bus.DaemonStatus
		addresses []string
	}
	machineTaken struct {
		id    bus.LeaseID
		lease Lease
	}
	machineCertified struct {
		lease                               bus.LeaseID
		generation                          int
		csr, ca, server, client, clientSPKI string
	}
)

func (machineReported) name() string  { return "reported" }
func (machineTaken) name() string     { return "taken" }
func (machineCertified) name() string { return "certified" }

// reported takes the machine's word on its daemon. It serves once the daemon has answered through its own front.
func (m *Machine) reported(ev machineReported, at moment) []effect {
	if !m.in(MachineRegistered, MachineServing, MachineDraining) {
		return nil
	}
	begins := m.State == MachineRegistered && m.stage() == bus.StageRegistered
	m.Daemon = ev.daemon
	if len(ev.addresses) > 0 {
		m.Addresses = slices.Clone(ev.addresses)
	}
	switch ev.daemon.State {
	case bus.DaemonFailed:
		return m.fail("BuildKit: "+orText(ev.daemon.Reason, "it has ended"), false, at)
	case bus.DaemonReady:
		if m.State == MachineRegistered && len(m.Addresses) > 0 {
			m.enter(MachineServing, "", at)
			m.IdleSince = at.now
		}
	case bus.DaemonStarting:
		if begins {
			return m.tell(at, "BuildKit starts")
		}
	case bus.DaemonStopped:
	}
	return nil
}

// taken gives a build the right to this machine, unless the machine is on its way out.
func (m *Machine) taken(ev machineTaken, at moment) ([]effect, error) {
	if _, ok := m.Leases[ev.id]; ok {
		return nil, nil
	}
	if !m.accepts() {
		return nil, bus.Faultf(bus.CodeConflict, "machine %s is %s", m.ID, m.State)
	}
	if m.Leases == nil {
		m.Leases = map[bus.LeaseID]Lease{}
	}
	m.Leases[ev.id] = ev.lease
	switch m.State {
	case MachineServing:
		return []effect{hint{m.Connection, m.ID, ev.id}}, nil
	case MachineRegistered:
		return []effect{m.tellOne(ev.id, at, "the machine is getting ready"), hint{m.Connection, m.ID, ev.id}}, nil
	case MachineLaunching, MachineBooting, MachineStarting:
		return []effect{m.tellOne(ev.id, at, "the machine is on its way")}, nil
	case MachineWanted:
		return []effect{fill{slotKey(m.Project, m.Architecture)}}, nil
	case MachineStopped:
		return m.start(at), nil
	case MachineDraining, MachineStopping, MachineFailed, MachineDeleting, MachineDeleted:
	}
	return nil, nil
}

// certified commits a set of certificates. It comes to nothing when another set was committed first.
func (m *Machine) certified(ev machineCertified) []effect {
	l, ok := m.Leases[ev.lease]
	if !ok || ev.generation != l.Generation+1 {
		return nil
	}
	l.Generation, l.MachineCSR, l.CA = ev.generation, ev.csr, ev.ca
	l.ServerCertificate, l.ClientCertificate, l.ClientSPKI = ev.server, ev.client, ev.clientSPKI
	m.Leases[ev.lease] = l
	if ev.generation == 1 {
		return nil
	}
	return []effect{unserve{l.Build, ev.lease, ev.generation}}
}
