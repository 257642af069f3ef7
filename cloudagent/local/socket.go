package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// busTakeover is how often a provider looks whether the one that serves the socket has ended.
	busTakeover = 200 * time.Millisecond
	// busDialLimit is how long a machine waits for the bus behind the socket before it is told to try again.
	busDialLimit = 10 * time.Second
)

// forwardBus serves the socket through which machines reach the bus. Of several providers on a directory one does, and
// another takes over when it ends; machines connect again.
func (p *Provider) forwardBus(ctx context.Context) error {
	lock, err := tryLock(filepath.Join(p.cfg.Dir, busDir, busLock))
	for lock == nil && err == nil {
		if pause(ctx, busTakeover) != nil {
			return nil
		}
		lock, err = tryLock(filepath.Join(p.cfg.Dir, busDir, busLock))
	}
	if err != nil {
		return fmt.Errorf("lock bus socket: %w", err)
	}
	defer lock.unlock()
	path := filepath.Join(p.cfg.Dir, busDir, busSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("listen for machines: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, listener.Close())
	}
	p.cfg.Log.DebugContext(ctx, "forwarding machines to the bus", slog.String("socket", path))
	return p.accept(ctx, listener)
}

// accept forwards until ctx ends, and then closes the listener and every connection.
func (p *Provider) accept(ctx context.Context, listener net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		return listener.Close()
	})
	group.Go(func() error {
		for {
			conn, err := listener.Accept()
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the listener was closed on purpose
			}
			if err != nil { // no descriptors left, for one: machines come again
				p.cfg.Log.WarnContext(ctx, "cannot accept a machine", slog.Any("err", err))
				_ = pause(ctx, busTakeover) // the next turn looks at ctx
				continue
			}
			group.Go(func() error {
				p.forward(ctx, conn)
				return nil
			})
		}
	})
	return group.Wait()
}

// forward copies bytes between a machine and the bus until either side ends.
func (p *Provider) forward(ctx context.Context, machine net.Conn) {
	defer machine.Close()
	dialing, cancel := context.WithTimeout(ctx, busDialLimit)
	bus, err := p.cfg.DialBus(dialing)
	cancel()
	if err != nil {
		p.cfg.Log.DebugContext(ctx, "cannot reach the bus for a machine", slog.Any("err", err))
		return
	}
	defer bus.Close()
	closeBoth := sync.OnceFunc(func() { _, _ = machine.Close(), bus.Close() })
	defer context.AfterFunc(ctx, closeBoth)()
	var group sync.WaitGroup
	for _, way := range [][2]net.Conn{{machine, bus}, {bus, machine}} {
		group.Go(func() {
			defer closeBoth()
			_, _ = io.Copy(way[0], way[1]) // either end of it ends both: NATS has no half-closed connections
		})
	}
	group.Wait()
}
