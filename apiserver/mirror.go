package apiserver

import (
	"context"
	"iter"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/depotctl/depot/bus"
)

// mirror is a bucket in memory, some hundred microseconds behind. Lists and scans read it. Nothing is decided from it:
// what it suggests is stepped again on the record itself.
type mirror[T any] struct {
	mu      sync.RWMutex
	records map[string]T
	once    sync.Once
	synced  chan struct{} // closed when all that was there at the start is here
}

func newMirror[T any]() *mirror[T] {
	return &mirror[T]{records: map[string]T{}, synced: make(chan struct{})}
}

func (m *mirror[T]) watch(ctx context.Context, b *bus.Bucket[T]) error {
	return b.Watch(ctx, func(e bus.Entry[T], synced bool) {
		if synced {
			m.once.Do(func() { close(m.synced) })
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		switch {
		case e.Deleted:
			delete(m.records, e.Key)
		case e.Err == nil: // what cannot be read is unknown, and not gone
			m.records[e.Key] = e.Value
		}
	})
}

func (m *mirror[T]) get(key string) (T, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v, ok := m.records[key]
	return v, ok
}

// all yields the records as they are at the beginning of the loop.
func (m *mirror[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		m.mu.RLock()
		all := slices.Collect(maps.Values(m.records))
		m.mu.RUnlock()
		for _, v := range all {
			if !yield(v) {
				return
			}
		}
	}
}

// mirrors are those of the whole store.
type mirrors struct {
	organizations *mirror[Organization]
	projects      *mirror[Project]
	connections   *mirror[Connection]
	tokens        *mirror[Token]
	builds        *mirror[Build]
	machines      *mirror[Machine]
	volumes       *mirror[Volume]
	slots         *mirror[Slot]
}

func newMirrors() *mirrors {
	return &mirrors{
		newMirror[Organization](), newMirror[Project](), newMirror[Connection](), newMirror[Token](),
		newMirror[Build](), newMirror[Machine](), newMirror[Volume](), newMirror[Slot](),
	}
}

// watch keeps the mirrors up to date until ctx ends.
func (m *mirrors) watch(ctx context.Context, g *errgroup.Group, s *store) {
	g.Go(func() error { return m.organizations.watch(ctx, s.organizations) })
	g.Go(func() error { return m.projects.watch(ctx, s.projects) })
	g.Go(func() error { return m.connections.watch(ctx, s.connections) })
	g.Go(func() error { return m.tokens.watch(ctx, s.tokens) })
	g.Go(func() error { return m.builds.watch(ctx, s.builds) })
	g.Go(func() error { return m.machines.watch(ctx, s.machines) })
	g.Go(func() error { return m.volumes.watch(ctx, s.volumes) })
	g.Go(func() error { return m.slots.watch(ctx, s.slots) })
}

// wait returns when all mirrors are complete, or ctx has ended.
func (m *mirrors) wait(ctx context.Context) {
	for _, synced := range []chan struct{}{
		m.organizations.synced, m.projects.synced, m.connections.synced, m.tokens.synced, m.builds.synced, m.machines.synced, m.volumes.synced, m.slots.synced,
	} {
		select {
		case <-synced:
		case <-ctx.Done():
			return
		}
	}
}
