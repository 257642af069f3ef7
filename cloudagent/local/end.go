package local

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/depotctl/depot/bus"
)

// endProcesses ends a machine: by a signal that lets it shut down, after grace by one that does not. When it returns nil,
// no process of the machine is left.
func (p *Provider) endProcesses(ctx context.Context, id bus.MachineID, grace time.Duration) error {
	defer p.reap()
	for {
		pidfd, err := p.openInit(ctx, id)
		if err != nil {
			return err
		}
		if pidfd < 0 {
			return p.awaitEnd(ctx, id)
		}
		err = endProcess(ctx, pidfd, grace)
		_ = unix.Close(pidfd)
		if err != nil {
			return fmt.Errorf("end machine %s: %w", id, err)
		}
	}
}

// awaitBoot reports whether a machine lives, with its program. One whose boot was cut off together with its provider ends
// by itself in a moment.
func (p *Provider) awaitBoot(ctx context.Context, id bus.MachineID) (bool, error) {
	for {
		_, up := p.readAlive(id)
		alive, err := locked(p.machineFile(id, aliveFile))
		if up || !alive || err != nil {
			return alive, err
		}
		if err := pause(ctx, lockPause); err != nil {
			return false, err
		}
	}
}

// openInit returns a descriptor of the machine's first process, or -1 if the machine is dead.
func (p *Provider) openInit(ctx context.Context, id bus.MachineID) (int, error) {
	for {
		alive, err := locked(p.machineFile(id, aliveFile))
		if err != nil || !alive {
			return -1, err
		}
		if pid, _ := p.readAlive(id); pid != 0 {
			pidfd, err := unix.PidfdOpen(pid, 0)
			if err == nil {
				// The lock is held still: so the process that wrote the id was alive when the descriptor was opened, and
				// the id had no second owner.
				if alive, err := locked(p.machineFile(id, aliveFile)); err == nil && alive {
					return pidfd, nil
				}
				_ = unix.Close(pidfd)
			} else if !errors.Is(err, unix.ESRCH) {
				return -1, fmt.Errorf("open process %d: %w", pid, err)
			}
		}
		if err := pause(ctx, lockPause); err != nil { // it is about to write its id, or about to end
			return -1, err
		}
	}
}

func endProcess(ctx context.Context, pidfd int, grace time.Duration) error {
	for _, step := range []struct {
		signal syscall.Signal
		limit  time.Duration
	}{{syscall.SIGTERM, grace}, {syscall.SIGKILL, endLimit}} {
		err := unix.PidfdSendSignal(pidfd, step.signal, nil, 0)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if err != nil {
			return err
		}
		if ended, err := awaitProcess(ctx, pidfd, step.limit); ended || err != nil {
			return err
		}
	}
	return errors.New("it does not end even when killed")
}

// awaitProcess reports whether the process ended within the limit. The first process of a PID namespace ends after all
// others in it.
func awaitProcess(ctx context.Context, pidfd int, limit time.Duration) (bool, error) {
	deadline := time.Now().Add(limit)
	for {
		const slice = 50 * time.Millisecond                                                                                                 // to look at ctx in between
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(min(slice, time.Until(deadline)).Milliseconds())+1) //nolint:gosec // descriptors are small
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, err
		case n > 0:
			return true, nil
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if time.Now().After(deadline) {
			return false, nil
		}
	}
}

// awaitEnd waits until the last process of a dead machine is gone: its lock falls a moment earlier. Its cgroups, which
// nobody can remove before, are the proof.
func (p *Provider) awaitEnd(ctx context.Context, id bus.MachineID) error {
	deadline := time.Now().Add(endLimit)
	for {
		err := removeCgroups(string(id))
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, lockPause); err != nil {
			return err
		}
	}
}

// hasEnded reaps a child of this process if it has ended.
func hasEnded(pid int) bool {
	got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
	return got == pid || errors.Is(err, syscall.ECHILD)
}
