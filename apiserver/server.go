package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/depotctl/depot/bus"
)

// Config is what an API server needs.
type Config struct {
	// Control is its connection to the bus. Required; closed by whoever opened it, after Run.
	Control *bus.Control
	// Version of the program, for people.
	Version string
	// Now is the clock of whatever is stored or signed. The default is time.Now.
	Now func() time.Time
	// Timeouts are the deadlines; zero fields mean the defaults.
	Timeouts Timeouts
	// VolumeGB is the size of new cache volumes. The default is 50.
	VolumeGB int
	// Scan is how often all records are compared with the clock and with each other. The default is one second.
	Scan time.Duration
	// Log of what an operator wants to know. The default discards.
	Log *slog.Logger
}

// Server is one API server. Any number may run on one bus; none of them is special.
type Server struct {
	control  *bus.Control
	now      func() time.Time
	timeouts Timeouts
	volumeGB int
	scan     time.Duration
	log      *slog.Logger

	store   *store // opened by Run
	mirrors *mirrors
	pulses  *pulses
	outbox  *outbox
	repeats repeats
	cuts    cuts
	ready   chan struct{}

	crash func(effect) bool // of tests: the process dies before it does this
}

// New checks the configuration. It does no I/O.
func New(cfg Config) (*Server, error) {
	if cfg.Control == nil {
		return nil, errors.New("new API server: Control is required")
	}
	if cfg.VolumeGB < 0 || cfg.Scan < 0 {
		return nil, errors.New("new API server: VolumeGB and Scan must not be negative")
	}
	s := &Server{
		control: cfg.Control, now: cfg.Now, timeouts: cfg.Timeouts.withDefaults(), volumeGB: cfg.VolumeGB, scan: cfg.Scan, log: cfg.Log,
		mirrors: newMirrors(), pulses: newPulses(), outbox: newOutbox(), ready: make(chan struct{}),
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.volumeGB == 0 {
		s.volumeGB = 50
	}
	if s.scan == 0 {
		s.scan = time.Second
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("component", "apiserver", "version", cfg.Version)
	return s, nil
}

// Ready is closed once requests are answered.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends, and then returns nil. Requests that were accepted are finished by Control.Close.
func (s *Server) Run(ctx context.Context) error {
	store, err := openStore(ctx, s.control)
	if err != nil {
		return fmt.Errorf("run API server: %w", err)
	}
	s.store = store
	g, ctx := errgroup.WithContext(ctx)
	s.mirrors.watch(ctx, g, s.store)
	for _, lane := range s.outbox.lanes {
		g.Go(func() error { return s.deliver(ctx, lane) })
	}
	g.Go(func() error {
		s.mirrors.wait(ctx)
		if err := s.serve(ctx); err != nil {
			return err
		}
		close(s.ready)
		s.log.InfoContext(ctx, "api server is ready")
		return s.scanUntil(ctx)
	})
	g.Go(func() error { return bus.BuildRequests.Work(ctx, s.control, s.decideAgain) })
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("run API server: %w", err)
	} else if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("run API server: %w", err)
	}
	return nil
}

// deliver publishes what is in a lane of the outbox, until ctx ends; then what is left, for a moment.
func (s *Server) deliver(ctx context.Context, lane <-chan func(context.Context) error) error {
	last, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, cancel) })()
	for {
		select {
		case publish := <-lane:
			s.publish(last, publish)
		case <-ctx.Done():
			for {
				select {
				case publish := <-lane:
					s.publish(last, publish)
				default:
					return nil
				}
			}
		}
	}
}

func (s *Server) publish(ctx context.Context, publish func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := publish(ctx); err != nil {
		s.log.WarnContext(ctx, "message not published", "err", err)
	}
}

// serve subscribes to every service and signal of the table. It returns when all subscriptions live at the server.
func (s *Server) serve(ctx context.Context) error {
	return errors.Join(
		s.control.ServeCallout(ctx, s.authorize),

		bus.CreateBuild.Serve(ctx, s.control, s.createBuild),
		bus.GetBuild.Serve(ctx, s.control, s.getBuild),
		bus.ReplayBuild.Serve(ctx, s.control, s.replayBuild),
		bus.FinishBuild.Serve(ctx, s.control, s.finishBuild),
		bus.CancelBuild.Serve(ctx, s.control, s.cancelBuild),
		bus.BuildIsLive.Receive(ctx, s.control, s.buildIsLive),

		bus.ReportIntent.Serve(ctx, s.control, s.reportIntent),
		bus.ReportResult.Serve(ctx, s.control, s.reportResult),
		bus.ReportInventory.Serve(ctx, s.control, s.reportInventory),

		bus.ChallengeMachine.Serve(ctx, s.control, s.challengeMachine),
		bus.RegisterMachine.Serve(ctx, s.control, s.registerMachine),
		bus.RenewMachine.Serve(ctx, s.control, s.renewMachine),
		bus.InstructMachine.Serve(ctx, s.control, s.instructMachine),
		bus.MachineIsLive.Receive(ctx, s.control, s.machineIsLive),
		bus.SayGoodbye.Serve(ctx, s.control, s.sayGoodbye),

		bus.CreateProject.Serve(ctx, s.control, s.createProject),
		bus.GetProject.Serve(ctx, s.control, s.getProject),
		bus.ListProjects.Serve(ctx, s.control, s.listProjects),
		bus.CreateToken.Serve(ctx, s.control, s.createToken),
		bus.ListTokens.Serve(ctx, s.control, s.listTokens),
		bus.RevokeToken.Serve(ctx, s.control, s.revokeToken),
		bus.ListRecentBuilds.Serve(ctx, s.control, s.listBuilds),
		bus.ListLiveMachines.Serve(ctx, s.control, s.listMachines),
	)
}
