package machineagent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/client"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/depotctl/depot/bus"
)

const (
	// reportGap is the least time between two reports, however much changes.
	reportGap = 100 * time.Millisecond
	// measureEvery is the time between measurements of the cache, which cost the daemon a walk over its records.
	measureEvery = time.Minute
)

// reportAlways sends a report every few seconds and after each change, until ctx ends.
func (a *Agent) reportAlways(ctx context.Context, conn *bus.Conn) error {
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error {
		for ; ctx.Err() == nil; wait(ctx, measureEvery) {
			if err := a.usage.measure(ctx); err != nil && ctx.Err() == nil && a.daemon.state().State == bus.DaemonReady {
				a.log.Warn("cannot measure the cache", slog.Any("err", err))
			}
		}
		return nil
	})
	parts.Go(func() error {
		timer := time.NewTimer(0)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-timer.C:
			case <-a.report:
			}
			if err := bus.MachineIsLive.Send(ctx, conn, a.liveReport(time.Now())); err != nil && ctx.Err() == nil {
				a.log.Warn("cannot report", slog.Any("err", err))
			}
			wait(ctx, reportGap)
			timer.Reset(a.cfg.ReportEvery)
		}
	})
	return parts.Wait()
}

// liveReport is what the machine looks like now. What cannot be measured is zero.
func (a *Agent) liveReport(now time.Time) bus.MachineReport {
	r := bus.MachineReport{CacheBytes: a.usage.cache.Load(), Live: []bus.LiveLease{}, At: now.UTC()}
	var err error
	if r.DiskFreeBytes, r.DiskTotalBytes, err = a.usage.disk(); err != nil {
		a.log.Warn("cannot measure the disk", slog.Any("err", err))
	}
	for _, ref := range a.leases.serving() {
		r.Live = append(r.Live, bus.LiveLease{Lease: ref.Lease, Connections: a.front.Connections(string(ref.Lease))})
	}
	return r
}

// usage measures the cache volume.
type usage struct {
	dir   string
	dial  func(context.Context) (net.Conn, error)
	cache atomic.Int64
}

// disk asks the file system.
func (u *usage) disk() (free, total int64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(u.dir, &s); err != nil {
		return 0, 0, fmt.Errorf("measure %s: %w", u.dir, err)
	}
	return int64(s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize, nil //nolint:gosec // sizes of disks
}

// measure asks the daemon for the size of all that it keeps.
func (u *usage) measure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c, err := client.New(ctx, "unix://", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return u.dial(ctx) }))
	if err != nil {
		return err
	}
	defer c.Close()
	records, err := c.DiskUsage(ctx)
	if err != nil {
		return err
	}
	var sum int64
	for _, r := range records {
		sum += r.Size
	}
	u.cache.Store(sum)
	return nil
}
