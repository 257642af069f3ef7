package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/depotctl/depot/bus"
)

// scanUntil compares all records with the clock and with each other, again and again. It finds by reading memory, and
// decides on the records; so several API servers may scan at once.
func (s *Server) scanUntil(ctx context.Context) error {
	last := time.Now()
	for {
		wait := time.NewTimer(s.scan/2 + rand.N(s.scan))
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-wait.C:
		}
		if time.Since(last) > 3*s.scan+5*time.Second || !s.hears(ctx) {
			s.pulses.deaf()
		}
		last = time.Now()
		s.scanOnce(ctx)
	}
}

// hears proves that this replica is connected, by asking for a record that does not exist.
func (s *Server) hears(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, _, err := s.store.names.Get(ctx, "nobody")
	return errors.Is(err, bus.ErrNotFound)
}

func (s *Server) scanOnce(ctx context.Context) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	do := func(what, id string, f func() error) {
		g.Go(func() error {
			if err := unlessNotFound(f()); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "scan is not done with a record", "record", what+" "+id, "err", err)
			}
			return nil
		})
	}
	at := s.moment()
	for b := range s.mirrors.builds.all() {
		if f := s.dueBuild(ctx, b, at); f != nil {
			do("build", string(b.ID), f)
		}
	}
	for m := range s.mirrors.machines.all() {
		if f := s.dueMachine(ctx, m, at); f != nil {
			do("machine", string(m.ID), f)
		}
	}
	for v := range s.mirrors.volumes.all() {
		if f := s.dueVolume(ctx, v, at); f != nil {
			do("volume", string(v.ID), f)
		}
	}
	for t := range s.mirrors.tokens.all() {
		if f := s.dueToken(ctx, t, at); f != nil {
			do("token", string(t.ID), f)
		}
	}
	_ = g.Wait() // never fails
	s.pulses.forget()
}

// dueBuild returns what is to be done about a build, or nil.
func (s *Server) dueBuild(ctx context.Context, b Build, at moment) func() error {
	if b.State.Ended() {
		if at.past(b.EndedAt, at.Keep) {
			return func() error {
				return purge(ctx, s.store.builds, string(b.ID), func(b Build) bool { return b.State.Ended() })
			}
		}
		return nil
	}
	if !at.now.Before(b.deadline()) {
		return func() error {
			_, err := s.stepBuild(ctx, b.ID, buildTick{s.stageOf(b)})
			return err
		}
	}
	if t, ok := s.mirrors.tokens.get(string(b.Token)); ok && !t.RevokedAt.IsZero() {
		return func() error {
			_, err := s.stepBuild(ctx, b.ID, buildCanceled{"the token that started it was revoked"})
			return err
		}
	}
	if silent := s.pulses.silence(b, at.now.Sub(b.CreatedAt)); silent > at.Silence {
		return func() error {
			_, err := s.stepBuild(ctx, b.ID, buildCanceled{"neither its client nor its connections gave a sign of life for " + at.Silence.String()})
			return err
		}
	}
	if at.past(b.CreatedAt, at.Settle) && s.needsPlace(b, at) {
		return func() error {
			fresh, _, err := s.store.builds.Get(ctx, string(b.ID))
			if err == nil {
				_, err = s.placeBuild(ctx, fresh)
			}
			return err
		}
	}
	return nil
}

// needsPlace reports whether a lease of the build is not where it should be, as far as this replica knows.
func (s *Server) needsPlace(b Build, at moment) bool {
	for _, l := range b.Leases {
		if l.Lost || at.now.Before(l.NotBefore) {
			continue
		}
		m, ok := s.mirrors.machines.get(string(l.Machine))
		if _, held := m.Leases[l.ID]; !ok || !held || !m.alive() {
			return true
		}
	}
	return false
}

// stageOf says where the acquisition of a build stands, for people.
func (s *Server) stageOf(b Build) string {
	for _, l := range b.Leases {
		if l.Serving > 0 {
			continue
		}
		m, _ := s.mirrors.machines.get(string(l.Machine))
		text := fmt.Sprintf("%s is in stage %q", l.Architecture, m.stage())
		if why := orText(l.Reason, m.waitsFor(s.pulses.agentIsHere(m.Connection))); why != "" {
			text += ": " + why
		}
		return text
	}
	return ""
}

// dueMachine returns what is to be done about a machine, or nil.
func (s *Server) dueMachine(ctx context.Context, m Machine, at moment) func() error {
	if m.State == MachineDeleted {
		slot, _ := s.mirrors.slots.get(slotKey(m.Project, m.Architecture))
		if at.past(m.Since, at.Keep) && slot.Machine != m.ID {
			return func() error {
				return purge(ctx, s.store.machines, string(m.ID), func(m Machine) bool { return m.State == MachineDeleted })
			}
		}
		return nil
	}
	if !at.past(m.Since, at.Settle) && !m.in(MachineServing, MachineRegistered) {
		return nil // whoever brought it here is still at work
	}
	return func() error {
		if m.State == MachineWanted {
			if err := s.fillSlot(ctx, slotKey(m.Project, m.Architecture)); err != nil {
				return err
			}
		}
		for id, l := range m.Leases {
			if err := s.checkLease(ctx, m, id, l, at); err != nil {
				return err
			}
		}
		next, effects, err := m.step(machineTick{}, at)
		if err != nil || len(effects) == 0 && reflect.DeepEqual(m, next) {
			return err
		}
		_, _, err = s.stepMachine(ctx, m.ID, machineTick{})
		return err
	}
}

// checkLease takes back a lease that belongs to no build: one that ended while its API server died, or was never made.
func (s *Server) checkLease(ctx context.Context, m Machine, id bus.LeaseID, l Lease, at moment) error {
	if !at.past(l.TakenAt, at.Grace) {
		return nil
	}
	if b, ok := s.mirrors.builds.get(string(l.Build)); ok && b.holds(id) {
		return nil
	}
	b, _, err := s.store.builds.Get(ctx, string(l.Build))
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return fmt.Errorf("read build %s: %w", l.Build, err)
	}
	if held := b.lease(id); err == nil && b.holds(id) && held.Machine == m.ID {
		return nil
	}
	_, _, err = s.stepMachine(ctx, m.ID, machineReleased{id})
	return err
}

// dueVolume returns what is to be done about a volume, or nil.
func (s *Server) dueVolume(ctx context.Context, v Volume, at moment) func() error {
	if v.State == VolumeDeleted {
		slot, _ := s.mirrors.slots.get(slotKey(v.Project, v.Architecture))
		if at.past(v.Since, at.Keep) && slot.Volume != v.ID {
			return func() error {
				return purge(ctx, s.store.volumes, string(v.ID), func(v Volume) bool { return v.State == VolumeDeleted })
			}
		}
		return nil
	}
	if !at.past(v.Since, at.Settle) {
		return nil
	}
	if m, ok := s.mirrors.machines.get(string(v.Machine)); v.State == VolumeAttached && ok && m.State == MachineDeleted {
		return func() error {
			return s.stepVolume(ctx, v.ID, volumeFreed{m.ID})
		}
	}
	next, effects, err := v.step(volumeTick{}, at)
	if err != nil || len(effects) == 0 && reflect.DeepEqual(v, next) {
		return nil
	}
	return func() error {
		return s.stepVolume(ctx, v.ID, volumeTick{})
	}
}

// dueToken cuts the sessions of a revoked token again if whoever revoked it died before they were surely cut.
func (s *Server) dueToken(ctx context.Context, t Token, at moment) func() error {
	if t.RevokedAt.IsZero() || !t.CutAt.IsZero() {
		return nil
	}
	noted, mine := s.cuts.noted(t.ID)
	switch {
	case mine && time.Since(noted) > 5*time.Second: // the bus repeats a cut after 2 s
		return func() error {
			_, _, err := change(ctx, s.store.tokens, string(t.ID), func(t Token) (Token, error) {
				t.CutAt = s.moment().now
				return t, nil
			})
			return err
		}
	case !mine && at.past(t.RevokedAt, 15*time.Second):
		return func() error { return s.cut(ctx, t) }
	}
	return nil
}

// purge forgets a record that has not changed since it was found to be over.
func purge[T any](ctx context.Context, b *bus.Bucket[T], key string, over func(T) bool) error {
	v, rev, err := b.Get(ctx, key)
	if err != nil || !over(v) {
		return err
	}
	return b.Delete(ctx, key, rev)
}

// unchangedBy reports whether the event would change nothing and do nothing.
func (m Machine) unchangedBy(ev machineEvent, at moment) bool {
	next, effects, err := m.step(ev, at)
	return err == nil && len(effects) == 0 && reflect.DeepEqual(m, next)
}
