package bus

import (
	"context"
	"errors"
	"time"
)

var errStub = errors.New("not yet")

func (e Events[M]) Subscribe(ctx context.Context, c *Conn, handle func(M), params ...string) error {
	return errStub
}

// Consume runs an agent's queue until ctx ends.
func (q Queue[M]) Consume(ctx context.Context, c *Conn, h Handler[M]) error { return errStub }

type Delivery[M Message] struct {
	Message M
	Attempt int // 1 = first delivery
	Subject string
}
type Handler[M Message] func(ctx context.Context, d Delivery[M]) error

func Reject(err error) error         { return err }
func Postpone(d time.Duration) error { return nil }

// Publish: account "" for ScopeControl rows; id = dedup id
func (q Queue[M]) Publish(ctx context.Context, c *Control, account string, msg M, id string, params ...string) error {
	return errStub
}
func (q Queue[M]) Work(ctx context.Context, c *Control, h Handler[M]) error { return errStub } // ScopeControl rows: shared durable
func (e Events[M]) Publish(ctx context.Context, c *Control, account string, msg M, id string, params ...string) error {
	return errStub
}
func (e Events[M]) Replay(ctx context.Context, c *Control, account string, params ...string) ([]M, error) {
	return nil, errStub
}

// Bucket is a typed JetStream KV bucket.
type Bucket[T any] struct{}
type Revision uint64
type Entry[T any] struct {
	Key      string
	Value    T
	Revision Revision
	Deleted  bool
}

func OpenBucket[T any](ctx context.Context, c *Control, name string) (*Bucket[T], error) {
	return nil, errStub
}
func (b *Bucket[T]) Get(ctx context.Context, key string) (T, Revision, error) {
	var t T
	return t, 0, errStub
}
func (b *Bucket[T]) Create(ctx context.Context, key string, v T) (Revision, error) { return 0, errStub }
func (b *Bucket[T]) Update(ctx context.Context, key string, v T, at Revision) (Revision, error) {
	return 0, errStub
}
func (b *Bucket[T]) Delete(ctx context.Context, key string, at Revision) error { return errStub }

// List returns every entry.
func (b *Bucket[T]) List(ctx context.Context) ([]Entry[T], error) { return nil, errStub }

// Watch calls handle for every entry that exists, then once with synced=true, then for each change, until ctx ends.
func (b *Bucket[T]) Watch(ctx context.Context, handle func(e Entry[T], synced bool)) error {
	return errStub
}

// To be real in streams.go:

// ensureStreams makes every stream of the table.
func (c *Control) ensureStreams(ctx context.Context) error { return nil }

// ensureConsumer makes the durable consumer of a connection's account, named by it.
func (c *Control) ensureConsumer(ctx context.Context, account string) error { return nil }

// deleteConsumer removes it and what waits for it; an account that has none is fine.
func (c *Control) deleteConsumer(ctx context.Context, account string) error { return nil }
