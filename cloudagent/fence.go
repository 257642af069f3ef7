package cloudagent

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/depotctl/depot/bus"
)

// fenceLife is how long an attempt is remembered after it was last seen; no action is older.
const fenceLife = 24 * time.Hour

// fence remembers the newest attempt of each machine, from actions and inventories. What it forgets in a restart, the next
// inventory and the provider know.
type fence struct {
	mu   sync.Mutex
	seen map[bus.MachineID]seenAttempt
}

type seenAttempt struct {
	attempt int
	at      time.Time
}

// pass notes an attempt. It is false, with the newest one, when the attempt is older than that.
func (f *fence) pass(machine bus.MachineID, attempt int, now time.Time) (newest int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen == nil {
		f.seen = map[bus.MachineID]seenAttempt{}
	}
	if known := f.seen[machine]; attempt < known.attempt {
		return known.attempt, false
	}
	f.seen[machine] = seenAttempt{attempt, now}
	return attempt, true
}

// forget drops what has not been seen for long.
func (f *fence) forget(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for machine, s := range f.seen {
		if now.Sub(s.at) > fenceLife {
			delete(f.seen, machine)
		}
	}
}

// rows puts actions on one machine or volume in a row, and lets all others go on.
type rows struct {
	mu   sync.Mutex
	held map[string]*row
}

type row struct {
	token chan struct{} // holds the one token while nobody has the row
	users int
}

// lock waits for all of the keys; empty ones are left out.
func (r *rows) lock(ctx context.Context, keys ...string) (unlock func(), err error) {
	keys = slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return k == "" })
	slices.Sort(keys) // in one order everywhere, so that no two wait for each other
	keys = slices.Compact(keys)
	taken := 0
	release := func() {
		for i, key := range keys {
			r.leave(key, i < taken)
		}
	}
	tokens := make([]chan struct{}, len(keys))
	for i, key := range keys {
		tokens[i] = r.join(key)
	}
	for _, token := range tokens {
		select {
		case <-token:
			taken++
		case <-ctx.Done():
			release()
			return nil, context.Cause(ctx)
		}
	}
	return release, nil
}

func (r *rows) join(key string) chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held == nil {
		r.held = map[string]*row{}
	}
	if r.held[key] == nil {
		r.held[key] = &row{token: make(chan struct{}, 1)}
		r.held[key].token <- struct{}{}
	}
	r.held[key].users++
	return r.held[key].token
}

func (r *rows) leave(key string, hadToken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	row := r.held[key]
	if hadToken {
		row.token <- struct{}{}
	}
	if row.users--; row.users == 0 {
		delete(r.held, key)
	}
}
