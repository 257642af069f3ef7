package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

var (
	_ cloudagent.Provider = (*Provider)(nil)
	_ cloudagent.Runner   = (*Provider)(nil)
)

// The defaults of Config.
const (
	DefaultSubnet    = "10.87.0.0/16"
	DefaultPort      = 8443
	DefaultStopGrace = 30 * time.Second
)

const (
	// buildSubnet is where RUN steps live, inside each machine's own network namespace.
	buildSubnet = "10.86.0.0/16"
	// deleteGrace is what a machine that is deleted gets to end its daemon: its cache volume stays.
	deleteGrace = 5 * time.Second
	// bootLimit is how long the first process of a machine may take to start the program.
	bootLimit = 15 * time.Second
	// endLimit is how long the kernel may take to end the processes of a killed machine.
	endLimit = 15 * time.Second
	// tombstoneLife is how long a deleted machine is remembered; late actions are no later than that.
	tombstoneLife = time.Hour
	// longestSocket is what fits into a unix socket's address.
	longestSocket = 107
)

// Config of a Provider. Dir and Tools are required.
type Config struct {
	Dir   string // state: machines, volumes, the bus's socket
	Tools Tools

	// DialBus opens a connection to the bus, for machines: their only way to it is a socket in Dir, whose bytes are
	// forwarded to what DialBus returns. Without it there is no socket.
	DialBus func(ctx context.Context) (net.Conn, error)
	// AllowHostNetwork lets RUN steps use their machine's own network when BuildKit's CNI plugins are missing. (That is
	// not the host's network in either case.)
	AllowHostNetwork bool
	// Subnet is the range of private addresses of which each machine gets a /30; default DefaultSubnet.
	Subnet netip.Prefix
	// Nameservers of machines; default: those of the host that are not addresses of its loopback.
	Nameservers []string
	// Registries are host:port of registries that speak plain HTTP.
	Registries []string
	// EmulateArchitectures are launched although this host is of another one: for tests.
	EmulateArchitectures []bus.Arch
	// Port on which a machine serves builds; default DefaultPort.
	Port int
	// StopGrace is what a machine gets to stop before it is killed; default DefaultStopGrace.
	StopGrace time.Duration
	Now       func() time.Time // default time.Now
	Log       *slog.Logger     // default: discard
}

// Provider runs machines as process trees of this host. Any number of Providers, in any number of processes, may share a
// directory.
type Provider struct {
	cfg Config

	mu       sync.Mutex
	children []int // first processes of machines that this process launched and has not yet reaped
}

// New checks the configuration. It touches nothing.
func New(cfg Config) (*Provider, error) {
	var errs []error
	if cfg.Dir == "" {
		errs = append(errs, errors.New("no state directory"))
	}
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.StopGrace == 0 {
		cfg.StopGrace = DefaultStopGrace
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if !cfg.Subnet.IsValid() {
		cfg.Subnet = netip.MustParsePrefix(DefaultSubnet)
	}
	if !cfg.Subnet.Addr().Is4() || cfg.Subnet.Bits() > subnetBits || !cfg.Subnet.Addr().IsPrivate() {
		errs = append(errs, fmt.Errorf("subnet %s is not a private IPv4 range of at least a /%d", cfg.Subnet, subnetBits))
	}
	dir, err := filepath.Abs(cfg.Dir)
	errs = append(errs, err)
	cfg.Dir = dir
	for _, private := range privateDirs {
		if within(private, dir) {
			errs = append(errs, fmt.Errorf("state directory %s is below %s, of which each machine has its own: choose another", dir, private))
		}
	}
	if socket := filepath.Join(dir, busDir, busSocket); len(socket) > longestSocket {
		errs = append(errs, fmt.Errorf("state directory %s has a path that is %d characters too long for a socket in it: choose another", dir, len(socket)-longestSocket))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("configure local provider: %w", err)
	}
	return &Provider{cfg: cfg}, nil
}

// Architectures returns what this host can run.
func (p *Provider) Architectures() []bus.Arch {
	return append([]bus.Arch{bus.Arch(runtime.GOARCH)}, p.cfg.EmulateArchitectures...)
}

// Run removes what earlier crashes left, and gives machines their way to the bus, until ctx ends.
func (p *Provider) Run(ctx context.Context) error {
	if err := p.makeDirs(); err != nil {
		return err
	}
	if err := p.emptyTrash(); err != nil {
		p.cfg.Log.WarnContext(ctx, "cannot empty trash", slog.Any("err", err))
	}
	if err := removeStaleRules(ctx); err != nil {
		p.cfg.Log.WarnContext(ctx, "cannot remove stale packet filter rules", slog.Any("err", err))
	}
	if p.cfg.DialBus == nil {
		<-ctx.Done()
		return nil
	}
	return p.forwardBus(ctx)
}

// List implements cloudagent.Provider. When it returns, what machines that it shows as ended have left behind is removed.
func (p *Provider) List(ctx context.Context, connection bus.ConnectionID) (cloudagent.Listing, error) {
	p.reap()
	listing, err := p.list(connection)
	if err == nil {
		p.sweep(ctx)
	}
	return listing, err
}

func (p *Provider) list(connection bus.ConnectionID) (cloudagent.Listing, error) {
	var listing cloudagent.Listing
	machines, err := p.machineRecords()
	if err != nil {
		return listing, fmt.Errorf("list machines: %w", err)
	}
	users := map[bus.VolumeID]bus.MachineID{}
	for _, rec := range machines {
		if rec.Connection != connection {
			continue
		}
		status, err := p.status(rec)
		if err != nil {
			return listing, fmt.Errorf("look at machine %s: %w", rec.Machine, err)
		}
		if !rec.ended() && rec.Volume != "" {
			users[rec.Volume] = rec.Machine
		}
		listing.Machines = append(listing.Machines, status)
	}
	volumes, err := p.volumeRecords()
	if err != nil {
		return listing, fmt.Errorf("list volumes: %w", err)
	}
	for _, rec := range volumes {
		if rec.Connection != connection {
			continue
		}
		status := bus.VolumeStatus{Volume: rec.Volume, State: bus.CloudAvailable, Project: rec.Project, SizeGB: rec.SizeGB}
		if rec.Machine != "" && users[rec.Volume] == rec.Machine {
			status.State, status.Machine = bus.CloudInUse, rec.Machine
		}
		listing.Volumes = append(listing.Volumes, status)
	}
	return listing, nil
}

// status derives what a cloud would say: from what is wanted and from whether the machine lives.
func (p *Provider) status(rec machineRecord) (bus.MachineStatus, error) {
	status := bus.MachineStatus{
		Machine: rec.Machine, Attempt: rec.Attempt, Instance: string(rec.Machine), Project: rec.Project,
		Volume: rec.Volume, Since: rec.LaunchedAt, Addresses: []string{},
	}
	alive, err := locked(p.machineFile(rec.Machine, aliveFile))
	if err != nil {
		return status, err
	}
	up := false
	if alive {
		_, up = p.readAlive(rec.Machine)
		if subnet, err := netip.ParsePrefix(rec.Subnet); err == nil {
			status.Addresses = []string{machinePrefix(subnet).Addr().String()}
		}
	} else if !rec.ended() {
		status.Reason = p.readReason(rec.Machine)
	}
	switch {
	case rec.ended():
		status.State, status.Volume = bus.CloudTerminated, ""
	case rec.Want == wantDeleted:
		status.State = bus.CloudShuttingDown
	case rec.Want == wantStopped && alive:
		status.State = bus.CloudStopping
	case rec.Want == wantStopped:
		status.State = bus.CloudStopped
	case alive && up:
		status.State = bus.CloudRunning
	case alive || !rec.Launched:
		status.State = bus.CloudPending
	default: // it ended by itself, or with the host
		status.State = bus.CloudStopped
	}
	return status, nil
}

// sweep removes network, cgroups and files of machines that are dead, whoever launched them. It is a service to the host:
// what fails now is tried again at the next listing.
func (p *Provider) sweep(ctx context.Context) {
	machines, err := p.machineRecords()
	if err != nil {
		return // List says so
	}
	for _, rec := range machines {
		if err := p.sweepMachine(ctx, rec.Machine); err != nil {
			p.cfg.Log.WarnContext(ctx, "cannot remove remains of a machine", slog.String("machine", string(rec.Machine)), slog.Any("err", err))
		}
	}
	names, err := cgroupsOfMachines()
	if err != nil {
		p.cfg.Log.WarnContext(ctx, "cannot list cgroups", slog.Any("err", err))
	}
	for _, name := range names {
		_ = removeCgroups(name) // refused for those that live
	}
}

func (p *Provider) sweepMachine(ctx context.Context, id bus.MachineID) error {
	lock, err := tryLock(p.lockPath(string(id)))
	if lock == nil {
		return err // somebody is at it
	}
	defer lock.unlock()
	rec, ok, err := p.readMachine(id)
	if !ok || err != nil {
		return err
	}
	alive, err := locked(p.machineFile(id, aliveFile))
	if alive || err != nil {
		return err
	}
	if rec.Connected { // it has only just ended
		if err := errors.Join(p.awaitEnd(ctx, id), p.disconnect(ctx, &rec)); err != nil {
			return err
		}
	}
	if !rec.ended() {
		return nil
	}
	if p.cfg.Now().Sub(rec.EndedAt) < tombstoneLife {
		return p.removeMachineFiles(id)
	}
	return errors.Join(os.RemoveAll(p.machineDir(id)), os.Remove(lock.file.Name()))
}

// reap collects first processes of machines that ended, so that they do not stay as zombies while this process lives.
func (p *Provider) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.children = slices.DeleteFunc(p.children, hasEnded)
}

// notFound is the answer to whoever names what does not exist, or is not the connection's.
func notFound(kind string, id string) error {
	return bus.Faultf(bus.CodeNotFound, "%s %s does not exist", kind, id)
}

func conflict(format string, args ...any) error { return bus.Faultf(bus.CodeConflict, format, args...) }

// readText returns "" for a file that cannot be read.
func readText(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
