package front_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/machineagent/front"
)

// The benchmarks compare three ways from a client to a daemon: the daemon's own TLS (no hop), a naive splice, and the
// front. All ends are in one process, so cpu-s/GB is that of client, hop and daemon together.
//
//	go test -run '^$' -bench . -benchtime 3s ./machineagent/front
const (
	chunk  = 32 << 10 // what gRPC writes at once
	volume = 64 << 20 // bytes of one round
)

func BenchmarkUpload(b *testing.B) {
	received := make(chan int64)
	sink := func(c net.Conn) {
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, chunk))
		received <- n
	}
	run := func(b *testing.B, address string, cfg *tls.Config) {
		b.Helper()
		data := make([]byte, chunk)
		measure(b, func() {
			c, err := dial(b, address, cfg)
			require.NoError(b, err)
			for range volume / chunk {
				_, err := c.Write(data)
				require.NoError(b, err)
			}
			require.NoError(b, c.CloseWrite())
			require.EqualValues(b, volume, <-received)
			require.NoError(b, c.Close())
		})
	}
	compare(b, sink, run)
}

func BenchmarkExport(b *testing.B) {
	source := func(c net.Conn) {
		data := make([]byte, chunk)
		for range volume / chunk {
			if _, err := c.Write(data); err != nil {
				return
			}
		}
	}
	run := func(b *testing.B, address string, cfg *tls.Config) {
		b.Helper()
		measure(b, func() {
			c, err := dial(b, address, cfg)
			require.NoError(b, err)
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, chunk))
			require.NoError(b, err)
			require.EqualValues(b, volume, n)
			require.NoError(b, c.Close())
		})
	}
	compare(b, source, run)
}

func BenchmarkRoundTrip(b *testing.B) {
	compare(b, func(c net.Conn) { _, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) }, func(b *testing.B, address string, cfg *tls.Config) {
		b.Helper()
		c, err := dial(b, address, cfg)
		require.NoError(b, err)
		for b.Loop() {
			require.NoError(b, ping(c))
		}
	})
}

// compare runs a benchmark the three ways.
func compare(b *testing.B, daemon func(net.Conn), run func(b *testing.B, address string, cfg *tls.Config)) {
	b.Helper()
	b.Run("own", func(b *testing.B) {
		s := newSet(b, "lse-1", 1)
		run(b, listen(b, func(c net.Conn) {
			conn := tls.Server(c, s.TLS)
			daemon(conn)
			_ = conn.Close()
		}), s.client)
	})
	b.Run("naive", func(b *testing.B) {
		s := newSet(b, "lse-1", 1)
		socket := startDaemon(b, func(c *net.UnixConn) { daemon(c) })
		run(b, listen(b, func(c net.Conn) { naive(b.Context(), tls.Server(c, s.TLS), socket) }), s.client)
	})
	b.Run("front", func(b *testing.B) {
		s := newSet(b, "lse-1", 1)
		m := startMachine(b, func(c *net.UnixConn) { daemon(c) }, func(cfg *front.Config) { cfg.Log = nil })
		require.NoError(b, m.Install(s.Lease))
		run(b, m.address, s.client)
	})
}

// naive is what one would write first.
func naive(ctx context.Context, client *tls.Conn, socket string) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return
	}
	daemon, _ := raw.(*net.UnixConn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.CopyBuffer(struct{ io.Writer }{daemon}, struct{ io.Reader }{client}, make([]byte, 64<<10))
		_ = daemon.CloseWrite()
	}()
	_, _ = io.CopyBuffer(struct{ io.Writer }{client}, struct{ io.Reader }{daemon}, make([]byte, 64<<10))
	_ = client.Close()
	<-done
	_ = daemon.Close()
}

func listen(b *testing.B, handle func(net.Conn)) string {
	b.Helper()
	l, err := front.Listen(b.Context(), "127.0.0.1:0")
	require.NoError(b, err)
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
	return l.Addr().String()
}

// measure reports bytes and processor time of the whole process.
func measure(b *testing.B, round func()) {
	b.Helper()
	b.SetBytes(volume)
	before := cpu(b)
	for b.Loop() {
		round()
	}
	b.ReportMetric((cpu(b)-before).Seconds()/float64(b.N)/volume*1e9, "cpu-s/GB")
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
