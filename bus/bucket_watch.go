package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// readRange is what a bounded read returns: at most limit messages, from a sequence on.
type readRange struct {
	subject string
	from    uint64
	limit   int  // 0 means all
	newest  bool // only the last message of each subject
}

const (
	readBatch   = 500
	readTimeout = 30 * time.Second
	readPause   = 5 * time.Second // without a message, ends a read as failed
)

// read calls each for the messages that the stream holds now. It leaves no consumer behind.
func (c *Control) read(ctx context.Context, stream string, r readRange, each func(jetstream.Msg, *jetstream.MsgMetadata)) error {
	ctx, cancel := within(ctx, readTimeout)
	defer cancel()
	cfg := jetstream.ConsumerConfig{
		FilterSubject: r.subject, AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: readTimeout,
	}
	switch {
	case r.newest:
		cfg.DeliverPolicy = jetstream.DeliverLastPerSubjectPolicy
	case r.from > 1:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, r.from
	}
	consumer, err := c.js.CreateConsumer(ctx, stream, cfg)
	if err != nil {
		return err
	}
	info := consumer.CachedInfo()
	defer func() {
		ctx, cancel := bounded(context.WithoutCancel(ctx))
		defer cancel()
		if err := c.js.DeleteConsumer(ctx, stream, info.Name); err != nil {
			c.log.Debug("consumer of a read left to its end", "err", err) // the server removes it after InactiveThreshold
		}
	}()
	left := int(info.NumPending) //nolint:gosec // bounded by the stream's limits
	if r.limit > 0 {
		left = min(left, r.limit)
	}
	return fetchAll(ctx, consumer, left, each)
}

// fetchAll fails unless exactly left messages come, without a gap.
func fetchAll(ctx context.Context, consumer jetstream.Consumer, left int, each func(jetstream.Msg, *jetstream.MsgMetadata)) error {
	next := uint64(1)
	for left > 0 {
		once, cancel := context.WithTimeout(ctx, readPause)
		batch, err := consumer.Fetch(min(left, readBatch), jetstream.FetchContext(once))
		if err != nil {
			cancel()
			return err
		}
		got := 0
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				continue
			}
			if meta.Sequence.Consumer != next {
				break
			}
			next++
			got++
			each(m, meta)
			if meta.NumPending == 0 { // some were deleted meanwhile
				left = got
				break
			}
		}
		cancel()
		if got == 0 {
			return errors.Join(errors.New("the read was interrupted"), batch.Error())
		}
		left -= got
	}
	return nil
}

// List returns every record, in no order. It may be behind, and does not tell when: see Bucket. A record that cannot be
// decoded fails the whole list, because a list without it would look like a bucket without it.
func (b *Bucket[T]) List(ctx context.Context) ([]Entry[T], error) {
	entries := []Entry[T]{}
	var errs []error
	err := b.c.read(ctx, bucketStream(b.name), readRange{subject: bucketSubject(b.name, ">"), newest: true}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		e := b.entry(m, meta)
		if e.Err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.Key, e.Err))
		}
		if !e.Deleted {
			entries = append(entries, e)
		}
	})
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("list %s: %w", b.name, err)
	}
	return entries, nil
}

func (b *Bucket[T]) entry(m jetstream.Msg, meta *jetstream.MsgMetadata) Entry[T] {
	e := Entry[T]{Key: strings.TrimPrefix(m.Subject(), bucketSubject(b.name, "")), Revision: Revision(meta.Sequence.Stream)}
	if isMarker(m.Headers()) {
		e.Deleted = true
		return e
	}
	var v T
	if e.Err = json.Unmarshal(m.Data(), &v); e.Err == nil {
		e.Value = v
	}
	return e
}

// Watch calls handle for every record that exists, then once with synced and no entry, then for each change, one at a
// time, until ctx ends; then it returns nil. It goes on by itself after the connection or the server was away, and then
// shows at least the newest revision of what has changed; it may show the same revision twice. What it shows may be
// behind, so that nothing is decided on it without a write that compares: see Bucket.
func (b *Bucket[T]) Watch(ctx context.Context, handle func(e Entry[T], synced bool)) error {
	w := watch{after: 0}
	for attempt := 0; ctx.Err() == nil; attempt++ {
		before := w.after
		err := b.watch(ctx, &w, handle)
		switch {
		case ctx.Err() != nil:
		case b.c.nc.IsClosed():
			return fmt.Errorf("watch %s: %w", b.name, errConnectionClosed)
		default:
			b.c.log.Debug("watch interrupted", "bucket", b.name, "err", err)
			if w.after != before {
				attempt = 0
			}
			_ = sleep(ctx, backoff(attempt, 50*time.Millisecond, 5*time.Second)) // the loop looks at ctx
		}
	}
	return nil
}

// watch is how far a Watch has come.
type watch struct {
	after  uint64 // the last sequence shown
	synced bool
}

// watch shows what comes until something fails.
func (b *Bucket[T]) watch(ctx context.Context, w *watch, handle func(e Entry[T], synced bool)) error {
	cfg := jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{bucketSubject(b.name, ">")}, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, MaxResetAttempts: 1,
	}
	if w.synced {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, w.after+1
	}
	consumer, err := b.c.js.OrderedConsumer(ctx, bucketStream(b.name), cfg)
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(readBatch), jetstream.PullHeartbeat(5*time.Second), jetstream.PullExpiry(pullExpiry))
	if err != nil {
		return err
	}
	defer messages.Stop()
	var none Entry[T]
	if !w.synced && consumer.CachedInfo().NumPending == 0 {
		w.synced = true
		handle(none, true)
	}
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		handle(b.entry(m, meta), false)
		w.after = max(w.after, meta.Sequence.Stream)
		if !w.synced && meta.NumPending == 0 {
			w.synced = true
			handle(none, true)
		}
	}
}
