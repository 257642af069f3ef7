package bus

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
)

// Heard is a message as a tap hears it.
type Heard struct {
	Subject string
	Type    string // of the payload: <row's name>.v1; empty for what is not a row's message, such as acknowledgements
	Data    []byte
}

// Tap calls handle for every message in the account CONTROL, in the order in which the server handled them, until ctx
// or the connection ends: an ear on the wire, for tests and incidents. It returns as soon as the server has the
// subscription.
func (c *Control) Tap(ctx context.Context, handle func(Heard)) error {
	sub, err := c.nc.Subscribe(">", func(m *nats.Msg) {
		handle(Heard{Subject: m.Subject, Type: m.Header.Get(headerType), Data: m.Data})
	})
	if err != nil {
		return fmt.Errorf("tap the bus: %w", err)
	}
	c.untilEnd(ctx, sub)
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return fmt.Errorf("tap the bus: %w", err)
	}
	flush, cancel := bounded(ctx)
	defer cancel()
	if err := c.nc.FlushWithContext(flush); err != nil {
		return fmt.Errorf("tap the bus: %w", err)
	}
	return nil
}
