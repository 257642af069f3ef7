package bus_test

import (
	"context"
	"testing"

	"github.com/depotctl/depot/bus/bustest"
)

// onEveryForm runs a test on the embedded server, in process and over TCP, and on a separate nats-server process.
func onEveryForm(t *testing.T, test func(t *testing.T, s *bustest.Server), opts ...bustest.Option) {
	t.Parallel()
	t.Run("in process", func(t *testing.T) { test(t, bustest.New(t, opts...)) })
	t.Run("tcp", func(t *testing.T) {
		s := bustest.New(t, append(opts, bustest.WithListener())...)
		s.ByTCP()
		test(t, s)
	})
	t.Run("process", func(t *testing.T) { test(t, bustest.NewExternal(t, opts...)) })
}

// contextUntil is a context that ends with stop.
func contextUntil(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithCancel(t.Context())
}
