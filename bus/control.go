package bus

import (
	"log/slog"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Control is the API server's connection: accounts CONTROL, AUTH and SYS.
type Control struct {
	nc       *nats.Conn // account CONTROL
	js       jetstream.JetStream
	auth     *nats.Conn // account AUTH
	sys      *nats.Conn // account SYS
	trust    *Trust
	replicas int
	log      *slog.Logger
}
