package depotctl

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/docker/buildx/driver"
	"github.com/docker/buildx/util/progress"
	"github.com/moby/buildkit/client"
	dockerclient "github.com/moby/moby/client"

	"github.com/depotctl/depot/bus"
)

// factory makes the drivers of one build. buildx loads its nodes once it has understood every flag and before it looks
// at a single file, so that is the moment to ask for builders.
type factory struct{ build *build }

// Name is the driver's name in the instance file and in buildx's messages.
func (f *factory) Name() string { return builderName }

// Usage is the driver's name too.
func (f *factory) Usage() string { return builderName }

// Priority is asked only when no driver is named; ours always is.
func (f *factory) Priority(context.Context, string, dockerclient.APIClient, map[string][]string) int {
	return 100
}

// AllowsInstances says that a builder instance may name this driver.
func (f *factory) AllowsInstances() bool { return true }

// New makes the driver of one node. It does no I/O.
func (f *factory) New(_ context.Context, cfg driver.InitConfig) (driver.Driver, error) {
	f.build.order()
	arch := strings.TrimPrefix(cfg.EndpointAddr, endpointScheme)
	if arch == defaultNode {
		arch = ""
	}
	return &builderDriver{factory: f, config: cfg, arch: bus.Arch(arch)}, nil
}

// builderDriver is buildx's view of one builder: the one of an architecture, or the build's first one (arch "").
type builderDriver struct {
	factory *factory
	config  driver.InitConfig
	arch    bus.Arch

	mu   sync.Mutex
	link *link // nil until Bootstrap has connected
}

// Bootstrap waits for the builder and connects to it, in one step of the progress display.
func (d *builderDriver) Bootstrap(ctx context.Context, logger progress.Logger) error {
	title := "[depot] builder"
	if d.arch != "" {
		title = "[depot] " + string(d.arch) + " builder"
	}
	return progress.Wrap(title, logger, func(step progress.SubLogger) error {
		lease, err := d.acquire(ctx, newDisplay(step, d.arch))
		if err != nil {
			return err
		}
		var l *link
		err = step.Wrap(string(bus.StageConnecting)+" to "+strings.Join(lease.Addresses, ", "), func() (err error) {
			l, err = connect(ctx, lease, d.factory.build.reservation.key)
			return err
		})
		if err != nil {
			return err
		}
		d.factory.build.guard(l)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.link = l
		return nil
	})
}

// acquire waits until the builder serves, and shows what it waits for.
func (d *builderDriver) acquire(ctx context.Context, show *display) (bus.LeaseView, error) {
	s := &d.factory.build.reservation.status
	refresh := time.NewTicker(refreshInterval)
	defer refresh.Stop()
	for {
		n, now := s.look(d.arch), time.Now()
		show.update(n, now)
		if n.failure != nil {
			show.close(n, now)
			return bus.LeaseView{}, n.failure
		}
		if lease, ok := n.lease(d.arch); ok && n.serving {
			show.close(n, now)
			s.dial(lease.Lease)
			return lease, nil
		}
		timeout := time.NewTimer(time.Until(n.deadline))
		select {
		case <-n.changed:
		case <-refresh.C:
			show.refresh(n, time.Now())
		case <-timeout.C:
			return bus.LeaseView{}, timeoutError(n, d.arch, time.Now())
		case <-ctx.Done():
			timeout.Stop()
			return bus.LeaseView{}, context.Cause(ctx)
		}
		timeout.Stop()
	}
}

// Info is asked before everything else and must cost nothing.
func (d *builderDriver) Info(context.Context) (*driver.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link == nil {
		return &driver.Info{Status: driver.Inactive}, nil
	}
	return &driver.Info{Status: driver.Running}, nil
}

// Client returns the one client of the builder.
func (d *builderDriver) Client(context.Context, ...client.ClientOpt) (*client.Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link == nil {
		return nil, driver.ErrNotRunning{}
	}
	return d.link.client, nil
}

// Dial opens another connection to the builder.
func (d *builderDriver) Dial(ctx context.Context) (net.Conn, error) {
	d.mu.Lock()
	l := d.link
	d.mu.Unlock()
	if l == nil {
		return nil, driver.ErrNotRunning{}
	}
	return l.dial(ctx)
}

// Features are those of BuildKit itself. The result is loaded into a Docker engine only when --load says so.
func (d *builderDriver) Features(context.Context) map[driver.Feature]bool {
	return map[driver.Feature]bool{
		driver.OCIExporter:    true,
		driver.DockerExporter: true,
		driver.CacheExport:    true,
		driver.MultiPlatform:  true,
		driver.DirectPush:     true,
		driver.DefaultLoad:    false,
	}
}

// Factory returns the driver's factory.
func (d *builderDriver) Factory() driver.Factory { return d.factory }

// Config returns what New was given.
func (d *builderDriver) Config() driver.InitConfig { return d.config }

// IsMobyDriver says that this is not the Docker engine's own BuildKit.
func (d *builderDriver) IsMobyDriver() bool { return false }

// HostGatewayIP is refused: the builder's host is not the user's.
func (d *builderDriver) HostGatewayIP(context.Context) (net.IP, error) {
	return nil, errors.New("host-gateway is not supported: the builder is another machine")
}

// Version is asked of BuildKit itself.
func (d *builderDriver) Version(context.Context) (string, error) { return "", nil }

// Stop does nothing: machines are the API server's business.
func (d *builderDriver) Stop(context.Context, bool) error { return nil }

// Rm does nothing: machines are the API server's business.
func (d *builderDriver) Rm(context.Context, bool, bool, bool) error { return nil }
