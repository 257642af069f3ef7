package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// Bucket holds the records of one kind: JSON values of type T under keys, each with a revision.
//
// Safety comes from compare-and-set alone: Create, Update and Delete name the revision that the decision was made on,
// and exactly one of several writers wins. A read, a list or a watch may be behind; nothing is decided on it without a
// write that compares. A conflict is not a failure (a cluster can report one although nobody else wrote): read again,
// decide again. Modify does that, and every writer that changes an existing record uses it.
//
// Records are written by API servers of different versions during an upgrade: fields that this one does not know are
// ignored when read, and lost when it writes. So a field is added one release before anything depends on it.
type Bucket[T any] struct {
	c      *Control
	name   string
	stream jetstream.Stream

	mu      sync.Mutex
	full    bool
	checked time.Time // when full was found out
}

// Revision is the version of one record. It grows with each write to the bucket.
type Revision uint64

// Entry is a record in a list or a watch.
type Entry[T any] struct {
	Key      string
	Value    T // zero if Deleted, or if Err is set
	Revision Revision
	Deleted  bool
	Err      error // the stored value is not a T: what it holds is unknown, which is not the same as nothing
}

// bucketKey allows single tokens and tokens joined by dots: no wildcard and no empty token reaches a subject.
var bucketKey = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

const maxBucketKey = 255

// OpenBucket makes the bucket if it does not exist and brings it to this program's layout if it does.
func OpenBucket[T any](ctx context.Context, c *Control, name string) (*Bucket[T], error) {
	ctx, cancel := within(ctx, storeTimeout)
	defer cancel()
	stream, err := c.ensureStream(ctx, bucketConfig(name))
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", name, err)
	}
	return &Bucket[T]{c: c, name: name, stream: stream}, nil
}

func (b *Bucket[T]) subject(key string) (string, error) {
	if len(key) > maxBucketKey || !bucketKey.MatchString(key) {
		return "", Faultf(CodeInvalid, "%q is not a key (tokens of A-Z, a-z, 0-9, _ and -, joined by dots)", key)
	}
	return bucketSubject(b.name, key), nil
}

// Get reads the record from the leader. The error is ErrNotFound if there is none.
func (b *Bucket[T]) Get(ctx context.Context, key string) (T, Revision, error) {
	v, at, _, err := b.read(ctx, key)
	if err != nil {
		err = fmt.Errorf("get %s/%s: %w", b.name, key, err)
	}
	return v, at, err
}

// read returns the record; marker is the revision of the delete marker if the record was deleted.
func (b *Bucket[T]) read(ctx context.Context, key string) (v T, at, marker Revision, err error) {
	subject, err := b.subject(key)
	if err != nil {
		return v, 0, 0, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	m, err := b.last(ctx, subject)
	if err != nil {
		return v, 0, 0, err
	}
	if isMarker(m.Header) {
		return v, 0, Revision(m.Sequence), ErrNotFound
	}
	if err := json.Unmarshal(m.Data, &v); err != nil {
		var none T
		return none, 0, 0, fmt.Errorf("decode revision %d: %w", m.Sequence, err)
	}
	return v, Revision(m.Sequence), 0, nil
}

// last repeats the read until the deadline of ctx while no leader answers.
func (b *Bucket[T]) last(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	for attempt := 0; ; attempt++ {
		once, cancel := context.WithTimeout(ctx, storeAttempt)
		m, err := b.stream.GetLastMsgForSubject(once, subject)
		cancel()
		switch {
		case err == nil:
			return m, nil
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return nil, ErrNotFound
		case b.c.nc.IsClosed():
			return nil, err
		}
		if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.Code < 429 {
			return nil, err
		}
		if sleep(ctx, backoff(attempt, 50*time.Millisecond, time.Second)) != nil {
			return nil, err
		}
	}
}

// Create writes the record if there is none. The error is ErrConflict if there is one. It is ErrFull already while
// there is room left for the changes of existing records: what has begun can go on to its end.
func (b *Bucket[T]) Create(ctx context.Context, key string, v T) (Revision, error) {
	ctx, cancel := within(ctx, storeTimeout)
	defer cancel()
	if err := b.hasRoom(ctx); err != nil {
		return 0, fmt.Errorf("create %s/%s: %w", b.name, key, err)
	}
	at, err := b.put(ctx, key, v, 0)
	if errors.Is(err, ErrConflict) {
		// The key may have been used before: then its delete marker is what must still be there.
		if _, _, marker, readErr := b.read(ctx, key); marker != 0 && errors.Is(readErr, ErrNotFound) {
			at, err = b.put(ctx, key, v, marker)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("create %s/%s: %w", b.name, key, err)
	}
	return at, nil
}

// Update writes the record if its revision is still at. The error is ErrConflict if it is not, whether the record was
// changed or deleted.
func (b *Bucket[T]) Update(ctx context.Context, key string, v T, at Revision) (Revision, error) {
	if at == 0 {
		return 0, fmt.Errorf("update %s/%s: revision 0 is that of no record", b.name, key)
	}
	next, err := b.put(ctx, key, v, at)
	if err != nil {
		return 0, fmt.Errorf("update %s/%s: %w", b.name, key, err)
	}
	return next, nil
}

// Delete removes the record if its revision is still at. The error is ErrConflict if it is not.
func (b *Bucket[T]) Delete(ctx context.Context, key string, at Revision) error {
	if at == 0 {
		return fmt.Errorf("delete %s/%s: revision 0 is that of no record", b.name, key)
	}
	subject, err := b.subject(key)
	if err == nil {
		m := nats.NewMsg(subject)
		m.Header.Set(headerOperation, operationPurge)
		m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
		m.Header.Set(jetstream.MsgTTLHeader, markerTTL.String())
		if _, err = b.write(ctx, m, at); errors.Is(err, ErrFull) {
			err = b.purge(ctx, subject, at)
		}
	}
	if err != nil {
		return fmt.Errorf("delete %s/%s: %w", b.name, key, err)
	}
	return nil
}

// purge deletes without a marker, for which a full bucket has no room: a watch does not see it. It compares too, because
// a record that was changed has no message at its old revision any more.
func (b *Bucket[T]) purge(ctx context.Context, subject string, at Revision) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	m, err := b.last(ctx, subject)
	if err != nil || m.Sequence != uint64(at) {
		return errors.Join(ErrConflict, err)
	}
	if err := b.stream.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(uint64(at)+1)); err != nil {
		return err
	}
	if _, err := b.last(ctx, subject); !errors.Is(err, ErrNotFound) {
		return errors.Join(ErrConflict, err)
	}
	return nil
}

const (
	// roomForNew is the part of a bucket, in percent, that new records may fill.
	roomForNew = 85
	// roomCheck is how old the knowledge about a bucket's size may be.
	roomCheck = time.Second
)

// hasRoom returns ErrFull if the bucket takes no new records. One caller a second looks; if it cannot, the write itself
// will tell.
func (b *Bucket[T]) hasRoom(ctx context.Context) error {
	b.mu.Lock()
	due := time.Since(b.checked) > roomCheck
	if due {
		b.checked = time.Now()
	}
	full := b.full
	b.mu.Unlock()
	if due {
		ctx, cancel := context.WithTimeout(ctx, roomCheck)
		defer cancel()
		info, err := b.stream.Info(ctx)
		full = err == nil && info.Config.MaxBytes > 0 && info.State.Bytes > uint64(info.Config.MaxBytes)*roomForNew/100
		b.mu.Lock()
		b.full = full
		b.mu.Unlock()
	}
	if full {
		return fmt.Errorf("%w of records, try again later", ErrFull)
	}
	return nil
}

func (b *Bucket[T]) put(ctx context.Context, key string, v T, at Revision) (Revision, error) {
	subject, err := b.subject(key)
	if err != nil {
		return 0, err
	}
	if valid, ok := any(v).(interface{ Validate() error }); ok {
		if err := valid.Validate(); err != nil {
			return 0, fmt.Errorf("invalid record: %w", err)
		}
	}
	m := nats.NewMsg(subject)
	if m.Data, err = json.Marshal(v); err != nil {
		return 0, fmt.Errorf("encode: %w", err)
	}
	return b.write(ctx, m, at)
}

// write gives each write an id of its own, by which a repeated attempt recognizes what an earlier one has stored.
func (b *Bucket[T]) write(ctx context.Context, m *nats.Msg, at Revision) (Revision, error) {
	m.Header.Set(jetstream.MsgIDHeader, nuid.Next())
	seq, err := b.c.store(ctx, bucketStream(b.name), m, jetstream.WithExpectLastSequencePerSubject(uint64(at)))
	return Revision(seq), err
}

// Modify reads the record, lets decide say what it shall be, and writes that if the record is still what decide saw;
// if it is not, it starts again. decide gets the zero value and false when there is no record, and returns false to
// leave everything as it is. It may run several times, also after its own outcome was stored: it decides from what it
// sees and has no effects of its own. Its error ends Modify and is returned as it is. Without a deadline in ctx,
// Modify tries for 30 s.
func (b *Bucket[T]) Modify(ctx context.Context, key string, decide func(cur T, exists bool) (next T, write bool, err error)) (T, Revision, error) {
	ctx, cancel := within(ctx, modifyTimeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		v, at, err := b.modifyOnce(ctx, key, decide)
		if !errors.Is(err, ErrConflict) {
			return v, at, err
		}
		if sleep(ctx, backoff(attempt, time.Millisecond, 500*time.Millisecond)) != nil {
			return v, 0, err
		}
	}
}

const modifyTimeout = 30 * time.Second

func (b *Bucket[T]) modifyOnce(ctx context.Context, key string, decide func(T, bool) (T, bool, error)) (T, Revision, error) {
	var none T
	cur, at, err := b.Get(ctx, key)
	exists := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return none, 0, err
	}
	next, write, err := decide(cur, exists)
	if err != nil || !write {
		return cur, at, err
	}
	if exists {
		at, err = b.Update(ctx, key, next, at)
	} else {
		at, err = b.Create(ctx, key, next)
	}
	if err != nil {
		return none, 0, err
	}
	return next, at, nil
}
