package apiserver

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"github.com/depotctl/depot/bus"
)

// perform does what a step wants done. What fails is left to the scan, which derives it again from the record.
func (s *Server) perform(ctx context.Context, effects []effect) {
	for _, e := range effects {
		if s.crash != nil && s.crash(e) {
			return
		}
		if err := s.performOne(ctx, e); err != nil {
			s.log.WarnContext(ctx, "effect left to the next scan", "effect", fmt.Sprintf("%T", e), "err", err)
		}
	}
}

func (s *Server) performOne(ctx context.Context, e effect) error {
	switch e := e.(type) {
	case act:
		return s.act(ctx, e)
	case inquire:
		return s.inquire(ctx, e)
	case hint:
		return s.hint(ctx, e)
	case tell:
		s.tell(e)
	case lose:
		_, err := s.stepBuild(ctx, e.build, buildLost{e.lease, e.reason, e.final})
		return unlessNotFound(err)
	case unserve:
		_, err := s.stepBuild(ctx, e.build, buildUnserved{e.lease, e.generation})
		return unlessNotFound(err)
	case release:
		_, _, err := s.stepMachine(ctx, e.machine, machineReleased{e.lease})
		return unlessNotFound(err)
	case free:
		return unlessNotFound(s.stepVolume(ctx, e.volume, volumeFreed{e.machine}))
	case place:
		b, _, err := s.store.builds.Get(ctx, string(e.build))
		if err != nil {
			return unlessNotFound(err)
		}
		_, err = s.placeBuild(ctx, b)
		return err
	case fill:
		return s.fillSlot(ctx, e.slot)
	}
	return nil
}

func unlessNotFound(err error) error {
	if errors.Is(err, bus.ErrNotFound) {
		return nil
	}
	return err
}

// act publishes an action under its own id. The queue drops repeats for some minutes; this replica repeats less often
// than that, because the record asks for the action until its outcome is seen.
func (s *Server) act(ctx context.Context, e act) error {
	if !s.repeats.due(e.action.ID, repeatAfter) {
		return nil
	}
	account, err := s.accountOf(ctx, e.connection)
	if err != nil {
		return err
	}
	resource := string(e.action.Machine)
	if resource == "" {
		resource = string(e.action.Volume)
	}
	if err := bus.Actions.Publish(ctx, s.control, account, e.action, e.action.ID, resource); err != nil {
		s.repeats.forget(e.action.ID)
		return fmt.Errorf("publish action %s: %w", e.action.ID, err)
	}
	s.log.InfoContext(ctx, "action asked for", "action", e.action.ID, "connection", e.connection, "machine", e.action.Machine, "volume", e.action.Volume)
	return nil
}

// inquire asks for an inventory. It is worth asking again soon, because a hint may be lost.
func (s *Server) inquire(ctx context.Context, e inquire) error {
	if !s.repeats.due("inquire."+string(e.connection), time.Second) {
		return nil
	}
	account, err := s.accountOf(ctx, e.connection)
	if err != nil {
		return err
	}
	return bus.AgentHint.Send(ctx, s.control, account, "", bus.Empty{})
}

// hint wakes a machine up. It is worth nothing later, so it is not repeated: the machine asks by itself now and then.
func (s *Server) hint(ctx context.Context, e hint) error {
	account, err := s.accountOf(ctx, e.connection)
	if err != nil {
		return err
	}
	return bus.HintMachine.Send(ctx, s.control, account, string(e.machine), bus.MachineHint{Lease: e.lease})
}

func (s *Server) accountOf(ctx context.Context, id bus.ConnectionID) (string, error) {
	if c, ok := s.mirrors.connections.get(string(id)); ok {
		return c.Account, nil
	}
	c, _, err := s.store.connections.Get(ctx, string(id))
	if err != nil {
		return "", fmt.Errorf("read connection %s: %w", id, err)
	}
	return c.Account, nil
}

func (s *Server) organizationAccount(ctx context.Context, id bus.OrganizationID) (string, error) {
	if o, ok := s.mirrors.organizations.get(string(id)); ok {
		return o.Account, nil
	}
	o, _, err := s.store.organizations.Get(ctx, string(id))
	if err != nil {
		return "", fmt.Errorf("read organization %s: %w", id, err)
	}
	return o.Account, nil
}

// tell puts a line of a story into the outbox: nobody waits for a story to be stored.
func (s *Server) tell(e tell) {
	id := fmt.Sprintf("%s.%s.%s.%d", e.event.Build, e.event.Stage, e.event.Machine, e.event.Time.UnixNano())
	s.outbox.put(string(e.event.Build), func(ctx context.Context) error {
		account, err := s.organizationAccount(ctx, e.organization)
		if err != nil {
			return err
		}
		return bus.BuildStory.Publish(ctx, s.control, account, e.event, id, string(e.event.Project), string(e.event.Build))
	})
}

// outbox publishes what may be late: lines of stories, and pointers that only matter if this process dies. Lines of
// one build keep their order.
type outbox struct {
	lanes []chan func(context.Context) error
}

const lanes = 4

func newOutbox() *outbox {
	o := &outbox{lanes: make([]chan func(context.Context) error, lanes)}
	for i := range o.lanes {
		o.lanes[i] = make(chan func(context.Context) error, 1024)
	}
	return o
}

// put never waits. A lane that is full drops the line: the client asks for the truth anyway.
func (o *outbox) put(key string, publish func(context.Context) error) bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // never fails
	select {
	case o.lanes[h.Sum32()%lanes] <- publish:
		return true
	default:
		return false
	}
}

// repeats remembers what this replica has published lately.
type repeats struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// repeatAfter is when an action that the record still asks for is published again.
const repeatAfter = 30 * time.Second

func (r *repeats) due(id string, after time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[string]time.Time{}
	}
	if time.Since(r.last[id]) < after {
		return false
	}
	for old, t := range r.last {
		if time.Since(t) > repeatAfter {
			delete(r.last, old)
		}
	}
	r.last[id] = time.Now()
	return true
}

func (r *repeats) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, id)
}
