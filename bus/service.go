package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// defaultCall bounds a call whose context has no deadline.
	defaultCall = 10 * time.Second
	// callAttempt is how long a request waits for its answer before it is sent again: the API server that had it may have
	// died with it, and every service of the table is idempotent. Each further attempt waits twice as long, up to
	// callAttemptMax, so that API servers that are merely slow are not buried under repeats.
	callAttempt    = 2 * time.Second
	callAttemptMax = 16 * time.Second
)

// Call sends req and waits for the answer, which is a *Fault if the API server refuses. The request is repeated until
// the deadline of ctx (10 s if it has none) while no API server answers; then the error is a Fault with
// CodeUnavailable. A request that the role may not make is ErrForbidden at once.
func (s Service[Req, Resp]) Call(ctx context.Context, c *Conn, req Req) (Resp, error) {
	var none Resp
	m, err := c.call(ctx, *s.row, req)
	if err != nil {
		return none, fmt.Errorf("%s: %w", s.row.Name, err)
	}
	resp, err := decode[Resp](replyTypeOf(*s.row), m)
	if err != nil {
		return none, fmt.Errorf("answer to %s: %w", s.row.Name, err)
	}
	return resp, nil
}

// call returns the answer, or the Fault that it carries.
func (c *Conn) call(ctx context.Context, row Row, req Message) (*nats.Msg, error) {
	subject := localSubject(row, c.self, "")
	m, err := encode(typeOf(row), subject, req)
	if err != nil {
		return nil, err
	}
	caller := ctx
	ctx, cancel := bounded(ctx)
	defer cancel()
	ctx, forbid := context.WithCancelCause(ctx)
	defer forbid(nil)
	defer c.denials.watch(subject, forbid)()

	answer, err := c.ask(ctx, m)
	switch cause := context.Cause(ctx); {
	case err == nil:
		if answer.Header.Get(headerType) == typeFault {
			return answer, readFault(answer)
		}
		return answer, nil
	case c.Err() != nil: // why the connection has ended says more than what a refused one may not ask
		return nil, c.Err()
	case errors.Is(cause, ErrForbidden), errors.Is(caller.Err(), context.Canceled):
		return nil, cause
	case ctx.Err() == nil:
		return nil, err
	case !c.Connected():
		return nil, Faultf(CodeUnavailable, "the connection to the bus is down").WithHint("it comes back by itself when the server does")
	}
	return nil, noAPIServer()
}

// ask repeats the request until something answers it or ctx ends.
func (c *Conn) ask(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	for attempt := 0; ; attempt++ {
		once, cancel := context.WithTimeout(ctx, min(callAttempt<<min(attempt, 3), callAttemptMax))
		answer, err := c.nc.RequestMsgWithContext(once, m)
		cancel()
		switch {
		case err == nil:
			return answer, nil
		case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrConnectionDraining):
			return nil, c.ended()
		}
		if err := sleep(ctx, backoff(attempt, 50*time.Millisecond, time.Second)); err != nil {
			return nil, err
		}
	}
}

func noAPIServer() *Fault {
	return Faultf(CodeUnavailable, "%v", ErrNoAPIServer).WithHint("is the API server running? the request is safe to repeat")
}

func readFault(m *nats.Msg) error {
	f, err := decode[*Fault](typeFault, m)
	if err != nil {
		return err
	}
	return f
}

// Send publishes a signal: nobody answers and nothing stores it. It returns when the server has it, so that a signal
// which the role may not send is ErrForbidden.
func (s Signal[M]) Send(ctx context.Context, c *Conn, msg M) error {
	subject := localSubject(*s.row, c.self, "")
	m, err := encode(typeOf(*s.row), subject, msg)
	if err == nil {
		err = c.confirm(ctx, subject, func() error { return c.nc.PublishMsg(m) })
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", s.row.Name, err)
	}
	return nil
}

// Subscribe calls handle for each hint, one at a time, until ctx ends. It returns when the server has the subscription.
// A hint is a wake-up and nothing more: it may be forged by another member of the account.
func (h Hint[M]) Subscribe(ctx context.Context, c *Conn, handle func(M)) error {
	subject := localSubject(*h.row, c.self, "")
	if err := subscribe(ctx, c, *h.row, subject, handle); err != nil {
		return fmt.Errorf("subscribe %s: %w", h.row.Name, err)
	}
	return nil
}

// subscribe hears the subject until ctx ends. A message that cannot be read is logged and skipped.
func subscribe[M Message](ctx context.Context, c *Conn, row Row, subject string, handle func(M)) error {
	var sub *nats.Subscription
	err := c.confirm(ctx, subject, func() (err error) {
		sub, err = c.nc.Subscribe(subject, func(m *nats.Msg) {
			msg, err := decode[M](typeOf(row), m)
			if err != nil {
				c.log.Warn("message refused", "subject", m.Subject, "err", err)
				return
			}
			handle(msg)
		})
		return err
	})
	if err != nil {
		if sub != nil {
			_ = sub.Unsubscribe() // it fails only if the connection is gone, and the subscription with it
		}
		return err
	}
	context.AfterFunc(ctx, func() { _ = sub.Unsubscribe() })
	return nil
}

// confirm does an operation on a subject and waits until the server has accepted or denied it.
func (c *Conn) confirm(ctx context.Context, subject string, operate func() error) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	ctx, forbid := context.WithCancelCause(ctx)
	defer forbid(nil)
	defer c.denials.watch(subject, forbid)()
	before := c.nc.LastError()
	if err := operate(); err != nil {
		return err
	}
	if err := c.nc.FlushWithContext(ctx); err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, ErrForbidden) {
			return cause
		}
		return err
	}
	// A denial arrives before the answer to the flush, but is reported from another goroutine.
	if after := c.nc.LastError(); errors.Is(after, nats.ErrPermissionViolation) && after != before { //nolint:errorlint // the same error or a new one?
		_ = sleep(ctx, time.Second)
	}
	return context.Cause(ctx)
}

// denials brings permission violations, which the server reports apart from what caused them, to whoever waits.
type denials struct {
	mu      sync.Mutex
	waiting map[string]map[*context.CancelCauseFunc]struct{}
}

func (d *denials) watch(subject string, forbid context.CancelCauseFunc) (stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting == nil {
		d.waiting = map[string]map[*context.CancelCauseFunc]struct{}{}
	}
	if d.waiting[subject] == nil {
		d.waiting[subject] = map[*context.CancelCauseFunc]struct{}{}
	}
	d.waiting[subject][&forbid] = struct{}{}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.waiting[subject], &forbid)
		if len(d.waiting[subject]) == 0 {
			delete(d.waiting, subject)
		}
	}
}

func (d *denials) deny(subject string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for forbid := range d.waiting[subject] {
		(*forbid)(fmt.Errorf("%w: %s", ErrForbidden, subject))
	}
}

// backoff returns a random wait between half and all of an exponentially growing bound.
func backoff(attempt int, first, limit time.Duration) time.Duration {
	bound := limit
	if attempt < 16 {
		bound = min(limit, first<<attempt)
	}
	return bound/2 + rand.N(bound/2+1)
}

// bounded gives a context without a deadline one: every wait has an end.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, defaultCall)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
