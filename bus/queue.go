package bus

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Publish stores a message in the queue; when it returns nil, the message is on disk and will be delivered at least
// once. account is the receiver's (empty for rows among API servers), id makes it harmless to publish again within ten
// minutes, and params fill the rest of the subject in its order. The error is ErrFull when the queue has no room, and
// ErrUnknown when no answer came in time: publish again with the same id.
func (q Queue[M]) Publish(ctx context.Context, c *Control, account string, msg M, id string, params ...string) error {
	if err := c.publish(ctx, *q.row, account, msg, id, params); err != nil {
		return fmt.Errorf("publish %s: %w", q.row.Name, err)
	}
	return nil
}

// publish is what queues and events have in common. The id is made the account's own: deduplication spans the stream.
func (c *Control) publish(ctx context.Context, row Row, account string, msg Message, id string, params []string) error {
	if (account == "") != (row.Scope == ScopeControl) {
		return fmt.Errorf("account is %q for a row of scope %s", account, row.Scope)
	}
	if id == "" {
		return fmt.Errorf("id is empty")
	}
	values, err := parameters(row, params, false)
	if err != nil {
		return err
	}
	m, err := encode(typeOf(row), streamSubject(row, account, values), msg)
	if err != nil {
		return err
	}
	m.Header.Set(jetstream.MsgIDHeader, row.Name+"."+account+"."+id)
	_, err = c.store(ctx, row.Stream, m)
	return err
}

// parameters assigns values to the placeholders of a row's subject, in their order.
func parameters(row Row, values []string, wildcards bool) (map[string]string, error) {
	all := map[string]string{}
	for token := range strings.SplitSeq(row.Subject, ".") {
		if !strings.HasPrefix(token, "{") || token == accountParam || token == "{self}" {
			continue
		}
		if len(values) == 0 {
			return nil, fmt.Errorf("no value for %s in %s", token, row.Subject)
		}
		v := values[0]
		if wildcards && v == "*" {
			v = ""
		} else if !bucketKey.MatchString(v) || strings.Contains(v, ".") {
			return nil, fmt.Errorf("%q is no value for %s in %s", v, token, row.Subject)
		}
		all[token], values = v, values[1:]
	}
	if len(values) > 0 {
		return nil, fmt.Errorf("%d values too many for %s", len(values), row.Subject)
	}
	return all, nil
}

// Work carries out the queue's messages in an API server until ctx ends; then it waits for the handlers that run and
// returns nil. All API servers share the queue: each message goes to one of them.
func (q Queue[M]) Work(ctx context.Context, c *Control, h Handler[M]) error {
	if q.row.Scope != ScopeControl {
		return fmt.Errorf("work %s: it is the queue of accounts of scope %s", q.row.Name, q.row.Scope)
	}
	w := c.worker(q.row.Stream, sharedConsumer)
	w.done = carry(*q.row, h)
	if err := w.run(ctx); err != nil {
		return fmt.Errorf("work %s: %w", q.row.Name, err)
	}
	return nil
}

// Consume carries out the messages of the connection's own queue until ctx ends; then it waits for the handlers that
// run and returns nil. It outlives restarts of the server and of the API servers. Its error says why the connection
// has ended for good, or is ErrForbidden for a role that has no queue.
func (q Queue[M]) Consume(ctx context.Context, c *Conn, h Handler[M]) error {
	w := c.worker(q.row.Stream)
	w.done = carry(*q.row, h)
	if err := w.run(ctx); err != nil {
		return fmt.Errorf("consume %s: %w", q.row.Name, err)
	}
	return nil
}

// carry decodes a message for its handler.
func carry[M Message](row Row, h Handler[M]) func(ctx context.Context, m jetstream.Msg, attempt int) error {
	return func(ctx context.Context, m jetstream.Msg, attempt int) error {
		msg, err := decode[M](typeOf(row), &nats.Msg{Header: m.Headers(), Data: m.Data()})
		if err != nil {
			return &unreadableError{err}
		}
		return h(ctx, Delivery[M]{Message: msg, Attempt: attempt, Subject: m.Subject()})
	}
}

var errConnectionClosed = fmt.Errorf("%w: the connection is closed", ErrUnreachable)

func (c *Control) worker(stream, consumer string) *worker {
	return &worker{
		nc: c.nc, log: c.log, bury: c.bury, delay: redeliverAfter, slots: make(chan struct{}, handlerSlots),
		open: func(ctx context.Context) (jetstream.Consumer, error) { return c.js.Consumer(ctx, stream, consumer) },
		gone: func() error { return errConnectionClosed },
	}
}

func (c *Conn) worker(stream string) *worker {
	info := jsPrefix + ".CONSUMER.INFO." + stream + "." + ownConsumer
	return &worker{
		nc: c.nc, log: c.log, bury: c.bury, delay: redeliverAfter, slots: make(chan struct{}, handlerSlots),
		open: func(ctx context.Context) (consumer jetstream.Consumer, err error) {
			ctx, forbid := context.WithCancelCause(ctx)
			defer forbid(nil)
			defer c.denials.watch(info, forbid)()
			consumer, err = c.js.Consumer(ctx, stream, ownConsumer)
			if cause := context.Cause(ctx); err != nil && cause != nil {
				err = cause
			}
			return consumer, err
		},
		gone: func() error { return cmp.Or(c.Err(), errConnectionClosed) },
	}
}
