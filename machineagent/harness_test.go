package machineagent

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	types "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/depotctl/depot/bus"
)

// fakeDaemon speaks BuildKit's control API on a unix socket, in this process: enough for the probe and the reports.
// Tests of what BuildKit does use the real one.
type fakeDaemon struct {
	controlapi.UnimplementedControlServer
	socket string
	server *grpc.Server
	hold   <-chan struct{} // Info waits for it
	asked  chan struct{}   // Info was called
	done   chan struct{}
	err    error
	once   sync.Once
}

func (d *fakeDaemon) Info(ctx context.Context, _ *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	nudge(d.asked)
	if d.hold != nil {
		select {
		case <-d.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &controlapi.InfoResponse{BuildkitVersion: &types.BuildkitVersion{Version: "v0.33.1"}}, nil
}

func (d *fakeDaemon) DiskUsage(context.Context, *controlapi.DiskUsageRequest) (*controlapi.DiskUsageResponse, error) {
	return &controlapi.DiskUsageResponse{Record: []*controlapi.UsageRecord{{ID: "a", Size: 1000}, {ID: "b", Size: 234}}}, nil
}

func (d *fakeDaemon) Dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
}

func (d *fakeDaemon) Done() <-chan struct{} { return d.done }
func (d *fakeDaemon) Err() error            { return d.err }

func (d *fakeDaemon) Stop(context.Context) error {
	d.end(errors.New("stopped"))
	return nil
}

// end ends it, as if for that reason.
func (d *fakeDaemon) end(why error) {
	d.once.Do(func() {
		d.server.Stop()
		d.err = why
		close(d.done)
	})
}

// fakeLauncher launches fakes and keeps them.
type fakeLauncher struct {
	dir  string
	hold <-chan struct{}
	fail error // of the next launch

	mu       sync.Mutex
	launched []*fakeDaemon
}

func (l *fakeLauncher) Launch(ctx context.Context) (Daemon, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.fail; err != nil {
		l.fail = nil
		return nil, err
	}
	socket := filepath.Join(l.dir, "d")
	_ = os.Remove(socket)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	d := &fakeDaemon{socket: socket, server: grpc.NewServer(), hold: l.hold, asked: make(chan struct{}, 1), done: make(chan struct{})}
	controlapi.RegisterControlServer(d.server, d)
	go func() { _ = d.server.Serve(listener) }()
	l.launched = append(l.launched, d)
	return d, nil
}

func (l *fakeLauncher) last() *fakeDaemon {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.launched) == 0 {
		return nil
	}
	return l.launched[len(l.launched)-1]
}

// host is a machine: what is left of it when its agent is restarted.
type host struct {
	data     bus.UserData
	launcher *fakeLauncher // nil: the real buildkitd
	log      *syncBuffer
}

func newHost(t *testing.T, c *control) *host {
	t.Helper()
	dir := t.TempDir()
	return &host{
		data: bus.UserData{
			Machine: c.machine, Attempt: 1, Architecture: bus.AMD64, Nonce: c.nonce.Reveal(), BusURL: "nats://in.process",
			StateDir: filepath.Join(dir, "s"), CacheDir: filepath.Join(dir, "c"), Listen: "127.0.0.1:0", Attestor: "nonce", Buildkitd: "/fake", HostNetwork: true,
		},
		launcher: &fakeLauncher{dir: dir},
		log:      &syncBuffer{},
	}
}

// running is an agent that runs.
type running struct {
	*Agent
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func (h *host) start(t *testing.T, c *control, adjust ...func(*Config)) *running {
	t.Helper()
	reach := c.Config()
	cfg := Config{UserData: h.data, Bus: &reach, Version: "test", Log: slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if h.launcher != nil {
		cfg.Launcher = h.launcher
	}
	for _, a := range adjust {
		a(&cfg)
	}
	a, err := New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // ends in the cleanup, which waits
	r := &running{Agent: a, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = a.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
		if t.Failed() {
			t.Log(h.log.String())
		}
	})
	return r
}

// stop stops the agent as SIGTERM does.
func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	r.wait(t)
	require.NoError(t, r.err)
}

func (r *running) wait(t *testing.T) {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(30 * time.Second):
		require.FailNow(t, "the agent does not end")
	}
}

// startReady starts an agent and waits until its daemon is ready.
func (h *host) startReady(t *testing.T, c *control, adjust ...func(*Config)) *running {
	t.Helper()
	var begin int
	c.change(func() { begin = len(c.asked) })
	r := h.start(t, c, adjust...)
	c.wait(t, "daemon ready", func() bool { return len(c.asked) > begin && c.lastDaemon().State == bus.DaemonReady })
	select {
	case <-r.Ready():
	default:
		require.FailNow(t, "it asks and is not ready")
	}
	return r
}

// info is one RPC of a lease's client to the daemon.
func info(ctx context.Context, address string, cfg *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := askVersion(ctx, address, cfg)
	return err
}

// dialBuildKit returns a client over one connection.
func dialBuildKit(t *testing.T, address string, cfg *tls.Config) *client.Client {
	t.Helper()
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	var used atomic.Bool
	c, err := client.New(t.Context(), "tcp://"+address, client.WithContextDialer(func(context.Context, string) (net.Conn, error) {
		if used.Swap(true) {
			return nil, errors.New("used")
		}
		return conn, nil
	}))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// tool finds a program in DEPOT_TOOLS, which make sets, or in PATH.
func tool(t *testing.T, name string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, as BuildKit with a network of its own does")
	}
	path, err := exec.LookPath(filepath.Join(os.Getenv("DEPOT_TOOLS"), name))
	if err != nil {
		path, err = exec.LookPath(name)
	}
	if err != nil {
		t.Skipf("needs %s: run `make tools` and set DEPOT_TOOLS to bin/, as `make test` does", name)
	}
	path, err = filepath.Abs(path)
	require.NoError(t, err)
	return path
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
