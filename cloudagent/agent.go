package cloudagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/depotctl/depot/bus"
)

const (
	// inventoryEvery is how often the inventory is reported when nothing happens.
	inventoryEvery = 10 * time.Second
	// reconnectPause is how long an agent waits before it looks for a bus that was away.
	reconnectPause = time.Second
)

// Config of an Agent. Bus, Provider and Limits.Architectures are required.
type Config struct {
	Bus      bus.Config // with Token, the connection's
	BusURL   string     // where machines find the bus; default Bus.URL
	BusCA    string     // PEM roots of BusURL, for machines
	Provider Provider
	Limits   Limits
	Version  string           // of the program, for people
	Now      func() time.Time // default time.Now
	Log      *slog.Logger     // default: discard
}

// Agent is the cloud-agent of one connection.
type Agent struct {
	cfg   Config
	log   *slog.Logger
	rows  rows
	fence fence
	quota quota
	kick  chan struct{} // asks for an inventory
	ready chan struct{}
	begun sync.Once // closes ready
}

// New checks the configuration. It touches nothing.
func New(cfg Config) (*Agent, error) {
	var errs []error
	if cfg.Bus.Token.IsZero() {
		errs = append(errs, errors.New("no connection token"))
	}
	if cfg.Provider == nil {
		errs = append(errs, errors.New("no provider"))
	}
	errs = append(errs, cfg.Limits.setDefaults())
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("configure cloud-agent: %w", err)
	}
	if cfg.BusURL == "" {
		cfg.BusURL = cfg.Bus.URL
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Bus.Name == "" {
		cfg.Bus.Name = "cloudagent"
	}
	cfg.Bus.Version = cfg.Version
	return &Agent{
		cfg: cfg, log: cfg.Log.With(slog.String("component", "cloudagent")),
		kick: make(chan struct{}, 1), ready: make(chan struct{}),
		quota: quota{max: cfg.Limits.MaxMachines},
	}, nil
}

// Ready is closed once the agent is connected and has reported its first inventory.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run works until ctx ends, and then returns nil. However long the bus is away, it waits for it; its error says why the
// token is not accepted (any more).
func (a *Agent) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if runner, ok := a.cfg.Provider.(Runner); ok {
		group.Go(func() error { return runner.Run(ctx) })
	}
	group.Go(func() error {
		for ctx.Err() == nil {
			if err := a.session(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	return group.Wait()
}

// session works over one connection. It returns nil when ctx has ended or when another connection may work.
func (a *Agent) session(ctx context.Context) error {
	conn, err := bus.Connect(ctx, a.cfg.Bus)
	if err == nil {
		err = errors.Join(a.work(ctx, conn), conn.Close())
	}
	if err == nil || ctx.Err() != nil {
		return nil //nolint:nilerr // it was asked to end
	}
	if !passing(err) {
		return err
	}
	a.log.WarnContext(ctx, "bus is away", slog.Any("err", err))
	wait(ctx, reconnectPause)
	return nil
}

// passing reports whether a connection that could not be made, or that ended, may be had later.
func passing(err error) bool {
	for _, reason := range []error{bus.ErrBadToken, bus.ErrExpiredToken, bus.ErrRevokedToken, bus.ErrProtocol, bus.ErrForbidden} {
		if errors.Is(err, reason) {
			return false
		}
	}
	for _, reason := range []error{bus.ErrUnreachable, bus.ErrNoAPIServer, bus.CodeUnavailable, context.DeadlineExceeded, errEnded} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false // a root certificate that cannot be read, for one
}

// errEnded marks what was a connection once: there, nothing was wrong with the configuration.
var errEnded = errors.New("connection to the bus ended")

// work returns when ctx or the connection ends.
func (a *Agent) work(ctx context.Context, conn *bus.Conn) error {
	s := &session{Agent: a, conn: conn, connection: conn.Welcome().Connection}
	s.log = a.log.With(slog.String("connection", string(s.connection)))
	group, ctx := errgroup.WithContext(ctx)
	if err := bus.AgentHint.Subscribe(ctx, conn, func(bus.Empty) { a.wantInventory() }); err != nil {
		return fmt.Errorf("%w: %w", errEnded, err)
	}
	s.reportInventory(ctx) // before any action: it also says which attempts are over
	group.Go(func() error { return s.inventories(ctx) })
	group.Go(func() error { return bus.Actions.Consume(ctx, conn, s.handle) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-conn.Done():
			return conn.Err()
		}
	})
	if err := group.Wait(); err != nil {
		return fmt.Errorf("%w: %w", errEnded, err)
	}
	return nil
}

// session is an Agent with a connection.
type session struct {
	*Agent
	conn       *bus.Conn
	connection bus.ConnectionID
	log        *slog.Logger
}

// wantInventory asks for an inventory soon. Any number of wishes is fulfilled by one that begins after the last of them.
func (a *Agent) wantInventory() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

func (s *session) inventories(ctx context.Context) error {
	tick := time.NewTicker(inventoryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-s.kick:
		}
		s.reportInventory(ctx)
	}
}

// reportInventory reports what there is in the cloud. What could not be listed is not reported: unknown is not empty.
func (s *session) reportInventory(ctx context.Context) {
	at := s.cfg.Now().UTC()
	listing, err := s.cfg.Provider.List(ctx, s.connection)
	if err != nil {
		s.log.ErrorContext(ctx, "cannot list the cloud", slog.Any("err", err))
		return
	}
	for _, m := range listing.Machines {
		s.fence.pass(m.Machine, m.Attempt, at)
	}
	s.fence.forget(at)
	_, err = bus.ReportInventory.Call(ctx, s.conn, bus.Inventory{
		Version: s.cfg.Version, Architectures: s.cfg.Limits.Architectures, MaxMachines: s.cfg.Limits.MaxMachines,
		Machines: listing.Machines, Volumes: listing.Volumes, At: at,
	})
	if err != nil {
		s.log.WarnContext(ctx, "cannot report inventory", slog.Any("err", err))
		return
	}
	s.begun.Do(func() { close(s.ready) })
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
