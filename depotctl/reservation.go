package depotctl

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
)

// The pace of a reservation. Every wait of the client is here or in link.go and watchdog.go.
const (
	connectTimeout = 10 * time.Second // to the bus, with retries
	reachable      = 3 * time.Second  // the same, while nothing listens there at all
	callTimeout    = 5 * time.Second  // one request
	askWaiting     = 2 * time.Second  // GetBuild without an event, while no builder is there
	askRunning     = 5 * time.Second  // the same, while the build runs
	liveInterval   = 5 * time.Second  // BuildIsLive
	retryInterval  = time.Second      // CreateBuild, when the server was away
	finishTimeout  = 3 * time.Second  // FinishBuild
	acquireGrace   = 5 * time.Second  // the server ends an acquisition first, because it knows why
)

// defaultAcquireTimeout is --acquire-timeout: the coldest start, with a machine that boots slowly, is far below it.
const defaultAcquireTimeout = 10 * time.Minute

// order is what CreateBuild asks for.
type order struct {
	project        string
	architectures  []bus.Arch
	acquireTimeout time.Duration
}

// reservation is one build's conversation with the API server. Preparing it needs nothing but a target, so it begins
// before buildx has started; placing the order is a step of its own.
//
//	newReservation -> prepare (key, CSR, connection, subscription)
//	               -> place   (CreateBuild) -> follow (GetBuild on events and by time, BuildIsLive)
//	               -> finish  (FinishBuild)
//
// What follow learns is in status; whoever waits takes a snapshot and waits for its changed channel.
type reservation struct {
	id     bus.BuildID
	target target
	key    *certs.Key

	prepared chan struct{} // closed when conn, csr and err are final
	conn     *bus.Conn
	csr      string
	err      error

	placeOnce sync.Once
	placed    chan struct{} // closed when CreateBuild has been answered or given up
	wake      chan struct{} // capacity 1: ask again
	status    status
	tasks     sync.WaitGroup
	cancel    context.CancelFunc
	ctx       context.Context //nolint:containedctx // the life of the reservation's own goroutines: from newReservation to finish
}

// newReservation starts to prepare a build at t. It returns at once.
func newReservation(t target) *reservation {
	ctx, cancel := context.WithCancel(context.Background())
	r := &reservation{
		id: bus.NewBuildID(), target: t, ctx: ctx, cancel: cancel,
		prepared: make(chan struct{}), placed: make(chan struct{}), wake: make(chan struct{}, 1),
		status: newStatus(time.Now()),
	}
	r.tasks.Go(func() {
		defer close(r.prepared)
		r.err = r.prepare(ctx)
	})
	return r
}

func (r *reservation) prepare(ctx context.Context) (err error) {
	if err := r.target.require(); err != nil {
		return err
	}
	if r.key, err = certs.NewKey(); err != nil {
		return err
	}
	if r.csr, err = r.key.CSR(); err != nil {
		return err
	}
	if r.conn, err = r.target.connect(ctx); err != nil {
		return err
	}
	// Subscribed before the order is placed, on the same connection: no event of this build can be missed.
	if err := bus.BuildStory.Subscribe(r.ctx, r.conn, r.hear, "*", string(r.id)); err != nil {
		return explain("listen to the build's events", r.target.server, err)
	}
	return nil
}

// hear is called for each event: it is shown, and it is a reason to ask, but it is not believed.
func (r *reservation) hear(e bus.BuildEvent) {
	if e.Build != r.id {
		return
	}
	r.status.hear(e, time.Now())
	r.nudge()
}

// nudge makes follow ask now.
func (r *reservation) nudge() {
	select {
	case r.wake <- struct{}{}:
	default: // a question is already due
	}
}

// place sends the order, once, and follows the build from then on. It returns at once; outcomes are in status.
func (r *reservation) place(o order) {
	r.placeOnce.Do(func() {
		r.status.start(time.Now(), o.acquireTimeout)
		r.tasks.Go(func() {
			err := r.create(o)
			close(r.placed)
			if err != nil {
				r.status.fail(err)
				return
			}
			r.follow()
		})
	})
}

// create repeats CreateBuild until it is answered: the build's id makes repeating harmless.
func (r *reservation) create(o order) error {
	select {
	case <-r.prepared:
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
	if r.err != nil {
		return r.err
	}
	request := bus.BuildCreate{
		Build: r.id, Project: o.project, Architectures: o.architectures, CSR: r.csr,
		AcquireSeconds: max(1, int(o.acquireTimeout/time.Second)),
	}
	for deadline := time.Now().Add(o.acquireTimeout); ; {
		view, err := call(r.ctx, bus.CreateBuild, r.conn, request)
		if err == nil {
			r.status.learn(view, time.Now())
			return nil
		}
		if !mayPass(err) || time.Now().After(deadline) {
			return explain("start build", r.target.server, err)
		}
		r.status.note("no answer to the order: " + err.Error())
		if !r.pause(retryInterval) {
			return explain("start build", r.target.server, r.gone(err))
		}
	}
}

// follow learns the truth on every event and by time, and says that this client lives, until the reservation ends.
func (r *reservation) follow() {
	live := time.NewTicker(liveInterval)
	defer live.Stop()
	for {
		ask := time.NewTimer(r.status.pace())
		select {
		case <-r.wake:
			r.ask()
		case <-ask.C:
			r.ask()
		case <-live.C:
			r.sayLive()
		case <-r.conn.Done():
			ask.Stop()
			r.status.disconnect(explain("wait for a builder", r.target.server, r.gone(r.conn.Err())))
			return
		case <-r.ctx.Done():
			ask.Stop()
			return
		}
		ask.Stop()
	}
}

func (r *reservation) ask() {
	view, err := call(r.ctx, bus.GetBuild, r.conn, bus.BuildRef{Build: r.id})
	switch {
	case err == nil:
		r.status.learn(view, time.Now())
	case errors.Is(err, bus.CodeNotFound), errors.Is(err, bus.CodeForbidden):
		r.status.fail(explain("ask for the builder", r.target.server, err))
	case r.ctx.Err() == nil:
		r.status.note("the server does not answer; asking again until it does")
	}
}

func (r *reservation) sayLive() {
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	_ = bus.BuildIsLive.Send(ctx, r.conn, bus.BuildLive{Build: r.id}) // the next one is due in 5 s
}

// lastWord asks once more why the builder is gone; "" if the server cannot say within the deadline.
func (r *reservation) lastWord(ctx context.Context) (bus.BuildView, error) {
	return call(ctx, bus.GetBuild, r.conn, bus.BuildRef{Build: r.id})
}

// finish tells the server how the build ended and stops everything. It returns an error if that could not be delivered:
// the server then finds out by itself that the client is silent. The connection is left to the end of the process:
// nothing is in flight, and draining it would cost a round trip of every build.
func (r *reservation) finish(state bus.BuildState, reason string) error {
	defer func() {
		r.cancel()
		r.tasks.Wait()
	}()
	if !r.status.started() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), finishTimeout)
	defer cancel()
	select {
	case <-r.placed: // a FinishBuild that overtakes its CreateBuild would find nothing
	case <-ctx.Done():
		return ctx.Err()
	}
	if !r.status.exists() {
		return nil
	}
	_, err := call(ctx, bus.FinishBuild, r.conn, bus.BuildFinish{Build: r.id, State: state, Reason: reason})
	return err
}

// close ends a reservation that was never placed.
func (r *reservation) close() {
	r.cancel()
	r.tasks.Wait()
	if r.conn != nil {
		_ = r.conn.Close() // nothing is in flight
	}
}

// pause waits, unless the reservation or its connection ends first.
func (r *reservation) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.conn.Done():
	case <-r.ctx.Done():
	}
	return false
}

// gone is why the connection ended, or err if it did not say.
func (r *reservation) gone(err error) error {
	if cause := r.conn.Err(); cause != nil {
		return cause
	}
	if err == nil {
		return bus.ErrNoAPIServer
	}
	return err
}

// call sends one request with a deadline of its own.
func call[Req, Resp bus.Message](ctx context.Context, s bus.Service[Req, Resp], c *bus.Conn, request Req) (Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return s.Call(ctx, c, request)
}

// mayPass reports whether the same request may succeed later: nobody answered, as opposed to a refusal.
func mayPass(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, bus.ErrNoAPIServer) || errors.Is(err, bus.CodeUnavailable)
}
