package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrUnknown is returned by a write whose acknowledgement did not come before its deadline: it may be stored, or be
// stored later, or be lost. The caller reads again, or repeats the write with the same id.
var ErrUnknown = errors.New("outcome unknown")

const (
	// storeTimeout bounds a write whose context has no deadline. It spans the time that a cluster needs to elect a
	// new leader, in which all writes fail.
	storeTimeout = 20 * time.Second
	// storeAttempt is how long one attempt waits for its acknowledgement.
	storeAttempt = 5 * time.Second

	// The server's error codes that the client library has no names for.
	codeDuplicateInFlight jetstream.ErrorCode = 10158 // the first copy is still on its way to the quorum
	codeStoreFailed       jetstream.ErrorCode = 10077
	codeMemoryExceeded    jetstream.ErrorCode = 10028
	codeNoResources       jetstream.ErrorCode = 10023
	codeStorageExceeded   jetstream.ErrorCode = 10047
	codeMessageTooLarge   jetstream.ErrorCode = 10054
)

// store writes a message to a stream and waits until it is on disk (on a quorum, in a cluster). An attempt without an
// acknowledgement is repeated until the deadline under the same message id, so that the stream keeps one copy. The
// error is ErrConflict when the message expects a last sequence of its subject that is not the last one any more,
// ErrFull, or ErrUnknown.
func (c *Control) store(ctx context.Context, stream string, m *nats.Msg, opts ...jetstream.PublishOpt) (seq uint64, err error) {
	ctx, cancel := within(ctx, storeTimeout)
	defer cancel()
	opts = append(opts, jetstream.WithExpectStream(stream))
	uncertain := false
	for attempt := 0; ; attempt++ {
		seq, err := c.storeOnce(ctx, m, opts)
		switch {
		case err == nil:
			return seq, nil
		case errors.Is(err, ErrConflict) && uncertain:
			// The winner may be our own earlier attempt: a single server compares sequences before it compares ids.
			if seq, ours := c.stored(ctx, stream, m); ours {
				return seq, nil
			}
			return 0, err
		case errors.Is(err, ErrConflict), errors.Is(err, ErrFull), isRefusal(err):
			return 0, err
		}
		uncertain = uncertain || !errors.Is(err, jetstream.ErrNoStreamResponse)
		if c.nc.IsClosed() || sleep(ctx, backoff(attempt, 50*time.Millisecond, time.Second)) != nil {
			if !uncertain {
				return 0, err
			}
			return 0, fmt.Errorf("%w: %w", ErrUnknown, err)
		}
	}
}

func (c *Control) storeOnce(ctx context.Context, m *nats.Msg, opts []jetstream.PublishOpt) (uint64, error) {
	once, cancel := context.WithTimeout(ctx, storeAttempt)
	defer cancel()
	ack, err := c.js.PublishMsg(once, m, opts...)
	if err != nil {
		return 0, storeError(err)
	}
	return ack.Sequence, nil
}

// stored reports whether the last message of m's subject is m itself.
func (c *Control) stored(ctx context.Context, stream string, m *nats.Msg) (uint64, bool) {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return 0, false
	}
	last, err := s.GetLastMsgForSubject(ctx, m.Subject)
	id := m.Header.Get(jetstream.MsgIDHeader)
	if err != nil || id == "" || last.Header.Get(jetstream.MsgIDHeader) != id {
		return 0, false
	}
	return last.Sequence, true
}

// storeError gives the client library's error the bus's meaning.
func storeError(err error) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return Faultf(CodeInvalid, "the message is larger than the bus allows")
	}
	api, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return err
	}
	switch api.ErrorCode {
	case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case codeNoResources, codeStorageExceeded, codeMemoryExceeded:
		return fmt.Errorf("%w, try again later: %w", ErrFull, err)
	case codeMessageTooLarge:
		return Faultf(CodeInvalid, "the message is larger than its stream allows")
	case codeStoreFailed: // any failure of the store; the limits are told apart by their text alone
		if strings.HasPrefix(api.Description, "maximum ") {
			return fmt.Errorf("%w, try again later: %w", ErrFull, err)
		}
	}
	return err
}

// isRefusal reports whether the server has answered that it did not store the message, and never will.
func isRefusal(err error) bool {
	if _, ok := errors.AsType[*Fault](err); ok {
		return true
	}
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && api.ErrorCode != codeDuplicateInFlight && api.Code < 429
}

// within gives a context without a deadline one.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}
