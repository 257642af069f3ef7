package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// queueTest is a bus with the queue of build requests, whose timing is the test's.
type queueTest struct {
	server  *Embedded
	control *Control
	stream  jetstream.Stream
	delay   []time.Duration
	slots   int
}

func newQueueTest(t *testing.T, ackWait time.Duration, deliveries int) *queueTest {
	t.Helper()
	trust, err := NewTrust()
	require.NoError(t, err)
	server, err := StartEmbedded(t.Context(), EmbeddedConfig{Dir: t.TempDir(), Trust: trust})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	control, err := OpenControl(t.Context(), ControlConfig{Server: server, Trust: trust})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	cfg := consumerConfig(sharedConsumer, 256)
	cfg.AckWait, cfg.MaxDeliver = ackWait, deliveries
	_, err = control.js.UpdateConsumer(t.Context(), BuildRequests.row.Stream, cfg)
	require.NoError(t, err)
	stream, err := control.js.Stream(t.Context(), BuildRequests.row.Stream)
	require.NoError(t, err)
	return &queueTest{server: server, control: control, stream: stream, delay: []time.Duration{10 * time.Millisecond}, slots: handlerSlots}
}

func (q *queueTest) publish(t *testing.T) BuildID {
	t.Helper()
	id := NewBuildID()
	require.NoError(t, BuildRequests.Publish(t.Context(), q.control, "", BuildRef{Build: id}, string(id), string(id)))
	return id
}

// publishRaw puts anything into the queue.
func (q *queueTest) publishRaw(t *testing.T, data string) {
	t.Helper()
	_, err := q.control.js.Publish(t.Context(), "queue.build.raw", []byte(data))
	require.NoError(t, err)
}

// work carries the queue out until stop or the end of the test.
func (q *queueTest) work(t *testing.T, h Handler[BuildRef]) (stop func()) {
	t.Helper()
	w := q.control.worker(BuildRequests.row.Stream, sharedConsumer)
	w.done, w.delay, w.slots = carry(*BuildRequests.row, h), q.delay, make(chan struct{}, q.slots)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return stop
}

// take pulls one message and does nothing with it, as a process that crashes.
func (q *queueTest) take(t *testing.T) {
	t.Helper()
	consumer, err := q.stream.Consumer(t.Context(), sharedConsumer)
	require.NoError(t, err)
	batch, err := consumer.Fetch(1, jetstream.FetchMaxWait(10*time.Second))
	require.NoError(t, err)
	require.NotNil(t, <-batch.Messages(), "nothing to take")
}

func (q *queueTest) waiting(t *testing.T) int {
	t.Helper()
	info, err := q.stream.Info(t.Context())
	require.NoError(t, err)
	return int(info.State.Msgs)
}

func (q *queueTest) empties(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return q.waiting(t) == 0 }, 30*time.Second, 10*time.Millisecond, "the queue does not empty")
}

func (q *queueTest) deadLetter(t *testing.T) DeadLetter {
	t.Helper()
	var letters []DeadLetter
	require.Eventually(t, func() bool {
		var err error
		letters, err = q.control.DeadLetters(t.Context(), 0, 10)
		require.NoError(t, err)
		return len(letters) > 0
	}, 30*time.Second, 10*time.Millisecond, "no dead letter")
	require.Len(t, letters, 1)
	return letters[0]
}

func TestWork_CarriesOutWhatACrashedProcessHadTaken(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, time.Second, 10)
	id := q.publish(t)
	q.take(t)
	got := make(chan Delivery[BuildRef], 2)
	q.work(t, func(_ context.Context, d Delivery[BuildRef]) error {
		got <- d
		return nil
	})
	d := <-got
	require.Equal(t, id, d.Message.Build)
	require.Equal(t, 2, d.Attempt)
	require.Equal(t, "queue.build."+string(id), d.Subject)
	q.empties(t)
	require.Empty(t, got)
}

func TestWork_KeepsTheMessageOfAHandlerThatTakesLongerThanTheLease(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 2*time.Second, 10)
	q.slots = 1 // the second message waits for the first: its lease is extended too
	q.publish(t)
	q.publish(t)
	attempts := make(chan int, 8)
	q.work(t, func(ctx context.Context, d Delivery[BuildRef]) error {
		attempts <- d.Attempt
		return sleep(ctx, 3*time.Second)
	})
	q.empties(t)
	require.Equal(t, 1, <-attempts)
	require.Equal(t, 1, <-attempts)
	require.Empty(t, attempts)
}

func TestWork_StopsTheHandlerBeforeItsLeaseIsLost(t *testing.T) {
	t.Parallel()
	const lease = 3 * time.Second
	q := newQueueTest(t, lease, 10)
	q.publish(t)
	began := make(chan struct{})
	ended := make(chan error, 1)
	q.work(t, func(ctx context.Context, _ Delivery[BuildRef]) error {
		close(began)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return ctx.Err()
	})
	<-began
	lost := time.Now()
	require.NoError(t, q.server.Close())
	require.ErrorIs(t, <-ended, errLeaseLost)
	require.Less(t, time.Since(lost), lease)
}

func TestWork_PoisonDoesNotHoldUpTheQueue(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 5*time.Second, 10)
	q.slots = 1
	q.publishRaw(t, "{")
	want := map[BuildID]bool{}
	for range 20 {
		want[q.publish(t)] = true
	}
	got := make(chan BuildID, 32)
	q.work(t, func(_ context.Context, d Delivery[BuildRef]) error {
		got <- d.Message.Build
		return nil
	})
	for range 20 {
		id := <-got
		require.True(t, want[id])
		delete(want, id)
	}
	q.empties(t)
	letter := q.deadLetter(t)
	require.Equal(t, DeadUnreadable, letter.Cause)
	require.Equal(t, "BUILDS", letter.Stream)
	require.Equal(t, "queue.build.raw", letter.Subject)
	require.Equal(t, "{", string(letter.Payload))
	require.Equal(t, 1, letter.Attempts)
}

func TestWork_RefusesWhatIsOfAnotherTypeOrInvalid(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 5*time.Second, 10)
	other, err := encode("build.finish.v1", "queue.build.x", BuildFinish{Build: NewBuildID(), State: BuildFailed})
	require.NoError(t, err)
	_, err = q.control.js.PublishMsg(t.Context(), other)
	require.NoError(t, err)
	invalid, err := encode(typeOf(*BuildRequests.row), "queue.build.y", Empty{}) // {} has no build
	require.NoError(t, err)
	_, err = q.control.js.PublishMsg(t.Context(), invalid)
	require.NoError(t, err)
	q.work(t, func(context.Context, Delivery[BuildRef]) error {
		t.Error("the handler saw an unreadable message")
		return nil
	})
	q.empties(t)
	letters, err := q.control.DeadLetters(t.Context(), 0, 10)
	require.NoError(t, err)
	require.Len(t, letters, 2)
	for _, letter := range letters {
		require.Equal(t, DeadUnreadable, letter.Cause)
	}
}

func TestWork_PanicIsTheEndOfOneMessageOnly(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 5*time.Second, 10)
	bad, good := q.publish(t), q.publish(t)
	got := make(chan BuildID, 1)
	q.work(t, func(_ context.Context, d Delivery[BuildRef]) error {
		if d.Message.Build == bad {
			panic("no such case")
		}
		got <- d.Message.Build
		return nil
	})
	require.Equal(t, good, <-got)
	letter := q.deadLetter(t)
	require.Equal(t, DeadRejected, letter.Cause)
	require.Equal(t, "panic: no such case", letter.Reason)
	q.empties(t)
}

func TestWork_PostponedMessageComesAgainAndLosesNoAttempt(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 2*time.Second, 2)
	q.slots = 1
	first := q.publish(t)
	attempts, others := make(chan int, 16), make(chan struct{}, 16)
	var calls int
	q.work(t, func(_ context.Context, d Delivery[BuildRef]) error {
		if d.Message.Build != first {
			others <- struct{}{}
			return nil
		}
		attempts <- d.Attempt
		if calls++; calls < 5 { // more than MaxDeliver, and each wait is longer than a third of AckWait
			return Postpone(800 * time.Millisecond)
		}
		return nil
	})
	require.Equal(t, 1, <-attempts)
	q.publish(t)
	<-others // the only slot is free while the first message waits
	for range 4 {
		require.Equal(t, 1, <-attempts)
	}
	q.empties(t)
}

func TestWork_GivesUpAfterTheLastAttemptAndMovesOn(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 5*time.Second, 3)
	bad := q.publish(t)
	good := q.publish(t)
	got := make(chan BuildID, 1)
	q.work(t, func(_ context.Context, d Delivery[BuildRef]) error {
		if d.Message.Build == bad {
			return fmt.Errorf("attempt %d went wrong", d.Attempt)
		}
		got <- d.Message.Build
		return nil
	})
	require.Equal(t, good, <-got)
	letter := q.deadLetter(t)
	require.Equal(t, DeadExhausted, letter.Cause)
	require.Equal(t, "attempt 3 went wrong", letter.Reason)
	require.Equal(t, 3, letter.Attempts)
	require.Equal(t, typeOf(*BuildRequests.row), letter.Type)
	require.JSONEq(t, `{"build":"`+string(bad)+`"}`, string(letter.Payload))
	q.empties(t)
}

// A message that kills its process never gets to say so: the server's own count ends it, at the next pull.
func TestWork_BuriesWhatKillsEveryProcessThatTakesIt(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 500*time.Millisecond, 2)
	bad := q.publish(t)
	q.take(t)
	q.take(t)
	got := make(chan BuildID, 2)
	q.work(t, func(_ context.Context, d Delivery[BuildRef]) error {
		got <- d.Message.Build
		return nil
	})
	letter := q.deadLetter(t)
	require.Equal(t, DeadExhausted, letter.Cause)
	require.Equal(t, "queue.build."+string(bad), letter.Subject)
	require.Equal(t, "given up after 2 deliveries to apiservers", letter.Reason)
	q.empties(t)
	good := q.publish(t)
	require.Equal(t, good, <-got)
}

func TestWork_RunsAsManyHandlersAsItHasSlotsAndNoMore(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 5*time.Second, 10)
	q.slots = 3
	began, finish := make(chan struct{}, 12), make(chan struct{})
	var running, highest atomic.Int32
	q.work(t, func(context.Context, Delivery[BuildRef]) error {
		defer running.Add(-1)
		now := running.Add(1)
		for old := highest.Load(); now > old && !highest.CompareAndSwap(old, now); old = highest.Load() {
		}
		began <- struct{}{}
		<-finish
		return nil
	})
	for range 12 {
		q.publish(t)
	}
	for range 3 {
		<-began // three run side by side, or this waits for ever
	}
	close(finish)
	q.empties(t)
	require.Equal(t, int32(3), highest.Load())
}

func TestWork_EndsWhenTheRunningHandlersHaveEnded(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 5*time.Second, 10)
	q.publish(t)
	began, finish := make(chan struct{}), make(chan struct{})
	stop := q.work(t, func(context.Context, Delivery[BuildRef]) error {
		close(began)
		<-finish
		return nil
	})
	<-began
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	select {
	case <-stopped:
		t.Fatal("work ended while a handler ran")
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	<-stopped
	require.Zero(t, q.waiting(t), "what the handler had done was not acknowledged")
}

func TestWork_HandsBackAtOnceWhatItsEndInterrupts(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, time.Hour, 10)
	q.delay = []time.Duration{time.Hour}
	interrupted, postponed := q.publish(t), q.publish(t)
	began := make(chan struct{}, 2)
	stop := q.work(t, func(ctx context.Context, d Delivery[BuildRef]) error {
		began <- struct{}{}
		if d.Message.Build == postponed {
			return Postpone(300 * time.Millisecond)
		}
		<-ctx.Done()
		return ctx.Err()
	})
	<-began
	<-began
	stop()
	got := make(chan Delivery[BuildRef], 2)
	q.work(t, func(_ context.Context, d Delivery[BuildRef]) error {
		got <- d
		return nil
	})
	first, second := <-got, <-got
	require.Equal(t, interrupted, first.Message.Build)
	require.Equal(t, postponed, second.Message.Build)
	require.Equal(t, 2, first.Attempt)
	q.empties(t)
}

func TestPublish_FullQueueRefusesAndLosesNothing(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 5*time.Second, 10)
	cfg := q.stream.CachedInfo().Config
	cfg.MaxBytes = 4096
	_, err := q.control.js.UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
	accepted := map[BuildID]bool{}
	for err == nil {
		id := NewBuildID()
		if err = BuildRequests.Publish(t.Context(), q.control, "", BuildRef{Build: id}, string(id), string(id)); err == nil {
			accepted[id] = true
		}
		require.Less(t, len(accepted), 1000)
	}
	require.ErrorIs(t, err, ErrFull)
	require.Greater(t, len(accepted), 3)
	got := make(chan BuildID, 1000)
	q.work(t, func(_ context.Context, d Delivery[BuildRef]) error {
		got <- d.Message.Build
		return nil
	})
	for range len(accepted) {
		id := <-got
		require.True(t, accepted[id])
		delete(accepted, id)
	}
	q.empties(t)
	q.publish(t) // there is room again
}

func TestPublish_SameIDIsStoredOnce(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 5*time.Second, 10)
	id := NewBuildID()
	for range 3 {
		require.NoError(t, BuildRequests.Publish(t.Context(), q.control, "", BuildRef{Build: id}, "again", string(id)))
	}
	require.Equal(t, 1, q.waiting(t))
}

func TestPublish_RefusesWhatDoesNotFitTheRow(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, 5*time.Second, 10)
	id := NewBuildID()
	for name, publish := range map[string]func() error{
		"invalid message": func() error { return BuildRequests.Publish(t.Context(), q.control, "", BuildRef{}, "id", string(id)) },
		"no id": func() error {
			return BuildRequests.Publish(t.Context(), q.control, "", BuildRef{Build: id}, "", string(id))
		},
		"parameter missing": func() error { return BuildRequests.Publish(t.Context(), q.control, "", BuildRef{Build: id}, "id") },
		"parameter too many": func() error {
			return BuildRequests.Publish(t.Context(), q.control, "", BuildRef{Build: id}, "id", "a", "b")
		},
		"wildcard": func() error { return BuildRequests.Publish(t.Context(), q.control, "", BuildRef{Build: id}, "id", "*") },
		"more tokens": func() error {
			return BuildRequests.Publish(t.Context(), q.control, "", BuildRef{Build: id}, "id", "a.b")
		},
		"account of none": func() error {
			return BuildRequests.Publish(t.Context(), q.control, "A", BuildRef{Build: id}, "id", "a")
		},
		"no account": func() error {
			return Actions.Publish(t.Context(), q.control, "", Action{}, "id", "a")
		},
	} {
		require.Error(t, publish(), name)
	}
	require.Zero(t, q.waiting(t))
	require.ErrorContains(t, Actions.Work(t.Context(), q.control, nil), "queue of accounts")
	require.NoError(t, Reject(nil))
	require.ErrorIs(t, Reject(errors.ErrUnsupported), errors.ErrUnsupported)
}
