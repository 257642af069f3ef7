package machineagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/machineagent/daemon"
)

// Launcher starts the machine's daemon.
type Launcher interface {
	// Launch starts a daemon. It need not work yet when Launch returns. ctx bounds the launch alone.
	Launch(ctx context.Context) (Daemon, error)
}

// Daemon is a daemon that was started.
type Daemon interface {
	// Dial opens a connection to it.
	Dial(ctx context.Context) (net.Conn, error)
	// Done is closed when it has ended and nothing of it is left.
	Done() <-chan struct{}
	// Err says how it ended, once Done is closed.
	Err() error
	// Stop ends it, and says whether that was not clean. Done is closed then.
	Stop(ctx context.Context) error
}

// buildkitd launches the real one.
type buildkitd struct{ cfg daemon.Config }

func newBuildkitd(u bus.UserData, log *slog.Logger) (buildkitd, error) {
	suffix := strings.TrimPrefix(string(u.Machine), "mch-")
	cfg := daemon.Config{
		Buildkitd: u.Buildkitd, Runc: u.Runc, CNIDir: u.CNIDir, StateDir: u.StateDir, CacheDir: u.CacheDir,
		HostNetwork: u.HostNetwork, Bridge: "depot" + suffix[:min(len(suffix), 10)], BridgeSubnet: u.BuildSubnet,
		Nameservers: u.Nameservers, Registries: u.Registries, Platforms: foreignPlatforms(u.Architecture), CgroupParent: "depot-" + string(u.Machine), Log: log,
	}
	return buildkitd{cfg}, cfg.Validate()
}

// Launch implements Launcher.
func (b buildkitd) Launch(ctx context.Context) (Daemon, error) { return daemon.Launch(ctx, b.cfg) }

// foreignPlatforms are what a machine claims when its architecture is not the processor's: builds that run nothing
// work then, which is what tests of builds on two architectures need. Otherwise BuildKit finds out by itself.
func foreignPlatforms(arch bus.Arch) []string {
	if string(arch) == runtime.GOARCH {
		return nil
	}
	if arch == bus.ARM64 {
		return []string{"linux/arm64", "linux/arm/v7", "linux/arm/v6"}
	}
	return []string{"linux/amd64", "linux/386"}
}

const (
	// probing bounds the time from the launch until the daemon has answered through the front.
	probing = 60 * time.Second
	// A daemon that died is launched again after minRestart, doubled each time up to maxRestart, until one has lived
	// for maxRestart.
	minRestart = 200 * time.Millisecond
	maxRestart = 30 * time.Second
)

// supervisor keeps the daemon running, once it is wanted.
type supervisor struct {
	launcher Launcher
	probe    func(ctx context.Context, front string) (version string, err error)
	changed  func()
	log      *slog.Logger
	front    string // address to probe

	once   sync.Once
	wanted chan struct{}

	mu     sync.Mutex
	status bus.DaemonStatus
	daemon Daemon // while it lives
}

func newSupervisor(l Launcher, probe func(context.Context, string) (string, error), changed func(), log *slog.Logger) *supervisor {
	return &supervisor{
		launcher: l, probe: probe, changed: changed, log: log,
		wanted: make(chan struct{}), status: bus.DaemonStatus{State: bus.DaemonStopped},
	}
}

// want makes the supervisor launch the daemon. Before, it must not touch the cache: it may be another machine's still.
func (s *supervisor) want() { s.once.Do(func() { close(s.wanted) }) }

func (s *supervisor) state() bus.DaemonStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *supervisor) set(status bus.DaemonStatus, d Daemon) {
	s.mu.Lock()
	s.status, s.daemon = status, d
	s.mu.Unlock()
	s.changed()
}

// dial opens a connection to the daemon, if there is one.
func (s *supervisor) dial(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	d := s.daemon
	s.mu.Unlock()
	if d == nil {
		return nil, errors.New("the daemon does not run")
	}
	return d.Dial(ctx)
}

// run keeps the daemon running until ctx ends, and stops it. An error means that it did not stop cleanly.
func (s *supervisor) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.wanted:
	}
	pause := minRestart
	for ctx.Err() == nil {
		begin := time.Now()
		s.set(bus.DaemonStatus{State: bus.DaemonStarting}, nil)
		ended, err := s.live(ctx)
		if !ended {
			s.set(bus.DaemonStatus{State: bus.DaemonStopped}, nil)
			return err
		}
		s.log.Error("daemon failed", slog.Any("err", err))
		s.set(bus.DaemonStatus{State: bus.DaemonFailed, Reason: err.Error()}, nil)
		if time.Since(begin) > maxRestart {
			pause = minRestart
		}
		wait(ctx, pause)
		pause = min(2*pause, maxRestart)
	}
	s.set(bus.DaemonStatus{State: bus.DaemonStopped}, nil)
	return nil
}

// live is one life of the daemon. It reports whether the daemon ended by itself, and why; if not, it was stopped, and
// the error says whether that was not clean.
func (s *supervisor) live(ctx context.Context) (ended bool, err error) {
	d, err := s.launcher.Launch(ctx)
	if err != nil {
		return ctx.Err() == nil, err
	}
	s.set(bus.DaemonStatus{State: bus.DaemonStarting}, d)
	version, err := s.prove(ctx, d)
	if err == nil {
		s.log.Info("daemon is ready", slog.String("version", version))
		s.set(bus.DaemonStatus{State: bus.DaemonReady, Version: version}, d)
		select {
		case <-d.Done():
			return true, d.Err()
		case <-ctx.Done():
		}
	}
	stopped := d.Stop(context.WithoutCancel(ctx))
	if ctx.Err() != nil {
		return false, stopped
	}
	return true, err
}

// prove probes the daemon until it answers, dies, or time is up.
func (s *supervisor) prove(ctx context.Context, d Daemon) (version string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, probing, fmt.Errorf("the daemon did not answer within %s", probing))
	defer cancel()
	ctx, died := context.WithCancelCause(ctx)
	defer died(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-d.Done():
			died(d.Err())
		case <-ctx.Done():
		}
	}()
	version, err = s.probe(ctx, s.front)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	died(nil)
	<-watched
	return version, err
}
