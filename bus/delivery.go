package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Delivery is one message of a queue in the hands of a handler.
type Delivery[M Message] struct {
	Message M
	Attempt int // of carrying it out; 1 is the first
	Subject string
}

// Handler carries one message out. What it returns decides what happens to the message:
//
//	nil             it is done, and gone
//	Reject(err)     it can never succeed: to the dead letters, with err as the reason
//	Postpone(d)     not now: again after d, and this attempt does not count
//	any other error again after a wait that grows with the attempts; after the last one, to the dead letters
//
// A panic is a Reject. A message may be delivered more than once, also while an earlier delivery still runs somewhere:
// a handler is idempotent. Its context ends when the consumer stops, and when the lease of the message is lost, so that
// somebody else will get it.
type Handler[M Message] func(ctx context.Context, d Delivery[M]) error

// Reject makes a handler's error final: the message goes to the dead letters.
func Reject(err error) error {
	if err == nil {
		return nil
	}
	return &rejection{err}
}

type rejection struct{ err error }

func (r *rejection) Error() string { return r.err.Error() }
func (r *rejection) Unwrap() error { return r.err }

// Postpone asks for the message again after d, without counting the attempt.
func Postpone(d time.Duration) error { return &postponement{d} }

type postponement struct{ wait time.Duration }

func (p *postponement) Error() string { return fmt.Sprintf("postponed for %v", p.wait) }

// errLeaseLost is why a handler's context ends when the server may have given its message to somebody else.
var errLeaseLost = errors.New("the lease of the message is lost")

const (
	// handlerSlots is how many handlers of one queue run at a time in one process.
	handlerSlots = 16
	// pullExpiry is how long one pull stays open at the server.
	pullExpiry = 30 * time.Second
	// ackTimeout bounds an acknowledgement of an acknowledgement.
	ackTimeout = 10 * time.Second
)

// redeliverAfter is how long a message waits after each failed attempt; the last step repeats.
var redeliverAfter = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute}

// worker carries out the messages of one durable consumer. It pulls about as many as it has free slots for, and extends
// the lease of each from the moment it comes, so that none runs out while it waits for its turn.
type worker struct {
	nc    *nats.Conn
	log   *slog.Logger
	open  func(ctx context.Context) (jetstream.Consumer, error)
	gone  func() error // why the connection has ended for good
	done  func(ctx context.Context, m jetstream.Msg, attempt int) error
	bury  func(ctx context.Context, m jetstream.Msg, head deadLetterHead) error
	slots chan struct{} // holds a token for each handler that runs
	delay []time.Duration

	ackWait    time.Duration
	maxDeliver int
	running    sync.WaitGroup
}

// run works until ctx ends, then waits for the handlers that run.
func (w *worker) run(ctx context.Context) error {
	defer w.running.Wait()
	for attempt := 0; ctx.Err() == nil; attempt++ {
		consumer, err := w.open(ctx)
		if err == nil {
			cfg := consumer.CachedInfo().Config
			w.ackWait, w.maxDeliver = cfg.AckWait, cfg.MaxDeliver
			began := time.Now()
			if err = w.pull(ctx, consumer); time.Since(began) > pullExpiry {
				attempt = 0
			}
		}
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, ErrForbidden):
			return err
		case w.nc.IsClosed():
			return w.gone()
		default:
			level := slog.LevelDebug
			if attempt == 0 {
				level = slog.LevelWarn
			}
			w.log.Log(ctx, level, "queue interrupted", "err", err)
			_ = sleep(ctx, backoff(attempt, 100*time.Millisecond, 5*time.Second)) // the loop looks at ctx
		}
	}
	return nil
}

// pull fetches messages until something fails. A pull that was open when the connection was lost is given up as soon as
// there is a new connection.
func (w *worker) pull(ctx context.Context, consumer jetstream.Consumer) error {
	connected := w.nc.StatusChanged(nats.CONNECTED)
	defer w.nc.RemoveStatusListener(connected)
	for {
		free, err := w.free(ctx)
		if err != nil {
			return err
		}
		once, cancel := context.WithTimeout(ctx, pullExpiry)
		w.running.Go(func() {
			select {
			case <-connected:
				cancel()
			case <-once.Done():
			}
		})
		err = w.fetch(ctx, once, consumer, free)
		expired := once.Err() != nil
		cancel()
		if err != nil && (!expired || ctx.Err() != nil || w.nc.IsClosed()) {
			return err
		}
	}
}

// free waits until a slot is free and returns how many are.
func (w *worker) free(ctx context.Context) (int, error) {
	if err := w.acquire(ctx); err != nil {
		return 0, err
	}
	defer w.release()
	return cap(w.slots) - len(w.slots) + 1, nil
}

func (w *worker) acquire(ctx context.Context) error {
	select {
	case w.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *worker) release() { <-w.slots }

// fetch hands each message that comes to a goroutine of its own.
func (w *worker) fetch(ctx, once context.Context, consumer jetstream.Consumer, free int) error {
	batch, err := consumer.Fetch(free, jetstream.FetchContext(once))
	if err != nil {
		return err
	}
	for m := range batch.Messages() {
		w.running.Go(func() { w.deliver(ctx, m) })
	}
	return batch.Error()
}

// deliver carries one message out, extends its lease meanwhile, and tells the server how it ended.
func (w *worker) deliver(ctx context.Context, m jetstream.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		w.log.Error("message without metadata", "subject", m.Subject(), "err", err)
		return
	}
	attempt := int(meta.NumDelivered) //nolint:gosec // bounded by MaxDeliver
	log := w.log.With("subject", m.Subject(), "seq", meta.Sequence.Stream, "attempt", attempt)
	leased, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	var extending sync.WaitGroup
	extending.Go(func() { w.extend(leased, m, lose) })

	err = w.attempt(leased, m, attempt)
	lost := errors.Is(context.Cause(leased), errLeaseLost)
	lose(nil)
	extending.Wait()
	if err != nil && lost {
		log.Warn("message left to the next delivery", "err", errors.Join(errLeaseLost, err))
		return
	}
	// The farewell is said even when ctx has ended.
	w.settle(context.WithoutCancel(ctx), log, m, attempt, err, ctx.Err() != nil)
}

// attempt calls the handler in a slot, again after each Postpone. A postponed message keeps its lease and no slot. What
// is left of a wait that ctx cuts short is returned.
func (w *worker) attempt(ctx context.Context, m jetstream.Msg, attempt int) error {
	for {
		if err := w.acquire(ctx); err != nil {
			return err
		}
		err := ctx.Err()
		if err == nil {
			err = w.call(ctx, m, attempt)
		}
		w.release()
		later, ok := errors.AsType[*postponement](err)
		if !ok {
			return err
		}
		due := time.Now().Add(later.wait)
		if sleep(ctx, later.wait) != nil {
			return Postpone(max(0, time.Until(due)))
		}
	}
}

func (w *worker) call(ctx context.Context, m jetstream.Msg, attempt int) (err error) {
	defer func() {
		if v := recover(); v != nil {
			w.log.Error("handler panicked", "subject", m.Subject(), "err", v, "stack", string(debug.Stack()))
			err = Reject(fmt.Errorf("panic: %v", v))
		}
	}()
	return w.done(ctx, m, attempt)
}

// extend renews the lease until ctx ends. Only what the server has confirmed counts: shortly before the last confirmed
// renewal is too old, so that the server may give the message away, the handler is stopped.
func (w *worker) extend(ctx context.Context, m jetstream.Msg, lose context.CancelCauseFunc) {
	interval := w.ackWait / 3
	deadline := time.Now().Add(w.ackWait - interval/2)
	for wait := interval; sleep(ctx, wait) == nil; {
		sent := time.Now()
		once, cancel := context.WithDeadline(ctx, deadline)
		err := w.say(once, m, "+WPI")
		cancel()
		if err == nil {
			deadline, wait = sent.Add(w.ackWait-interval/2), interval
			continue
		}
		if wait = interval / 10; time.Until(deadline) <= wait {
			lose(errLeaseLost)
			return
		}
	}
}

// settle tells the server what shall happen to the message.
func (w *worker) settle(ctx context.Context, log *slog.Logger, m jetstream.Msg, attempt int, err error, stopping bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*ackTimeout)
	defer cancel()
	verb := w.verdict(ctx, log, m, attempt, err, stopping)
	if err := w.say(ctx, m, verb); err != nil {
		log.Warn("acknowledgement not confirmed; the message may come again", "err", err)
	}
}

// verdict returns the acknowledgement for a handler's error.
func (w *worker) verdict(ctx context.Context, log *slog.Logger, m jetstream.Msg, attempt int, err error, stopping bool) string {
	head := deadLetterHead{Attempts: attempt}
	var (
		final      *rejection
		unreadable *unreadableError
		later      *postponement
	)
	switch {
	case err == nil:
		return "+ACK"
	case errors.As(err, &unreadable):
		head.Cause = DeadUnreadable
	case errors.As(err, &final):
		head.Cause = DeadRejected
	case errors.As(err, &later):
		return nakAfter(later.wait)
	case stopping:
		return nakAfter(0) // for somebody else
	case w.maxDeliver > 0 && attempt >= w.maxDeliver:
		head.Cause = DeadExhausted
	default:
		wait := w.delay[min(attempt, len(w.delay))-1]
		log.Warn("handler failed; the message will come again", "err", err, "dur", wait)
		return nakAfter(wait)
	}
	head.Reason = err.Error()
	log.Error("message to the dead letters", "cause", string(head.Cause), "err", err)
	if err := w.bury(ctx, m, head); err != nil {
		log.Error("dead letter not stored; the message will come again", "err", err)
		return nakAfter(w.delay[min(attempt, len(w.delay))-1])
	}
	return "+TERM " + oneLine(head.Reason)
}

// nakAfter hands a message back; the server delivers it again after d.
func nakAfter(d time.Duration) string { return fmt.Sprintf(`-NAK {"delay": %d}`, d.Nanoseconds()) }

// say sends an acknowledgement and waits until the server has confirmed it.
func (w *worker) say(ctx context.Context, m jetstream.Msg, verb string) error {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	_, err := w.nc.RequestWithContext(ctx, m.Reply(), []byte(verb))
	return err
}

// unreadableError is a message that is not what its queue carries.
type unreadableError struct{ err error }

func (e *unreadableError) Error() string { return e.err.Error() }
func (e *unreadableError) Unwrap() error { return e.err }

// oneLine makes text fit for a header or an acknowledgement.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 1024 {
		s = strings.ToValidUTF8(s[:1024], "") + "…"
	}
	return s
}
