package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/depotctl/depot/apiserver"
	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
	"github.com/depotctl/depot/cloudagent/local"
	"github.com/depotctl/depot/depotctl/config"
)

// The names of what the first start makes.
const (
	organizationName = "default"
	projectName      = "default"
	connectionName   = "local"
)

// stopLimit bounds the stop of all machines.
const stopLimit = 45 * time.Second

// Config of a Stack.
type Config struct {
	// Dir holds all state. Required; made if it does not exist.
	Dir string
	// Listen is host:port of the bus for clients. Required; port 0 means any free one.
	Listen string
	// Tools are the programs that machines run. Required.
	Tools local.Tools
	// AllowHostNetwork lets machines start without the CNI plugins of BuildKit's bridge.
	AllowHostNetwork bool
	// StopMachines stops all machines at the end. Otherwise they outlive the stack, and the next one finds them.
	StopMachines bool
	// Registries are host:port of registries that speak plain HTTP.
	Registries []string
	// MaxMachines bounds the machines of this host; 0 means the cloud-agent's default.
	MaxMachines int
	// Timeouts are the API server's deadlines; zero fields mean its defaults.
	Timeouts apiserver.Timeouts
	// User is the configuration file that gets server and token at the first start; an empty path means none.
	User config.File
	// Say gets the lines that are for a person. The default drops them.
	Say func(line string)
	// Version of the program, for people.
	Version string
	// Log of what an operator wants to know. The default discards.
	Log *slog.Logger
}

// Stack is a control plane in this process.
type Stack struct {
	cfg   Config
	ready chan struct{}
}

// New checks the configuration. It does no I/O.
func New(cfg Config) (*Stack, error) {
	var errs []error
	if cfg.Dir == "" {
		errs = append(errs, errors.New("a state directory is required"))
	}
	if _, _, err := net.SplitHostPort(cfg.Listen); err != nil {
		errs = append(errs, fmt.Errorf("listen address: %w", err))
	}
	if cfg.MaxMachines < 0 {
		errs = append(errs, errors.New("MaxMachines is negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("new stack: %w", err)
	}
	if cfg.Say == nil {
		cfg.Say = func(string) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Stack{cfg: cfg, ready: make(chan struct{})}, nil
}

// Ready is closed once builds are accepted.
func (s *Stack) Ready() <-chan struct{} { return s.ready }

// Run runs everything until ctx ends, and then returns nil. It ends with an error when a part does.
func (s *Stack) Run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return bus.Faultf(bus.CodeForbidden, "machines of the local provider are namespaces of this host, and need root").WithHint("sudo depotd")
	}
	dir, err := openDirectory(s.cfg.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.close()) }()
	keys, err := openKeys(dir)
	if err != nil {
		return err
	}
	if err := checkListen(ctx, s.cfg.Listen); err != nil {
		return err
	}
	server, err := bus.StartEmbedded(ctx, bus.EmbeddedConfig{Dir: dir.file("bus"), Trust: keys.trust, Listen: s.cfg.Listen, Log: s.cfg.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	control, err := bus.OpenControl(ctx, bus.ControlConfig{Server: server, Trust: keys.trust, Name: "depotd", Version: s.cfg.Version, Log: s.cfg.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	made, err := apiserver.Bootstrap(ctx, control, apiserver.BootstrapConfig{
		Organization: organizationName, Project: projectName, Connection: connectionName, UserToken: keys.user, AgentToken: keys.agent,
	})
	if err != nil {
		return err
	}
	return s.runParts(ctx, parts{dir: dir, keys: keys, server: server, control: control, connection: made.Connection})
}

// parts are what is open while the components run.
type parts struct {
	dir        *directory
	keys       keys
	server     *bus.Embedded
	control    *bus.Control
	connection bus.ConnectionID
}

// runParts runs the API server, and the cloud-agent inside its life: machines that are stopped at the end can say so.
func (s *Stack) runParts(ctx context.Context, p parts) error {
	api, err := apiserver.New(apiserver.Config{Control: p.control, Version: s.cfg.Version, Timeouts: s.cfg.Timeouts, Log: s.cfg.Log})
	if err != nil {
		return err
	}
	provider, err := local.New(local.Config{
		Dir: p.dir.file("local"), Tools: s.cfg.Tools, AllowHostNetwork: s.cfg.AllowHostNetwork, Registries: s.cfg.Registries, Log: s.cfg.Log,
		DialBus: dialer(p.server.URL()),
	})
	if err != nil {
		return err
	}
	agent, err := cloudagent.New(cloudagent.Config{
		Bus:      bus.Config{Server: p.server, Token: p.keys.agent, Log: s.cfg.Log},
		Provider: provider,
		Limits:   cloudagent.Limits{Architectures: provider.Architectures(), MaxMachines: s.cfg.MaxMachines},
		Version:  s.cfg.Version,
		Log:      s.cfg.Log,
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	acting, stopActing := context.WithCancel(context.WithoutCancel(ctx))
	acted := make(chan struct{})
	g.Go(func() error { return p.dir.watchSpace(ctx) })
	g.Go(func() error { return api.Run(serving) })
	g.Go(func() error {
		defer close(acted)
		if !await(acting, api.Ready()) {
			return nil
		}
		return agent.Run(acting)
	})
	g.Go(func() error {
		if !await(ctx, agent.Ready()) {
			return nil
		}
		return s.introduce(p)
	})
	g.Go(func() error { // the end, in the order in which everybody can still report it
		defer stopServing()
		<-ctx.Done()
		err := s.stopMachines(ctx, provider, p.connection)
		stopActing()
		<-acted
		return errors.Join(err, s.stopMachines(ctx, provider, p.connection)) // whatever was asked for in between
	})
	return g.Wait()
}

// await reports whether a part became ready before ctx ended.
func await(ctx context.Context, ready <-chan struct{}) bool {
	select {
	case <-ready:
		return true
	case <-ctx.Done():
		return false
	}
}

// stopMachines stops every machine, cleanly and all at once, if nothing of the stack shall be left on this host.
func (s *Stack) stopMachines(ctx context.Context, provider *local.Provider, connection bus.ConnectionID) error {
	if !s.cfg.StopMachines {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	listing, err := provider.List(ctx, connection)
	if err != nil {
		return fmt.Errorf("stop machines: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range listing.Live() {
		g.Go(func() error {
			s.cfg.Log.InfoContext(ctx, "stopping machine", slog.String("machine", string(m.Machine)))
			return provider.StopMachine(ctx, cloudagent.MachineRef{Connection: connection, Machine: m.Machine, Attempt: m.Attempt})
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("stop machines: %w", err)
	}
	_, err = provider.List(ctx, connection) // removes what dead machines left
	return err
}

// dialer connects machines, which have no network of their own to it, to the bus.
func dialer(url string) func(context.Context) (net.Conn, error) {
	address := url[len("nats://"):]
	return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", address) }
}

// checkListen says at once and by name what the bus server would only log.
func checkListen(ctx context.Context, address string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		reason := err
		if e, ok := errors.AsType[*os.SyscallError](err); ok {
			reason = e.Err
		}
		return bus.Faultf(bus.CodeUnavailable, "cannot listen on %s: %v", address, reason).
			WithHint("is another depotd running? choose another address with --listen; clients find it through their configuration file or DEPOT_SERVER")
	}
	return l.Close()
}
