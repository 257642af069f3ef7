package apiserver

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"

	"github.com/depotctl/depot/bus"
)

// challengeMachine gives a machine fresh bytes to sign.
func (s *Server) challengeMachine(ctx context.Context, from bus.Caller, _ bus.Empty) (bus.MachineChallenge, error) {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand
	challenge := base64.StdEncoding.EncodeToString(b[:])
	_, _, err := s.stepMachineBy(ctx, from.Machine, func(m Machine) ([]machineEvent, error) {
		return []machineEvent{machineChallenged{from.Attempt, challenge}}, m.speaksFor(from)
	})
	return bus.MachineChallenge{Challenge: challenge}, machineFault(err)
}

// registerMachine is step 4. One write uses up nonce and challenge and binds the key; only then there is a credential.
func (s *Server) registerMachine(ctx context.Context, from bus.Caller, r bus.MachineRegister) (bus.MachineCredential, error) {
	c, err := recall(ctx, s.mirrors.connections, s.store.connections, string(from.Connection))
	if err != nil {
		return bus.MachineCredential{}, err
	}
	demanded, ok := attestors[orText(c.Attestor, AttestorNonce)]
	if !ok {
		return bus.MachineCredential{}, bus.Faultf(bus.CodeUnavailable, "connection %s demands the attestor %q, which this API server does not have", c.Name, c.Attestor)
	}
	m, _, err := s.stepMachineBy(ctx, from.Machine, func(m Machine) ([]machineEvent, error) {
		return []machineEvent{machineRegistered{from.Role, demanded, r}}, m.speaksFor(from)
	})
	if err != nil {
		s.log.WarnContext(ctx, "registration refused", "machine", from.Machine, "attempt", from.Attempt, "err", err)
		return bus.MachineCredential{}, machineFault(err)
	}
	return s.credential(from, m)
}

func (s *Server) renewMachine(ctx context.Context, from bus.Caller, _ bus.Empty) (bus.MachineCredential, error) {
	m, _, err := s.store.machines.Get(ctx, string(from.Machine))
	if err == nil {
		err = m.speaksFor(from)
	}
	if err == nil {
		err = m.mayRegister(from.Attempt)
	}
	if err != nil {
		return bus.MachineCredential{}, machineFault(err)
	}
	return s.credential(from, m)
}

func (s *Server) credential(from bus.Caller, m Machine) (bus.MachineCredential, error) {
	return s.control.MintMachine(bus.Grant{
		Role: bus.RoleMachine, Account: from.Account, Organization: m.Organization, Connection: m.Connection, Machine: m.ID, Attempt: m.Attempt,
	}, m.UserKey, s.timeouts.Credential)
}

// instructMachine takes a machine's word on what it does, and answers with all that it shall do. Certificates for
// leases that it sends requests for are made and committed on the way.
func (s *Server) instructMachine(ctx context.Context, from bus.Caller, in bus.Instruct) (bus.Instruction, error) {
	m, rev, err := s.stepMachineBy(ctx, from.Machine, func(m Machine) ([]machineEvent, error) {
		if err := m.speaksFor(from); err != nil {
			return nil, err
		}
		events := []machineEvent{machineReported{in.Daemon, in.Addresses}}
		for _, r := range in.CSRs {
			if l, ok := m.Leases[r.Lease]; !ok || l.MachineCSR == r.CSR || m.desire() == bus.DesireStop {
				continue // ended meanwhile, or asked again
			}
			ev, err := certify(m, r.Lease, r.CSR, s.moment().now)
			if err != nil {
				return nil, bus.Faultf(bus.CodeInvalid, "%v", err)
			}
			events = append(events, ev)
		}
		return events, nil
	})
	if err != nil {
		return bus.Instruction{}, machineFault(err)
	}
	s.noteServing(ctx, m, in.Serving)
	instruction := m.instruction()
	instruction.Revision = uint64(rev)
	return instruction, nil
}

// noteServing tells builds that their machine has installed their leases' roots. The machine says so each time; what
// this replica knows to be noted is not noted again.
func (s *Server) noteServing(ctx context.Context, m Machine, refs []bus.LeaseRef) {
	if !m.in(MachineServing, MachineDraining) {
		return
	}
	for _, ref := range refs {
		l, ok := m.Leases[ref.Lease]
		if !ok || ref.Generation == 0 || ref.Generation != l.Generation {
			continue
		}
		if b, ok := s.mirrors.builds.get(string(l.Build)); ok {
			if noted := b.lease(ref.Lease); noted != nil && noted.Serving >= ref.Generation {
				continue
			}
		}
		if _, err := s.stepBuild(ctx, l.Build, buildServed{ref.Lease, m.ID, ref.Generation}); err != nil {
			s.log.WarnContext(ctx, "lease not noted as serving", "build", l.Build, "machine", m.ID, "err", err)
		}
	}
}

// machineIsLive keeps signs of life, and sees that a client has connected.
func (s *Server) machineIsLive(ctx context.Context, from bus.Caller, r bus.MachineReport) {
	m, err := recall(ctx, s.mirrors.machines, s.store.machines, string(from.Machine))
	if err != nil || m.speaksFor(from) != nil {
		return
	}
	for _, id := range s.pulses.machine(m.ID, r) {
		l, ok := m.Leases[id]
		if !ok {
			continue
		}
		if b, ok := s.mirrors.builds.get(string(l.Build)); ok && b.State != bus.BuildReady {
			continue
		}
		if _, err := s.stepBuild(ctx, l.Build, buildConnected{id}); err != nil {
			s.log.WarnContext(ctx, "connection not noted", "build", l.Build, "err", err)
		}
	}
}

func (s *Server) sayGoodbye(ctx context.Context, from bus.Caller, g bus.MachineGoodbye) (bus.Empty, error) {
	_, _, err := s.stepMachineBy(ctx, from.Machine, func(m Machine) ([]machineEvent, error) {
		return []machineEvent{machineGoodbye{g.Reason}}, m.speaksFor(from)
	})
	return bus.Empty{}, machineFault(err)
}

// speaksFor refuses a caller that is not this machine in its present attempt.
func (m Machine) speaksFor(from bus.Caller) error {
	if m.ID != from.Machine || m.Connection != from.Connection || m.Attempt != from.Attempt {
		return bus.Faultf(bus.CodeForbidden, "machine %s is at attempt %d, not %d", from.Machine, m.Attempt, from.Attempt)
	}
	return nil
}

// machineFault is what a machine without a record is told.
func machineFault(err error) error {
	if errors.Is(err, bus.ErrNotFound) {
		return bus.Faultf(bus.CodeNotFound, "this machine has no record")
	}
	return err
}
