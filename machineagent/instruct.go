package machineagent

import (
	"context"
	"log/slog"
	"time"

	"github.com/depotctl/depot/bus"
)

// The bounds of what the API server may say about the time until the next question, and the default.
const (
	minRefresh = time.Second
	maxRefresh = time.Minute
)

// hear is told by anybody in the connection's account, so it believes nothing: it makes a key for the lease, so that
// the question that it causes can carry the request already.
func (a *Agent) hear(h bus.MachineHint) {
	if h.Lease != "" {
		a.leases.expect(h.Lease)
	}
	nudge(a.wake)
}

// instruct asks what to do and does it, until ctx ends. There is one question at a time; what happens meanwhile is in
// the next one.
func (a *Agent) instruct(ctx context.Context, conn *bus.Conn) error {
	for ctx.Err() == nil {
		question := a.question()
		refresh := minRefresh
		if answer, err := a.ask(ctx, conn, question); err == nil {
			if a.obey(question, answer) {
				continue // the API server should hear of it at once
			}
			refresh = min(max(time.Duration(answer.RefreshSeconds)*time.Second, minRefresh), maxRefresh)
		} else if ctx.Err() == nil {
			a.log.Warn("cannot ask for instructions", slog.Any("err", err))
		}
		timer := time.NewTimer(refresh)
		select {
		case <-ctx.Done():
		case <-a.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

func (a *Agent) ask(ctx context.Context, conn *bus.Conn, question bus.Instruct) (bus.Instruction, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return bus.InstructMachine.Call(ctx, conn, question)
}

// question says what the machine does. A lease serves when its root is installed and the daemon behind it answers.
func (a *Agent) question() bus.Instruct {
	a.mu.Lock()
	addresses := a.addresses
	a.mu.Unlock()
	q := bus.Instruct{Daemon: a.daemon.state(), Addresses: addresses, Serving: []bus.LeaseRef{}, CSRs: a.leases.requests()}
	if q.Daemon.State == bus.DaemonReady {
		q.Serving = a.leases.serving()
	}
	return q
}

// obey does what the answer says. It reports whether that changed anything that the API server waits to hear.
func (a *Agent) obey(question bus.Instruct, answer bus.Instruction) bool {
	if !a.leases.newer(answer.Revision) {
		a.log.Debug("ignored an instruction from an old record", slog.Uint64("revision", answer.Revision))
		return false
	}
	switch answer.Desire {
	case bus.DesireStop:
		a.stop(errToldToStop)
		return false
	case bus.DesireServe:
		a.daemon.want()
	case bus.DesireDrain:
	}
	return a.leases.obey(question, answer)
}
