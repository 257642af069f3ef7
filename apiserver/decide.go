package apiserver

import (
	"context"
	"errors"
	"fmt"

	"github.com/depotctl/depot/bus"
)

// stepBuild, stepMachine and stepVolume are the loop of everything here: load, step, compare-and-set, then effects.

func (s *Server) stepBuild(ctx context.Context, id bus.BuildID, ev buildEvent) (Build, error) {
	b, effects, err := s.writeBuild(ctx, id, ev)
	if err == nil {
		s.perform(ctx, effects)
	}
	return b, err
}

// writeBuild leaves the effects to the caller.
func (s *Server) writeBuild(ctx context.Context, id bus.BuildID, ev buildEvent) (Build, []effect, error) {
	var effects []effect
	var before bus.BuildState
	b, _, err := change(ctx, s.store.builds, string(id), func(b Build) (_ Build, err error) {
		before = b.State
		b, effects, err = b.step(ev, s.moment())
		return b, err
	})
	if err != nil {
		return b, nil, fmt.Errorf("build %s: %s: %w", id, ev.name(), err)
	}
	if b.State != before {
		s.log.InfoContext(ctx, "build has a new state", "build", id, "project", b.Project, "state", b.State, "reason", b.Reason)
	}
	return b, effects, nil
}

func (s *Server) stepMachine(ctx context.Context, id bus.MachineID, events ...machineEvent) (Machine, bus.Revision, error) {
	return s.stepMachineBy(ctx, id, func(Machine) ([]machineEvent, error) { return events, nil })
}

// stepMachineBy steps a machine by events that depend on its record, all in one write.
func (s *Server) stepMachineBy(ctx context.Context, id bus.MachineID, what func(Machine) ([]machineEvent, error)) (Machine, bus.Revision, error) {
	var effects []effect
	var before MachineState
	m, rev, err := change(ctx, s.store.machines, string(id), func(m Machine) (Machine, error) {
		before, effects = m.State, nil
		events, err := what(m)
		if err != nil {
			return m, err
		}
		for _, ev := range events {
			next, more, err := m.step(ev, s.moment())
			if err != nil {
				return m, fmt.Errorf("%s: %w", ev.name(), err)
			}
			m, effects = next, append(effects, more...)
		}
		return m, nil
	})
	if err != nil {
		return m, rev, fmt.Errorf("machine %s: %w", id, err)
	}
	if m.State != before {
		s.log.InfoContext(ctx, "machine has a new state", "machine", id, "project", m.Project, "state", m.State, "attempt", m.Attempt, "reason", m.Reason)
	}
	s.perform(ctx, effects)
	return m, rev, nil
}

func (s *Server) stepVolume(ctx context.Context, id bus.VolumeID, ev volumeEvent) error {
	var effects []effect
	_, _, err := change(ctx, s.store.volumes, string(id), func(v Volume) (_ Volume, err error) {
		v, effects, err = v.step(ev, s.moment())
		return v, err
	})
	if err != nil {
		return fmt.Errorf("volume %s: %s: %w", id, ev.name(), err)
	}
	s.perform(ctx, effects)
	return nil
}

// placeBuild brings every lease of a waiting build onto a machine. It may be called at any time, by anybody.
func (s *Server) placeBuild(ctx context.Context, b Build) (Build, error) {
	for i := 0; i < len(b.Leases) && !b.State.Ended(); i++ {
		l := b.Leases[i]
		if l.Lost || s.moment().now.Before(l.NotBefore) {
			continue
		}
		var err error
		if l.Machine == "" {
			machine, err := s.machineFor(ctx, b, l.Architecture)
			if err != nil {
				return b, err
			}
			if b, err = s.stepBuild(ctx, b.ID, buildPlaced{l.ID, machine}); err != nil {
				return b, err
			}
			if placed := b.lease(l.ID); placed == nil {
				continue // it has gone on to another attempt
			} else {
				l = *placed
			}
		}
		if b, err = s.take(ctx, b, l); err != nil {
			return b, err
		}
	}
	return b, nil
}

// take takes the lease on its machine while the build waits. Later a lease that is not there was lost.
func (s *Server) take(ctx context.Context, b Build, l BuildLease) (Build, error) {
	if b.State.Ended() {
		return b, nil
	}
	if b.State == bus.BuildReady || b.State == bus.BuildRunning {
		m, _, err := s.store.machines.Get(ctx, string(l.Machine))
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return b, fmt.Errorf("read machine %s: %w", l.Machine, err)
		}
		if _, holds := m.Leases[l.ID]; holds && m.alive() {
			return b, nil
		}
		return s.stepBuild(ctx, b.ID, buildLost{lease: l.ID, reason: orText(m.Reason, "machine "+string(l.Machine)+" is gone")})
	}
	_, _, err := s.stepMachine(ctx, l.Machine, machineTaken{l.ID, newLease(b, s.moment())})
	if errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.CodeConflict) {
		return s.stepBuild(ctx, b.ID, buildRefused{l.ID, l.Machine})
	}
	return b, err
}

// machineFor returns the machine of the project's slot, after putting a new one into it if the old accepts no leases.
func (s *Server) machineFor(ctx context.Context, b Build, arch bus.Arch) (bus.MachineID, error) {
	slot, err := s.slotFor(ctx, b, arch)
	for attempt := 0; err == nil; attempt++ {
		var m Machine
		m, err = ensure(ctx, s.store.machines, string(slot.Machine), func() Machine { return newMachine(slot.Machine, slot, s.moment()) })
		if err != nil {
			break
		}
		if m.accepts() {
			return m.ID, nil
		}
		if err = jitter(ctx, attempt); err != nil {
			break
		}
		slot, err = s.replace(ctx, slot)
	}
	return "", fmt.Errorf("find a machine for %s: %w", slotKey(b.Project, arch), err)
}

func (s *Server) slotFor(ctx context.Context, b Build, arch bus.Arch) (Slot, error) {
	key := slotKey(b.Project, arch)
	slot, _, err := s.store.slots.Get(ctx, key)
	if !errors.Is(err, bus.ErrNotFound) {
		return slot, err
	}
	p, _, err := s.store.projects.Get(ctx, string(b.Project))
	if err != nil {
		return Slot{}, fmt.Errorf("read project %s: %w", b.Project, err)
	}
	return ensure(ctx, s.store.slots, key, func() Slot {
		return Slot{
			Organization: p.Organization, Project: p.ID, Connection: p.Connection, Architecture: arch,
			Machine: bus.NewMachineID(), Volume: bus.NewVolumeID(), Generation: 1, Since: s.moment().now,
		}
	})
}

// replace puts a new machine into the slot in the place of the one seen there, with the same volume if that lives.
func (s *Server) replace(ctx context.Context, seen Slot) (Slot, error) {
	ev := slotReplaced{old: seen.Machine, next: bus.NewMachineID()}
	v, _, err := s.store.volumes.Get(ctx, string(seen.Volume))
	if err == nil && !v.usable() {
		ev.volume = bus.NewVolumeID()
	} else if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return seen, fmt.Errorf("read volume %s: %w", seen.Volume, err)
	}
	next, _, err := change(ctx, s.store.slots, seen.key(), func(slot Slot) (Slot, error) { return slot.step(ev, s.moment()), nil })
	return next, err
}

// fillSlot brings the machine that a slot wants forward until it is launched: volume made, volume held, action out.
func (s *Server) fillSlot(ctx context.Context, key string) error {
	slot, _, err := s.store.slots.Get(ctx, key)
	if errors.Is(err, bus.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read slot %s: %w", key, err)
	}
	m, _, err := s.store.machines.Get(ctx, string(slot.Machine))
	if errors.Is(err, bus.ErrNotFound) || err == nil && m.State != MachineWanted {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read machine %s: %w", slot.Machine, err)
	}
	v, err := ensure(ctx, s.store.volumes, string(m.Volume), func() Volume { return newVolume(m.Volume, slot, s.volumeGB, s.moment()) })
	if err != nil {
		return fmt.Errorf("make volume %s: %w", m.Volume, err)
	}
	switch {
	case !v.usable():
		_, _, err = s.stepMachine(ctx, m.ID, machineCondemned{"volume: " + v.Reason, v.Final})
	case v.State == VolumeWanted:
		err = s.stepVolume(ctx, v.ID, volumeAsked{})
	case v.State == VolumeAvailable:
		err = s.stepVolume(ctx, v.ID, volumeClaimed{m.ID})
	case v.State == VolumeAttached && v.Machine == m.ID:
		_, _, err = s.stepMachine(ctx, m.ID, machineVolume{v.ID})
	}
	return err
}
