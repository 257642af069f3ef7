package machineagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/depotctl/depot/bus"
)

// farewell bounds the last word: whoever stops the machine waits for it no longer.
const farewell = 3 * time.Second

// shutdown ends the parts in an order in which each finds what it needs: first nobody gets in and the leases are cut,
// then the daemon stops, then the cache is on disk, then the API server is told, then the connection to it ends.
func (a *Agent) shutdown(ctx context.Context, why error, serving, running, talking *part) error {
	a.log.Info("shutting down", slog.Any("err", why))
	failed := serving.end()
	unclean := running.end()
	unclean = errors.Join(unclean, syncFileSystem(a.data.CacheDir))
	a.sayGoodbye(ctx, why, errors.Join(failed, unclean))
	failed = errors.Join(failed, talking.end())
	a.log.Info("shut down", slog.Bool("clean", unclean == nil))
	return errors.Join(failed, unclean)
}

// syncFileSystem waits until what BuildKit wrote is on disk, so that the volume may be taken away.
func syncFileSystem(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync cache: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync cache: %w", err)
	}
	return nil
}

// sayGoodbye tells the API server, if it can be reached: it finds out anyway, only later.
func (a *Agent) sayGoodbye(ctx context.Context, why, unclean error) {
	conn := a.connection()
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	reason := "machine-agent was stopped"
	switch {
	case unclean != nil:
		reason = unclean.Error()
	case errors.Is(why, errToldToStop):
		reason = "stopped as told"
	}
	if _, err := bus.SayGoodbye.Call(ctx, conn, bus.MachineGoodbye{Clean: unclean == nil, Reason: reason}); err != nil {
		a.log.Warn("cannot say goodbye", slog.Any("err", err))
	}
}
