package local

import (
	"context"
	"fmt"
	"net"
	"net/url"
)

// defaultBusPort is NATS's own.
const defaultBusPort = "4222"

// DialURL returns a Config.DialBus for a bus at nats://host:port or tls://host:port. TLS is between the machine and the bus.
func DialURL(busURL string) (func(ctx context.Context) (net.Conn, error), error) {
	u, err := url.Parse(busURL)
	if err != nil {
		return nil, fmt.Errorf("parse address of the bus: %w", err)
	}
	if u.Hostname() == "" || u.Scheme != "nats" && u.Scheme != "tls" {
		return nil, fmt.Errorf("%q is not the address of a bus: want nats://host:port or tls://host:port", busURL)
	}
	port := u.Port()
	if port == "" {
		port = defaultBusPort
	}
	address := net.JoinHostPort(u.Hostname(), port)
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}, nil
}
