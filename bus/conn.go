package bus

import (
	"log/slog"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Conn is a tenant's connection to the bus.
type Conn struct {
	nc  *nats.Conn
	js  jetstream.JetStream // with the private API prefix "depot.js"
	log *slog.Logger
}
