package apiserver

import (
	"context"
	"errors"
	"fmt"

	"github.com/depotctl/depot/bus"
)

// view is a build as its owner may see it. Certificates are in it only while the build lives and all leases serve.
func (s *Server) view(ctx context.Context, b Build) (bus.BuildView, error) {
	v := b.view()
	if b.State.Ended() {
		return v, nil
	}
	for i, l := range b.Leases {
		m, err := s.machineOf(ctx, b, l)
		if err != nil {
			return v, err
		}
		describe(&v.Leases[i], l, m, s.pulses.agentIsHere(m.Connection))
		if b.State == bus.BuildReady && v.Leases[i].Certificate == "" && !l.Lost {
			v.State = bus.BuildWaiting // its machine makes a new key just now
		}
	}
	return v, nil
}

// machineOf reads the truth where certificates hang on it, and from memory while there are none.
func (s *Server) machineOf(ctx context.Context, b Build, l BuildLease) (Machine, error) {
	if l.Machine == "" {
		return Machine{}, nil
	}
	if b.State != bus.BuildReady && b.State != bus.BuildRunning {
		m, _ := s.mirrors.machines.get(string(l.Machine))
		return m, nil
	}
	m, _, err := s.store.machines.Get(ctx, string(l.Machine))
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return m, fmt.Errorf("read machine %s: %w", l.Machine, err)
	}
	return m, nil
}

// view is the build alone, without what its machines would add.
func (b Build) view() bus.BuildView {
	v := bus.BuildView{
		Build: b.ID, Organization: b.Organization, Project: b.Project, ProjectName: b.ProjectName, State: b.State, Reason: b.Reason,
		CreatedAt: b.CreatedAt, ReadyAt: b.ReadyAt, EndedAt: b.EndedAt, Deadline: b.Deadline, Leases: make([]bus.LeaseView, len(b.Leases)),
	}
	for i, l := range b.Leases {
		v.Leases[i] = bus.LeaseView{
			Lease: l.ID, Architecture: l.Architecture, Attempt: l.Attempt, Machine: l.Machine, Stage: bus.StageQueued, Reason: l.Reason, Addresses: []string{},
		}
		if l.Serving > 0 && !l.Lost {
			v.Leases[i].Stage = bus.StageServing
		}
	}
	return v
}

// describe adds what the machine knows of the lease.
func describe(v *bus.LeaseView, l BuildLease, m Machine, agentIsHere bool) {
	if l.Lost || l.Machine == "" {
		return
	}
	held, ok := m.Leases[l.ID]
	if l.Serving == 0 || !ok || held.Generation != l.Serving {
		v.Stage = m.stage()
		if v.Reason == "" {
			v.Reason = m.waitsFor(agentIsHere)
		}
		return
	}
	v.Addresses, v.ServerName, v.CA, v.Certificate = m.Addresses, string(l.ID), held.CA, held.ClientCertificate
}

// waitsFor says what keeps a machine in a state in which it should not be for long.
func (m Machine) waitsFor(agentIsHere bool) string {
	switch m.State {
	case MachineWanted, MachineLaunching, MachineStarting:
		if !agentIsHere {
			return "no cloud-agent of the connection was heard lately"
		}
		if m.State == MachineWanted {
			return "waits for its cache volume"
		}
	case MachineBooting, MachineRegistered, MachineServing, MachineDraining, MachineStopping, MachineStopped, MachineFailed, MachineDeleting, MachineDeleted:
	}
	return m.Reason
}
