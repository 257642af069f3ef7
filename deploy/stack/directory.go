package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/depotctl/depot/bus"
)

// minFree is what the state directory's file system must have left for depotd to start: less is a full disk in waiting,
// and a bus that cannot write stops acknowledging.
const minFree = 64 << 20

// leastFree is what must be left for it to go on.
const leastFree = 16 << 20

// directory is a state directory that this process holds alone.
type directory struct {
	path string
	lock *os.File
}

// openDirectory makes the state directory if need be, checks that state can be written to it, and locks it.
func openDirectory(path string) (*directory, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find the state directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, cannotUse(path, err)
	}
	d := &directory{path: path}
	if err := d.acquire(); err != nil {
		return nil, err
	}
	if err := d.checkSpace(minFree); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// acquire takes the lock file, which names its holder. The kernel drops the lock when the process ends, however it ends.
func (d *directory) acquire() error {
	f, err := os.OpenFile(d.file("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return cannotUse(d.path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(f.Name())
		fault := bus.Faultf(bus.CodeConflict, "another depotd (process %s) runs on %s", strings.TrimSpace(string(holder)), d.path).
			WithHint("stop it, or give this one a directory and an address of its own: --dir and --listen")
		return errors.Join(fault, f.Close())
	}
	d.lock = f
	if err := f.Truncate(0); err != nil {
		return errors.Join(cannotUse(d.path, err), d.close())
	}
	if _, err := f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		return errors.Join(cannotUse(d.path, err), d.close())
	}
	return nil
}

func (d *directory) checkSpace(least int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.path, &fs); err != nil {
		return cannotUse(d.path, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < least { //nolint:gosec // no file system has 2^63 blocks
		return diskFull(d.path, free)
	}
	return nil
}

// watchSpace returns an error when the disk is nearly full: a bus that has met a full disk takes nothing more until it is
// started again, and it is better to end with that line than to be there and not to answer.
func (d *directory) watchSpace(ctx context.Context) error {
	for tick := time.NewTicker(time.Second); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return nil
		case <-tick.C:
			if err := d.checkSpace(leastFree); err != nil {
				return err
			}
		}
	}
}

func (d *directory) file(name string) string { return filepath.Join(d.path, name) }

// close lets the next depotd in.
func (d *directory) close() error { return d.lock.Close() }

func diskFull(path string, free int64) error {
	return bus.Faultf(bus.CodeUnavailable, "the disk of the state directory %s is full: %d MiB are free, and depotd needs %d MiB", path, free>>20, minFree>>20).
		WithHint("free some space, or give another directory with --dir")
}

// cannotUse puts an error of the file system into one line with what to do.
func cannotUse(path string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return diskFull(path, 0)
	}
	reason := err
	if e, ok := errors.AsType[*os.PathError](err); ok {
		reason = e.Err
	}
	return bus.Faultf(bus.CodeUnavailable, "the state directory %s cannot be written: %v", path, reason).
		WithHint("run depotd as root, or give another directory with --dir")
}
