package bus

import (
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go"
)

const (
	// headerType names the payload's type and version.
	headerType = "Depot-Type"
	// headerRefused names the reason why a connection is refused.
	headerRefused = "Depot-Refused"

	typeFault = "fault.v1"

	// maxPayload is the largest message of a tenant, with headers: the control plane carries no build data.
	maxPayload = 1 << 20
	headerRoom = 4 << 10
)

// typeOf is the wire type of a row's message, and replyTypeOf of a service's answer.
func typeOf(row Row) string      { return row.Name + ".v1" }
func replyTypeOf(row Row) string { return row.Name + ".reply.v1" }

// encode refuses an invalid message before it leaves.
func encode(kind, subject string, msg Message) (*nats.Msg, error) {
	if err := msg.Validate(); err != nil {
		return nil, fmt.Errorf("invalid %s: %w", kind, err)
	}
	data, err := json.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	if len(data) > maxPayload-headerRoom {
		return nil, Faultf(CodeInvalid, "%s of %d bytes is larger than a message can be (%d)", kind, len(data), maxPayload-headerRoom)
	}
	m := nats.NewMsg(subject)
	m.Header.Set(headerType, kind)
	m.Data = data
	return m, nil
}

// decode accepts a message of the wanted type only. Fields that it does not know come from a newer peer and are ignored.
func decode[M Message](kind string, m *nats.Msg) (M, error) {
	var msg M
	if got := m.Header.Get(headerType); got != kind {
		return msg, fmt.Errorf("message is of type %q, want %q", got, kind)
	}
	if err := json.Unmarshal(m.Data, &msg); err != nil {
		return msg, fmt.Errorf("decode %s: %w", kind, err)
	}
	if err := msg.Validate(); err != nil {
		return msg, fmt.Errorf("invalid %s: %w", kind, err)
	}
	return msg, nil
}

// Validate accepts any fault that says something.
func (f *Fault) Validate() error {
	if f.Message == "" {
		return fmt.Errorf("fault without a message")
	}
	return nil
}
