package apiserver

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
)

// createBuild is step 1 and, where it can be, step 2 of a build: the queue is only the net below it.
func (s *Server) createBuild(ctx context.Context, from bus.Caller, m bus.BuildCreate) (bus.BuildView, error) {
	if _, err := certs.SPKI(m.CSR); err != nil {
		return bus.BuildView{}, bus.Faultf(bus.CodeInvalid, "certificate request: %v", err)
	}
	p, err := s.projectOf(ctx, from, m.Project)
	if err != nil {
		return bus.BuildView{}, err
	}
	if p.Connection == "" {
		return bus.BuildView{}, bus.Faultf(bus.CodeInvalid, "project %s has no connection, so there is nowhere to build", p.Name).
			WithHint("make a project with one: depotctl projects create --connection NAME")
	}
	c, err := recall(ctx, s.mirrors.connections, s.store.connections, string(p.Connection))
	if err == nil && len(c.Architectures) == 0 {
		c, _, err = s.store.connections.Get(ctx, string(p.Connection)) // its agent may have spoken just now
	}
	if err != nil {
		return bus.BuildView{}, fmt.Errorf("read connection %s: %w", p.Connection, err)
	}
	archs, err := p.choose(m.Architectures, c)
	if err != nil {
		return bus.BuildView{}, err
	}
	b, err := s.admit(ctx, newBuild(m, from, p, archs, s.moment()))
	if err != nil {
		return bus.BuildView{}, err
	}
	return s.view(ctx, b)
}

// admit makes a build durable and decides on it. Where a machine runs already, the lease on it is taken while the
// build is written: a lease without a build is found and taken back.
func (s *Server) admit(ctx context.Context, b Build) (Build, error) {
	b = s.guess(b)
	var g errgroup.Group
	untaken := make([]bool, len(b.Leases))
	for i, l := range b.Leases {
		if untaken[i] = l.Machine == ""; !untaken[i] {
			g.Go(func() error {
				_, _, err := s.stepMachine(ctx, l.Machine, machineTaken{l.ID, newLease(b, s.moment())})
				untaken[i] = err != nil
				return nil
			})
		}
	}
	_, err := s.store.builds.Create(ctx, string(b.ID), b)
	_ = g.Wait() // never fails
	if errors.Is(err, bus.ErrConflict) {
		return s.admitAgain(ctx, b)
	}
	if err != nil {
		return b, fmt.Errorf("create build %s: %w", b.ID, err)
	}
	s.log.InfoContext(ctx, "build is asked for", "build", b.ID, "org", b.Organization, "project", b.Project)
	s.tell(b.event(s.moment(), nil, bus.StageQueued, "build is asked for"))
	s.outbox.put(string(b.ID), func(ctx context.Context) error {
		return bus.BuildRequests.Publish(ctx, s.control, "", bus.BuildRef{Build: b.ID}, string(b.ID), string(b.ID))
	})
	for _, missing := range untaken {
		if missing {
			return s.placeOrLater(ctx, b), nil
		}
	}
	return b, nil
}

// guess places the build on the machines that are in their slots as far as this replica knows. If one of them takes no
// leases, that is found out when the lease is taken.
func (s *Server) guess(b Build) Build {
	for _, l := range b.Leases {
		slot, _ := s.mirrors.slots.get(slotKey(b.Project, l.Architecture))
		m, ok := s.mirrors.machines.get(string(slot.Machine))
		if !ok || !m.accepts() {
			continue
		}
		if next, _, err := b.step(buildPlaced{l.ID, m.ID}, s.moment()); err == nil {
			b = next
		}
	}
	return b
}

// admitAgain answers a request that was made before: with the build that it made.
func (s *Server) admitAgain(ctx context.Context, asked Build) (Build, error) {
	b, _, err := s.store.builds.Get(ctx, string(asked.ID))
	if err != nil {
		return b, fmt.Errorf("read build %s: %w", asked.ID, err)
	}
	for _, l := range asked.Leases {
		if kept := b.lease(l.ID); l.Machine != "" && (b.State.Ended() || kept == nil || kept.Machine != l.Machine) {
			s.perform(ctx, []effect{release{l.Machine, l.ID}})
		}
	}
	if b.Organization != asked.Organization || b.Project != asked.Project || b.ClientCSR != asked.ClientCSR {
		return b, bus.Faultf(bus.CodeConflict, "build %s exists already", asked.ID).WithHint("make a new build id for a new build")
	}
	return s.placeOrLater(ctx, b), nil
}

// placeOrLater decides now if it can. The build is durable, so whatever goes wrong here is made good by the scan.
func (s *Server) placeOrLater(ctx context.Context, b Build) Build {
	placed, err := s.placeBuild(ctx, b)
	if err != nil {
		s.log.WarnContext(ctx, "build is decided on later", "build", b.ID, "err", err)
		return b
	}
	return placed
}

// decideAgain is the net below createBuild: it finds a build whose API server died before it had decided.
func (s *Server) decideAgain(ctx context.Context, d bus.Delivery[bus.BuildRef]) error {
	b, _, err := s.store.builds.Get(ctx, string(d.Message.Build))
	if errors.Is(err, bus.ErrNotFound) {
		return nil // it was forgotten long after its end
	}
	if err != nil {
		return fmt.Errorf("read build %s: %w", d.Message.Build, err)
	}
	if b.State.Ended() || b.State == bus.BuildReady || b.State == bus.BuildRunning {
		return nil
	}
	if age := s.moment().now.Sub(b.CreatedAt); age < s.timeouts.Settle {
		return bus.Postpone(s.timeouts.Settle - age)
	}
	_, err = s.placeBuild(ctx, b)
	return err
}

// getBuild is step 5: it answers with the client's certificates once all leases serve.
func (s *Server) getBuild(ctx context.Context, from bus.Caller, m bus.BuildRef) (bus.BuildView, error) {
	b, err := s.buildOf(ctx, from, m.Build)
	if err != nil {
		return bus.BuildView{}, err
	}
	s.pulses.build(b.ID)
	return s.view(ctx, b)
}

func (s *Server) replayBuild(ctx context.Context, from bus.Caller, m bus.BuildRef) (bus.BuildEvents, error) {
	b, err := s.buildOf(ctx, from, m.Build)
	if err != nil {
		return bus.BuildEvents{}, err
	}
	events, err := bus.BuildStory.Replay(ctx, s.control, from.Account, string(b.Project), string(b.ID))
	if err != nil {
		return bus.BuildEvents{}, fmt.Errorf("replay build %s: %w", b.ID, err)
	}
	return bus.BuildEvents{Events: events}, nil
}

func (s *Server) finishBuild(ctx context.Context, from bus.Caller, m bus.BuildFinish) (bus.BuildView, error) {
	return s.endBuild(ctx, from, m.Build, buildFinished{m.State, m.Reason})
}

func (s *Server) cancelBuild(ctx context.Context, from bus.Caller, m bus.BuildRef) (bus.BuildView, error) {
	return s.endBuild(ctx, from, m.Build, buildCanceled{"canceled by token " + string(from.Token)})
}

// endBuild answers once the end is durable; the leases are given back right after.
func (s *Server) endBuild(ctx context.Context, from bus.Caller, id bus.BuildID, ev buildEvent) (bus.BuildView, error) {
	b, err := s.buildOf(ctx, from, id)
	if err != nil {
		return bus.BuildView{}, err
	}
	b, effects, err := s.writeBuild(ctx, b.ID, ev)
	if err != nil {
		return bus.BuildView{}, err
	}
	later := func(ctx context.Context) error {
		s.perform(ctx, effects)
		return nil
	}
	if !s.outbox.put(string(id), later) {
		s.perform(ctx, effects)
	}
	return s.view(ctx, b)
}

func (s *Server) buildIsLive(ctx context.Context, from bus.Caller, m bus.BuildLive) {
	if b, err := recall(ctx, s.mirrors.builds, s.store.builds, string(m.Build)); err == nil && mayBuild(from, b) {
		s.pulses.build(b.ID)
	}
}

// buildOf returns a build that the caller may know of. Any other does not exist for it.
func (s *Server) buildOf(ctx context.Context, from bus.Caller, id bus.BuildID) (Build, error) {
	b, _, err := s.store.builds.Get(ctx, string(id))
	if errors.Is(err, bus.ErrNotFound) || err == nil && !mayBuild(from, b) {
		return Build{}, bus.Faultf(bus.CodeNotFound, "build %s does not exist", id).WithHint("list the newest with: depotctl list builds")
	}
	if err != nil {
		return Build{}, fmt.Errorf("read build %s: %w", id, err)
	}
	return b, nil
}

func mayBuild(from bus.Caller, b Build) bool {
	return b.Organization == from.Organization && (from.Role != bus.RoleCI || b.Project == from.Project)
}

// projectOf returns a project that the caller may use.
func (s *Server) projectOf(ctx context.Context, from bus.Caller, ref string) (Project, error) {
	if from.Role == bus.RoleCI && ref == "" {
		ref = string(from.Project)
	}
	p, err := s.project(ctx, from.Organization, ref)
	if err == nil && from.Role == bus.RoleCI && p.ID != from.Project {
		return Project{}, noProject(ref)
	}
	return p, err
}

// recall reads what hardly ever changes from memory, and from the store if it is not there.
func recall[T any](ctx context.Context, m *mirror[T], b *bus.Bucket[T], key string) (T, error) {
	if v, ok := m.get(key); ok {
		return v, nil
	}
	v, _, err := b.Get(ctx, key)
	return v, err
}
