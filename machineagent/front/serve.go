package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Listen opens the front's TCP listener. Keepalive finds a client that vanished within half a minute.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}}
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

// Serve accepts connections until ctx ends or the listener fails; then it ends every lease, and returns once no
// connection is left. It returns nil when ctx ended.
func (f *Front) Serve(ctx context.Context, l net.Listener) error {
	var streams sync.WaitGroup
	defer streams.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // handshakes
	defer f.close()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept connections: %w", err)
		case err != nil: // out of files: those in use will be closed
			f.cfg.Log.Warn("cannot accept a connection", slog.Any("err", err))
			pause(ctx, 50*time.Millisecond)
			continue
		}
		select {
		case f.handshakes <- struct{}{}:
			streams.Go(func() { f.handle(ctx, conn) })
		default:
			_ = conn.Close()
			f.cfg.Log.Warn("refused a connection: too many handshakes at once", slog.String("remote", conn.RemoteAddr().String()))
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// handle is the life of one connection.
func (f *Front) handle(ctx context.Context, conn net.Conn) {
	s := newStream(conn)
	defer s.close()
	l, err := f.handshake(ctx, s)
	<-f.handshakes
	if err == nil {
		err = f.admit(l, s)
	}
	if err != nil {
		f.cfg.Log.Info("refused a connection", slog.String("remote", conn.RemoteAddr().String()), slog.Any("err", err))
		return
	}
	defer f.forget(l, s)
	f.cfg.Changed()
	begin := time.Now()
	dialCtx, cancel := context.WithTimeout(ctx, f.cfg.HandshakeTimeout)
	daemon, err := f.cfg.Dial(dialCtx)
	cancel()
	if err != nil {
		f.cfg.Log.Warn("cannot reach the daemon", slog.String("lease", l.ID), slog.Any("err", err))
		return
	}
	err = s.splice(daemon)
	f.cfg.Log.Debug("connection ended", slog.String("lease", l.ID), slog.Duration("dur", time.Since(begin)), slog.Any("err", err))
}

// handshake runs TLS. The lease is chosen by SNI alone; whoever names none gets no certificate to look at.
func (f *Front) handshake(ctx context.Context, s *stream) (*lease, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.HandshakeTimeout)
	defer cancel()
	var chosen *lease
	s.tls = tls.Server(s.socket, &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if chosen = f.find(hello.ServerName); chosen == nil {
				return nil, errUnknownLease
			}
			return chosen.tls, nil
		},
	})
	if err := s.tls.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("shake hands: %w", err)
	}
	return chosen, nil
}
