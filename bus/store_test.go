package bus

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// faultyStore is JetStream whose writes fail in the ways that a single healthy server never shows.
type faultyStore struct {
	jetstream.JetStream
	fault func() writeFault
}

type writeFault int

const (
	noFault          writeFault = iota
	lost                        // not stored, no answer
	storedUnanswered            // stored, no answer
	spurious                    // not stored, and reported as a conflict that nobody caused, as a cluster does
)

func (f *faultyStore) PublishMsg(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	switch f.fault() {
	case lost:
		return nil, context.DeadlineExceeded
	case storedUnanswered:
		if _, err := f.JetStream.PublishMsg(ctx, m, opts...); err != nil {
			return nil, err
		}
		return nil, nats.ErrTimeout
	case spurious:
		return nil, &jetstream.APIError{Code: 400, ErrorCode: jetstream.JSErrCodeStreamWrongLastSequenceConstant, Description: "wrong last sequence"}
	case noFault:
	}
	return f.JetStream.PublishMsg(ctx, m, opts...)
}

// newFaultyBucket makes a bucket whose writes fail as fault says, once it is open.
func newFaultyBucket(t *testing.T, fault func() writeFault) (*Control, *Bucket[int]) {
	t.Helper()
	c := newQueueTest(t, ackWait, maxDeliver).control
	c.js = &faultyStore{c.js, fault}
	b, err := OpenBucket[int](t.Context(), c, "numbers")
	require.NoError(t, err)
	return c, b
}

// first returns fault once and no fault after that.
func first(fault writeFault) func() writeFault {
	var used atomic.Bool
	return func() writeFault {
		if used.Swap(true) {
			return noFault
		}
		return fault
	}
}

func TestBucket_WriteWithoutAnswerIsRepeatedAndCountsOnce(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]writeFault{"stored": storedUnanswered, "lost": lost} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			next := func() writeFault { return noFault }
			_, b := newFaultyBucket(t, func() writeFault { return next() })

			next = first(fault)
			created, err := b.Create(t.Context(), "n", 1)
			require.NoError(t, err)
			next = first(fault)
			updated, err := b.Update(t.Context(), "n", 2, created)
			require.NoError(t, err)
			require.Equal(t, created+1, updated)
			got, at, err := b.Get(t.Context(), "n")
			require.NoError(t, err)
			require.Equal(t, 2, got)
			require.Equal(t, updated, at)
			next = first(fault)
			require.NoError(t, b.Delete(t.Context(), "n", at))
			_, _, err = b.Get(t.Context(), "n")
			require.ErrorIs(t, err, ErrNotFound)
		})
	}
}

func TestBucket_WriteThatNobodyAnswersIsUnknown(t *testing.T) {
	t.Parallel()
	faults := storedUnanswered
	_, b := newFaultyBucket(t, func() writeFault { return faults })
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	faults = lost
	_, err := b.Create(ctx, "n", 1)
	require.ErrorIs(t, err, ErrUnknown)
	require.NotErrorIs(t, err, ErrConflict)
}

func TestBucket_ModifyIsExactUnderFaults(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	_, b := newFaultyBucket(t, func() writeFault {
		mu.Lock()
		defer mu.Unlock()
		if random.IntN(3) > 0 {
			return noFault
		}
		return []writeFault{lost, storedUnanswered, spurious}[random.IntN(3)]
	})
	const writers, increments = 4, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range increments {
				// Each has a record of its own: that an unanswered write of a SHARED counter is not counted twice
				// cannot be promised, when somebody else has already written over it.
				_, _, err := b.Modify(t.Context(), strconv.Itoa(w), func(cur int, _ bool) (int, bool, error) { return cur + 1, true, nil })
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for w := range writers {
		got, _, err := b.Get(t.Context(), strconv.Itoa(w))
		require.NoError(t, err)
		require.Equal(t, increments, got)
	}
}

func TestBucket_ModifyReturnsWhatDecideSays(t *testing.T) {
	t.Parallel()
	writes := 0
	_, b := newFaultyBucket(t, func() writeFault { writes++; return noFault })
	got, at, err := b.Modify(t.Context(), "n", func(cur int, exists bool) (int, bool, error) {
		require.False(t, exists)
		return 0, false, nil
	})
	require.NoError(t, err)
	require.Zero(t, got)
	require.Zero(t, at)
	_, _, err = b.Modify(t.Context(), "n", func(int, bool) (int, bool, error) { return 1, true, context.Canceled })
	require.Equal(t, context.Canceled, err)
	require.Zero(t, writes)
	got, at, err = b.Modify(t.Context(), "n", func(int, bool) (int, bool, error) { return 7, true, nil })
	require.NoError(t, err)
	require.Equal(t, 7, got)
	require.NotZero(t, at)
}

func TestBucket_ConflictThatNeverEndsIsAConflict(t *testing.T) {
	t.Parallel()
	fault := noFault
	_, b := newFaultyBucket(t, func() writeFault { return fault })
	at, err := b.Create(t.Context(), "n", 1)
	require.NoError(t, err)
	fault = spurious
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, _, err = b.Modify(ctx, "n", func(int, bool) (int, bool, error) { return 2, true, nil })
	require.ErrorIs(t, err, ErrConflict)
	_, err = b.Update(t.Context(), "n", 2, at)
	require.ErrorIs(t, err, ErrConflict)
}

func TestBucket_RefusesKeysThatAreNoTokens(t *testing.T) {
	t.Parallel()
	_, b := newFaultyBucket(t, func() writeFault { return noFault })
	for _, key := range []string{"", ".", "a.", ".a", "a..b", "*", "a.*", ">", "a b", "a/b", "é", string(make([]byte, 300))} {
		_, err := b.Create(t.Context(), key, 1)
		require.ErrorIs(t, err, CodeInvalid, key)
		_, _, err = b.Get(t.Context(), key)
		require.ErrorIs(t, err, CodeInvalid, key)
	}
}

func TestBucket_UndecodableRecordIsUnknownNotAbsent(t *testing.T) {
	t.Parallel()
	for name, stored := range map[string]string{"wrong type": `"one"`, "trailing data": `1 2`, "nothing": ``} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, b := newFaultyBucket(t, func() writeFault { return noFault })
			_, err := b.Create(t.Context(), "good", 1)
			require.NoError(t, err)
			_, err = c.js.Publish(t.Context(), bucketSubject("numbers", "bad"), []byte(stored))
			require.NoError(t, err)
			_, _, err = b.Get(t.Context(), "bad")
			require.Error(t, err)
			require.NotErrorIs(t, err, ErrNotFound)
			_, err = b.List(t.Context())
			require.ErrorContains(t, err, "bad")
			ctx, cancel := context.WithCancel(t.Context())
			seen := map[string]bool{}
			require.NoError(t, b.Watch(ctx, func(e Entry[int], synced bool) {
				if synced {
					cancel()
					return
				}
				seen[e.Key] = e.Err != nil
			}))
			require.Equal(t, map[string]bool{"good": false, "bad": true}, seen)
		})
	}
}

func TestBucket_IgnoresFieldsOfANewerVersion(t *testing.T) {
	t.Parallel()
	c := newQueueTest(t, ackWait, maxDeliver).control
	newer, err := OpenBucket[map[string]any](t.Context(), c, "records")
	require.NoError(t, err)
	_, err = newer.Create(t.Context(), "a", map[string]any{"build": "bld-aaaaaaaaaaaaaaaa", "since": "tomorrow"})
	require.NoError(t, err)
	older, err := OpenBucket[BuildRef](t.Context(), c, "records")
	require.NoError(t, err)
	got, _, err := older.Get(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, BuildRef{Build: "bld-aaaaaaaaaaaaaaaa"}, got)
	_, err = older.Create(t.Context(), "b", BuildRef{})
	require.ErrorContains(t, err, "invalid record")
}

func TestBucket_FullBucketRefusesNewRecordsButLetsOldOnesChangeAndEnd(t *testing.T) {
	t.Parallel()
	c, b := newFaultyBucket(t, func() writeFault { return noFault })
	cfg := b.stream.CachedInfo().Config
	cfg.MaxBytes = 16 << 10
	_, err := c.js.UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
	n := 0
	for ; err == nil && n < 1000; n++ {
		b.checked = time.Time{}
		_, err = b.Create(t.Context(), "key-"+strconv.Itoa(n), n)
	}
	require.ErrorIs(t, err, ErrFull)
	require.Greater(t, n, 10)
	_, at, err := b.Get(t.Context(), "key-1")
	require.NoError(t, err)
	at, err = b.Update(t.Context(), "key-1", -1, at)
	require.NoError(t, err)
	require.NoError(t, b.Delete(t.Context(), "key-1", at))

	// Even where somebody has filled the last byte, records can be deleted.
	info, err := b.stream.Info(t.Context())
	require.NoError(t, err)
	cfg.MaxBytes = int64(info.State.Bytes)
	_, err = c.js.UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
	_, at, err = b.Get(t.Context(), "key-2")
	require.NoError(t, err)
	_, err = b.Update(t.Context(), "key-2", -1, at)
	require.ErrorIs(t, err, ErrFull)
	require.ErrorIs(t, b.Delete(t.Context(), "key-2", at-1), ErrConflict)
	require.NoError(t, b.Delete(t.Context(), "key-2", at))
	_, _, err = b.Get(t.Context(), "key-2")
	require.ErrorIs(t, err, ErrNotFound)
	list, err := b.List(t.Context())
	require.NoError(t, err)
	require.Len(t, list, n-3) // the refused one and the two deleted ones
}

func TestPublish_WithoutAnswerIsRepeatedAndStoredOnce(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, ackWait, maxDeliver)
	q.control.js = &faultyStore{q.control.js, first(storedUnanswered)}
	q.publish(t)
	require.Equal(t, 1, q.waiting(t))
}
