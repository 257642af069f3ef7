package apiserver

import (
	"context"
	"errors"
	"fmt"

	"github.com/depotctl/depot/bus"
)

// reportIntent is the last word before a launch: an agent that is refused here must not launch.
func (s *Server) reportIntent(ctx context.Context, from bus.Caller, m bus.LaunchIntent) (bus.Empty, error) {
	if err := s.ownsMachine(ctx, from, m.Machine); err != nil {
		return bus.Empty{}, err
	}
	_, _, err := s.stepMachine(ctx, m.Machine, machineIntended{m.Attempt, m.NonceHash, m.Offering})
	return bus.Empty{}, err
}

func (s *Server) reportResult(ctx context.Context, from bus.Caller, m bus.ActionResult) (bus.Empty, error) {
	if m.Fault != nil {
		s.log.WarnContext(ctx, "action was refused", "action", m.Action, "connection", from.Connection, "machine", m.Machine, "volume", m.Volume, "err", m.Fault)
	}
	switch m.Kind {
	case bus.CreateMachine, bus.StartMachine, bus.StopMachine, bus.DeleteMachine:
		if err := s.ownsMachine(ctx, from, m.Machine); err != nil {
			return bus.Empty{}, err
		}
		_, _, err := s.stepMachine(ctx, m.Machine, machineDone{m.Kind, m.Attempt, m.Fault, m.At})
		return bus.Empty{}, err
	case bus.CreateVolume, bus.DeleteVolume, bus.AttachVolume, bus.DetachVolume:
		v, _, err := s.store.volumes.Get(ctx, string(m.Volume))
		if errors.Is(err, bus.ErrNotFound) || err == nil && v.Connection != from.Connection {
			return bus.Empty{}, bus.Faultf(bus.CodeNotFound, "volume %s does not exist", m.Volume)
		}
		if err == nil {
			err = s.stepVolume(ctx, m.Volume, volumeDone{m.Kind, m.Fault})
		}
		return bus.Empty{}, err
	}
	return bus.Empty{}, nil
}

// reportInventory compares what the cloud has with what the records say.
func (s *Server) reportInventory(ctx context.Context, from bus.Caller, inv bus.Inventory) (bus.Empty, error) {
	s.pulses.agent(from.Connection)
	if _, _, err := change(ctx, s.store.connections, string(from.Connection), func(c Connection) (Connection, error) {
		return c.described(inv), nil
	}); err != nil {
		return bus.Empty{}, fmt.Errorf("describe connection: %w", err)
	}
	seen := map[bus.MachineID]bool{}
	for _, status := range inv.Machines {
		seen[status.Machine] = true
		s.observe(ctx, from, status)
	}
	for m := range s.mirrors.machines.all() {
		if m.Connection == from.Connection && !seen[m.ID] {
			s.stepIfChanged(ctx, m, machineMissing{inv.At})
		}
	}
	for _, status := range inv.Volumes {
		v, ok := s.mirrors.volumes.get(string(status.Volume))
		if ok && v.Connection == from.Connection && v.State == VolumeCreating {
			if err := s.stepVolume(ctx, v.ID, volumeSeen{status}); err != nil {
				s.log.WarnContext(ctx, "inventory not applied", "volume", v.ID, "err", err)
			}
		}
	}
	return bus.Empty{}, nil
}

// observe compares one machine. One without a record is left alone: the record may be what is missing.
func (s *Server) observe(ctx context.Context, from bus.Caller, status bus.MachineStatus) {
	m, err := recall(ctx, s.mirrors.machines, s.store.machines, string(status.Machine))
	if errors.Is(err, bus.ErrNotFound) || err == nil && m.Connection != from.Connection {
		s.log.WarnContext(ctx, "the cloud has a machine without a record; it is left alone", "machine", status.Machine, "connection", from.Connection, "state", status.State)
		return
	}
	if err != nil {
		s.log.WarnContext(ctx, "inventory not applied", "machine", status.Machine, "err", err)
		return
	}
	s.stepIfChanged(ctx, m, machineObserved{status})
}

// stepIfChanged steps a machine, but not one at rest that would not change as far as this replica knows: most of most
// inventories is no news.
func (s *Server) stepIfChanged(ctx context.Context, m Machine, ev machineEvent) {
	rests := m.in(MachineBooting, MachineRegistered, MachineServing, MachineDraining, MachineStopped)
	if m.State == MachineDeleted || rests && m.unchangedBy(ev, s.moment()) {
		return
	}
	if _, _, err := s.stepMachine(ctx, m.ID, ev); err != nil {
		s.log.WarnContext(ctx, "machine not stepped", "machine", m.ID, "event", ev.name(), "err", err)
	}
}

// ownsMachine refuses an agent whose connection the machine is not of. It says the same of a machine that does not exist.
func (s *Server) ownsMachine(ctx context.Context, from bus.Caller, id bus.MachineID) error {
	m, _, err := s.store.machines.Get(ctx, string(id))
	if errors.Is(err, bus.ErrNotFound) || err == nil && m.Connection != from.Connection {
		return bus.Faultf(bus.CodeNotFound, "machine %s does not exist", id)
	}
	if err != nil {
		return fmt.Errorf("read machine %s: %w", id, err)
	}
	return nil
}
