package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPause is how long a waiter for a lock sleeps between two tries: there is no other way to wait for a lock of another
// process until a context ends.
const lockPause = 5 * time.Millisecond

// fileLock is an exclusive lock of a file, held until the last descriptor of this one opening is closed: by unlock, or by
// the end of every process that got it. (An open file description lock: unlike flock it can be looked at without taking it.)
type fileLock struct{ file *os.File }

// lockFile waits for the lock of a file, which it creates. Whoever holds the lock may remove the file.
func lockFile(ctx context.Context, path string) (*fileLock, error) {
	for {
		lock, err := tryLock(path)
		if lock != nil || err != nil {
			return lock, err
		}
		if err := pause(ctx, lockPause); err != nil {
			return nil, fmt.Errorf("wait for lock %s: %w", path, err)
		}
	}
}

// tryLock returns nil, nil when somebody else holds the lock.
func tryLock(path string) (*fileLock, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, file.Close()
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
		}
		if current(file, path) {
			return &fileLock{file}, nil
		}
		// The holder removed the file between our open and its unlock: what we have locked is nobody's any more.
		if err := file.Close(); err != nil {
			return nil, err
		}
	}
}

// locked reports whether some process holds the lock of a file.
func locked(path string) (bool, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	lock := unix.Flock_t{Type: unix.F_RDLCK} // what would a reader run into?
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("look at lock %s: %w", path, err)
	}
	return lock.Type != unix.F_UNLCK, nil
}

func current(file *os.File, path string) bool {
	mine, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}

func (l *fileLock) unlock() { _ = l.file.Close() }

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
