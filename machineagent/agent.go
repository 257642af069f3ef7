package machineagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/machineagent/front"
)

// Config of an Agent.
type Config struct {
	// UserData is what the machine was launched with. Required.
	UserData bus.UserData
	// Launcher starts the daemon. Default: buildkitd as UserData says.
	Launcher Launcher
	// Attestors are further kinds of evidence, by name, beside "nonce".
	Attestors map[string]Attestor
	// Bus is how the bus is reached, without a credential. Default: the URL, socket and roots of UserData.
	Bus *bus.Config
	// Version is the version of the program.
	Version string
	// ReportEvery is the time between reports when nothing changes. Default 5 s.
	ReportEvery time.Duration
	// RefusedFor is how long the bus may refuse every credential before the agent gives up, if no lease lives then.
	// Default 10 min.
	RefusedFor time.Duration
	// Log is where it says what it does. Default: nowhere.
	Log *slog.Logger
}

// Agent is one machine's agent.
type Agent struct {
	cfg    Config
	data   bus.UserData
	log    *slog.Logger
	ready  chan struct{}
	opened sync.Once // of ready

	front  *front.Front
	daemon *supervisor
	leases *leases
	usage  *usage

	// Set by Run before anything that uses them begins.
	identity *identity
	attestor Attestor
	bus      bus.Config

	wake   chan struct{} // something changed that the API server should hear of
	report chan struct{} // something changed that a report shows
	stop   context.CancelCauseFunc

	mu        sync.Mutex
	conn      *bus.Conn // the present connection, if any
	addresses []string  // of the front, once it listens
}

// errToldToStop ends Run when the API server wants the machine stopped.
var errToldToStop = errors.New("the API server wants the machine stopped")

// New checks the configuration.
func New(cfg Config) (*Agent, error) {
	if err := cfg.UserData.Validate(); err != nil {
		return nil, fmt.Errorf("configure machine-agent: user data: %w", err)
	}
	if cfg.ReportEvery == 0 {
		cfg.ReportEvery = 5 * time.Second
	}
	if cfg.RefusedFor == 0 {
		cfg.RefusedFor = 10 * time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	log := cfg.Log.With(slog.String("component", "machineagent"), slog.String("machine", string(cfg.UserData.Machine)))
	if cfg.Launcher == nil {
		var err error
		if cfg.Launcher, err = newBuildkitd(cfg.UserData, log); err != nil {
			return nil, fmt.Errorf("configure machine-agent: user data: %w", err)
		}
	}
	a := &Agent{
		cfg: cfg, data: cfg.UserData, log: log, ready: make(chan struct{}),
		wake: make(chan struct{}, 1), report: make(chan struct{}, 1),
	}
	var err error
	if a.attestor, err = chooseAttestor(cfg); err != nil {
		return nil, fmt.Errorf("configure machine-agent: %w", err)
	}
	a.daemon = newSupervisor(cfg.Launcher, a.probe, func() { nudge(a.wake) }, log)
	a.front, err = front.New(front.Config{Dial: a.daemon.dial, Changed: func() { nudge(a.report) }, Log: log})
	if err != nil {
		return nil, fmt.Errorf("configure machine-agent: %w", err)
	}
	a.leases = newLeases(a.front, log)
	a.usage = &usage{dir: cfg.UserData.CacheDir, dial: a.daemon.dial}
	return a, nil
}

// nudge wakes whoever waits on c, now or next; several nudges are one.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Ready is closed when the agent is registered and hears hints.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run serves until ctx ends, the API server wants the machine stopped, or the agent cannot go on. Then it shuts down:
// leases are cut, the daemon is stopped, the file system is synced, and the API server is told. It returns nil unless
// the agent could not go on.
func (a *Agent) Run(ctx context.Context) error {
	unlock, err := a.prepare()
	if err != nil {
		return fmt.Errorf("prepare machine: %w", err)
	}
	defer unlock()
	listener, err := front.Listen(ctx, a.data.Listen)
	if err != nil {
		return fmt.Errorf("prepare machine: %w", err)
	}
	a.listens(listener)

	ctx, a.stop = context.WithCancelCause(ctx)
	defer a.stop(nil)
	base := context.WithoutCancel(ctx) // each part is ended in its turn, not by ctx
	serving := start(base, a.stop, func(ctx context.Context) error { return a.front.Serve(ctx, listener) })
	running := start(base, a.stop, a.daemon.run)
	talking := start(base, a.stop, a.converse)
	<-ctx.Done()
	return a.shutdown(base, context.Cause(ctx), serving, running, talking)
}

// prepare makes the directories and the identity, and keeps a second agent away from them.
func (a *Agent) prepare() (unlock func(), err error) {
	for _, dir := range []string{a.data.StateDir, a.data.CacheDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	lock, err := os.OpenFile(filepath.Join(a.data.StateDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("another machine-agent runs on %s", a.data.StateDir)
	}
	unlock = func() { _ = lock.Close() }
	if a.identity, err = loadIdentity(a.data); err == nil {
		a.bus, err = a.busConfig()
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// listens notes where the front can be reached.
func (a *Agent) listens(l net.Listener) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.addresses = a.data.Addresses
	if len(a.addresses) == 0 {
		a.addresses = []string{l.Addr().String()}
	}
	a.daemon.front = l.Addr().String()
	a.log.Info("front listens", slog.String("address", l.Addr().String()))
}

// part is a goroutine that Run started and ends in its turn.
type part struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// start runs f. If it fails, everything is stopped, for that reason.
func start(ctx context.Context, stop context.CancelCauseFunc, f func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(ctx)
	p := &part{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		if p.err = f(ctx); p.err != nil {
			stop(p.err)
		}
	}()
	return p
}

// end ends the part and waits for it.
func (p *part) end() error {
	p.cancel()
	<-p.done
	return p.err
}
