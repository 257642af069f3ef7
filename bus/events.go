package bus

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Publish stores an event and shows it to whoever subscribes. id makes it harmless to publish again within ten minutes.
func (e Events[M]) Publish(ctx context.Context, c *Control, account string, msg M, id string, params ...string) error {
	if err := c.publish(ctx, *e.row, account, msg, id, params); err != nil {
		return fmt.Errorf("publish %s: %w", e.row.Name, err)
	}
	return nil
}

// Replay returns the stored events in their order, the first 2,000 of them. params fill the subject in its order; "*"
// stands for any value. An event that cannot be read is logged and left out.
func (e Events[M]) Replay(ctx context.Context, c *Control, account string, params ...string) ([]M, error) {
	values, err := parameters(*e.row, params, true)
	if err != nil {
		return nil, fmt.Errorf("replay %s: %w", e.row.Name, err)
	}
	all := []M{}
	err = c.read(ctx, e.row.Stream, readRange{subject: streamSubject(*e.row, account, values), limit: maxEvents}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		msg, err := decode[M](typeOf(*e.row), &nats.Msg{Header: m.Headers(), Data: m.Data()})
		if err != nil {
			c.log.Warn("event left out", "subject", m.Subject(), "seq", meta.Sequence.Stream, "err", err)
			return
		}
		all = append(all, msg)
	})
	if err != nil {
		return nil, fmt.Errorf("replay %s: %w", e.row.Name, err)
	}
	return all, nil
}

// Subscribe calls handle for each event from now on, one at a time, until ctx ends. It returns when the server has the
// subscription. params fill the subject in its order; "*" stands for any value that the role may see. An event is a
// hint: it may be lost, come twice or come before it is stored, and another member of the account can forge it.
func (e Events[M]) Subscribe(ctx context.Context, c *Conn, handle func(M), params ...string) error {
	values, err := parameters(*e.row, params, true)
	if err == nil {
		err = subscribe(ctx, c, *e.row, c.eventSubject(*e.row, values), handle)
	}
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", e.row.Name, err)
	}
	return nil
}

// eventSubject is the subject as a tenant sees it. Who may see one project only has no right to the wildcard.
func (c *Conn) eventSubject(row Row, values map[string]string) string {
	if only := c.Welcome().Project; only != "" && values["{project}"] == "" {
		values["{project}"] = string(only)
	}
	tokens := strings.Split(row.Subject, ".")
	for i, token := range tokens {
		if strings.HasPrefix(token, "{") {
			tokens[i] = cmp.Or(values[token], "*")
		}
	}
	return strings.Join(tokens, ".")
}
