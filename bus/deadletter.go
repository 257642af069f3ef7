package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// DeathCause is why a message could not be carried out.
type DeathCause string

// The causes.
const (
	DeadUnreadable DeathCause = "unreadable" // not a valid message of its queue
	DeadRejected   DeathCause = "rejected"   // its handler said that it can never succeed, or panicked
	DeadExhausted  DeathCause = "exhausted"  // it was tried as often as its queue allows
)

// deadLetterHead is what is known about a dead letter besides the message itself.
type deadLetterHead struct {
	Cause    DeathCause
	Reason   string
	Attempts int
}

// DeadLetter is a message that could not be carried out.
type DeadLetter struct {
	Sequence uint64 // in the dead letters
	Stream   string // where the message was
	Subject  string
	Type     string // Depot-Type
	Payload  []byte
	Cause    DeathCause
	Reason   string
	Attempts int
	At       time.Time // when it was given up
}

// The headers of a dead letter.
const (
	headerDeadStream   = "Depot-Dead-Stream"
	headerDeadSubject  = "Depot-Dead-Subject"
	headerDeadCause    = "Depot-Dead-Cause"
	headerDeadReason   = "Depot-Dead-Reason"
	headerDeadAttempts = "Depot-Dead-Attempts"
)

// buryStored copies a message, as its stream holds it, to the dead letters. Burying the same message again is harmless.
func (c *Control) buryStored(ctx context.Context, stream string, m *jetstream.RawStreamMsg, head deadLetterHead) error {
	letter := nats.NewMsg(subjectDeadLetters + "." + stream + "." + m.Subject)
	letter.Data = m.Data
	letter.Header.Set(jetstream.MsgIDHeader, fmt.Sprintf("%s.%d.%d", stream, m.Sequence, m.Time.UnixNano()))
	letter.Header.Set(headerType, m.Header.Get(headerType))
	letter.Header.Set(headerDeadStream, stream)
	letter.Header.Set(headerDeadSubject, m.Subject)
	letter.Header.Set(headerDeadCause, string(head.Cause))
	letter.Header.Set(headerDeadReason, oneLine(head.Reason))
	letter.Header.Set(headerDeadAttempts, strconv.Itoa(head.Attempts))
	if _, err := c.store(ctx, streamDeadLetters, letter); err != nil {
		return fmt.Errorf("store dead letter: %w", err)
	}
	return nil
}

// bury is for a worker of the API server's own queues.
func (c *Control) bury(ctx context.Context, m jetstream.Msg, head deadLetterHead) error {
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	raw := jetstream.RawStreamMsg{Subject: m.Subject(), Sequence: meta.Sequence.Stream, Header: m.Headers(), Data: m.Data(), Time: meta.Timestamp}
	return c.buryStored(ctx, meta.Stream, &raw, head)
}

// DeadLetters returns up to limit dead letters, the oldest first, that come after the sequence number.
func (c *Control) DeadLetters(ctx context.Context, after uint64, limit int) ([]DeadLetter, error) {
	var letters []DeadLetter
	err := c.read(ctx, streamDeadLetters, readRange{subject: subjectDeadLetters + ".>", from: after + 1, limit: limit}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		h := m.Headers()
		attempts, _ := strconv.Atoi(h.Get(headerDeadAttempts)) // 0 if somebody else wrote it
		letters = append(letters, DeadLetter{
			Sequence: meta.Sequence.Stream, Stream: h.Get(headerDeadStream), Subject: h.Get(headerDeadSubject), Type: h.Get(headerType), Payload: m.Data(),
			Cause: DeathCause(h.Get(headerDeadCause)), Reason: h.Get(headerDeadReason), Attempts: attempts, At: meta.Timestamp,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return letters, nil
}

// Rejection is a cloud-agent's word that it will never carry out a message of its queue. The agent may not write to
// any stream, so an API server copies the message to the dead letters; then the agent ends it.
type Rejection struct {
	Stream   string     `json:"stream"`
	Sequence uint64     `json:"sequence"`
	Attempts int        `json:"attempts"`
	Cause    DeathCause `json:"cause"`
	Reason   string     `json:"reason"` // one line
}

// Validate checks the form.
func (m Rejection) Validate() error {
	errs := []error{m.Cause.Validate()}
	if m.Stream == "" || m.Sequence == 0 {
		errs = append(errs, errors.New("stream or sequence is empty"))
	}
	return errors.Join(errs...)
}

// Validate refuses an unknown cause.
func (d DeathCause) Validate() error {
	switch d {
	case DeadUnreadable, DeadRejected, DeadExhausted:
		return nil
	}
	return fmt.Errorf("%q is not a cause of a dead letter", string(d))
}

// bury is for a worker of an agent's queue.
func (c *Conn) bury(ctx context.Context, m jetstream.Msg, head deadLetterHead) error {
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	_, err = RejectDelivery.Call(ctx, c, Rejection{Stream: meta.Stream, Sequence: meta.Sequence.Stream, Attempts: head.Attempts, Cause: head.Cause, Reason: oneLine(head.Reason)})
	return err
}

// serveDeadLetters buries what agents reject and what the server has given up delivering, until Close.
func (c *Control) serveDeadLetters(ctx context.Context) error {
	if err := c.ensureShared(ctx, streamExhausted, -1); err != nil { // tried until it succeeds: nobody would bury it
		return err
	}
	if err := RejectDelivery.Serve(c.life, c, c.buryRejected); err != nil {
		return err
	}
	w := c.worker(streamExhausted, sharedConsumer)
	w.done = c.buryExhausted
	c.work.Go(func() {
		if err := w.run(c.life); err != nil {
			c.log.Error("dead letters stopped", "err", err)
		}
	})
	return nil
}

// buryRejected lets an account bury a message of its own queue only.
func (c *Control) buryRejected(ctx context.Context, from Caller, r Rejection) (Empty, error) {
	for row := range agentQueues {
		if row.Stream != r.Stream {
			continue
		}
		m, err := c.storedMessage(ctx, r.Stream, r.Sequence)
		if err != nil {
			return Empty{}, err
		}
		own := strings.TrimSuffix(streamSubject(row, from.Account, nil), "*")
		if m == nil || !strings.HasPrefix(m.Subject, own) {
			return Empty{}, Faultf(CodeNotFound, "no message %d in the queue", r.Sequence)
		}
		return Empty{}, c.buryStored(ctx, r.Stream, m, deadLetterHead{Cause: r.Cause, Reason: r.Reason, Attempts: r.Attempts})
	}
	return Empty{}, Faultf(CodeNotFound, "no queue %q", r.Stream)
}

// exhaustion is the server's note about a message that it has given up delivering and keeps in the stream.
type exhaustion struct {
	Stream     string `json:"stream"`
	Consumer   string `json:"consumer"`
	Sequence   uint64 `json:"stream_seq"`
	Deliveries int    `json:"deliveries"`
}

func (c *Control) buryExhausted(ctx context.Context, note jetstream.Msg, _ int) error {
	var e exhaustion
	if err := json.Unmarshal(note.Data(), &e); err != nil {
		return &unreadableError{err}
	}
	m, err := c.storedMessage(ctx, e.Stream, e.Sequence)
	if err != nil || m == nil {
		return err // without one, it was buried before
	}
	head := deadLetterHead{Cause: DeadExhausted, Reason: fmt.Sprintf("given up after %d deliveries to %s", e.Deliveries, e.Consumer), Attempts: e.Deliveries}
	if err := c.buryStored(ctx, e.Stream, m, head); err != nil {
		return err
	}
	c.log.Error("message to the dead letters", "cause", string(head.Cause), "subject", m.Subject, "seq", e.Sequence, "attempt", e.Deliveries)
	stream, err := c.js.Stream(ctx, e.Stream)
	if err != nil {
		return err
	}
	if err := stream.DeleteMsg(ctx, e.Sequence); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("delete message %d of %s: %w", e.Sequence, e.Stream, err)
	}
	return nil
}

// storedMessage returns nil if the stream does not hold the message any more.
func (c *Control) storedMessage(ctx context.Context, stream string, seq uint64) (*jetstream.RawStreamMsg, error) {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", stream, err)
	}
	m, err := s.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read message %d of %s: %w", seq, stream, err)
	}
	return m, nil
}
