package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"time"

	"github.com/depotctl/depot/bus"
)

// store is the truth: one bucket per noun, one key per unit of exclusive decision.
type store struct {
	organizations *bus.Bucket[Organization]
	projects      *bus.Bucket[Project]
	connections   *bus.Bucket[Connection]
	tokens        *bus.Bucket[Token]
	names         *bus.Bucket[Name]
	builds        *bus.Bucket[Build]
	machines      *bus.Bucket[Machine]
	volumes       *bus.Bucket[Volume]
	slots         *bus.Bucket[Slot]
}

func openStore(ctx context.Context, c *bus.Control) (*store, error) {
	s := &store{}
	var errs []error
	open(ctx, c, "organizations", &s.organizations, &errs)
	open(ctx, c, "projects", &s.projects, &errs)
	open(ctx, c, "connections", &s.connections, &errs)
	open(ctx, c, "tokens", &s.tokens, &errs)
	open(ctx, c, "names", &s.names, &errs)
	open(ctx, c, "builds", &s.builds, &errs)
	open(ctx, c, "machines", &s.machines, &errs)
	open(ctx, c, "volumes", &s.volumes, &errs)
	open(ctx, c, "slots", &s.slots, &errs)
	return s, errors.Join(errs...)
}

func open[T any](ctx context.Context, c *bus.Control, name string, to **bus.Bucket[T], errs *[]error) {
	b, err := bus.OpenBucket[T](ctx, c, name)
	if err != nil {
		*errs = append(*errs, fmt.Errorf("open bucket %s: %w", name, err))
	}
	*to = b
}

// change steps a record that exists, until nobody else was faster. A step that changes nothing writes nothing. A
// conflict is never an answer: a cluster reports one now and then although nobody else wrote.
func change[T any](ctx context.Context, b *bus.Bucket[T], key string, step func(T) (T, error)) (T, bus.Revision, error) {
	return b.Modify(ctx, key, func(old T, exists bool) (T, bool, error) {
		if !exists {
			return old, false, bus.ErrNotFound
		}
		next, err := step(old)
		return next, err == nil && !reflect.DeepEqual(old, next), err
	})
}

// jitter waits before the next try, at random and longer each time.
func jitter(ctx context.Context, attempt int) error {
	limit := min(time.Millisecond<<min(attempt, 6), 50*time.Millisecond)
	timer := time.NewTimer(rand.N(limit))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// ensure returns the record under key, which is made if there is none.
func ensure[T any](ctx context.Context, b *bus.Bucket[T], key string, fresh func() T) (T, error) {
	for attempt := 0; ; attempt++ {
		v, _, err := b.Get(ctx, key)
		if !errors.Is(err, bus.ErrNotFound) {
			return v, err
		}
		v = fresh()
		_, err = b.Create(ctx, key, v)
		if !errors.Is(err, bus.ErrConflict) {
			return v, err
		}
		if err := jitter(ctx, attempt); err != nil {
			return v, fmt.Errorf("create %s: %w", key, err)
		}
	}
}
