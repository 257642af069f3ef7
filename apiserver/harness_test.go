package apiserver

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
	"github.com/depotctl/depot/certs"
)

// patience bounds every wait for something that takes milliseconds on an idle machine.
const patience = time.Minute

// patiently bounds a call.
func patiently(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// world is a bus with API servers on it, and whoever talks to them.
type world struct {
	bus      *bustest.Server
	timeouts Timeouts
	crash    func(effect) bool // see Server.crash

	mu      sync.Mutex
	servers []*Server
}

// tenant is an organization with a connection, a default project and their tokens.
type tenant struct {
	Bootstrapped
	user, agent bus.Token
}

// newWorld starts one API server.
func newWorld(t testing.TB, timeouts Timeouts) *world {
	t.Helper()
	w := emptyWorld(t, timeouts)
	w.start(t)
	return w
}

// emptyWorld starts none.
func emptyWorld(t testing.TB, timeouts Timeouts) *world {
	t.Helper()
	return &world{bus: bustest.New(t, bustest.WithoutCallout()), timeouts: timeouts}
}

// newest returns the API server that was started last.
func (w *world) newest() *Server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.servers[len(w.servers)-1]
}

// start adds an API server with a connection of its own, and returns what ends it.
func (w *world) start(t testing.TB) (stop func()) {
	t.Helper()
	control, err := bus.OpenControl(patiently(t), bus.ControlConfig{Server: w.bus.Embedded, Trust: w.bus.Trust, Name: "apiserver", Version: "test"})
	require.NoError(t, err)
	s, err := New(Config{Control: control, Version: "test", Timeouts: w.timeouts, Scan: 100 * time.Millisecond, Log: testLog()})
	require.NoError(t, err)
	s.crash = w.crash
	w.mu.Lock()
	w.servers = append(w.servers, s)
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
		require.NoError(t, control.Close())
	})
	t.Cleanup(stop)
	select {
	case <-s.Ready():
	case err := <-ended:
		require.NoError(t, err, "the API server ended before it was ready")
	case <-time.After(patience):
		require.Fail(t, "the API server is not ready")
	}
	return stop
}

// testLog prints everything when DEPOT_TEST_LOG is set.
func testLog() *slog.Logger {
	if os.Getenv("DEPOT_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// tenant makes an organization.
func (w *world) tenant(t testing.TB, name string) tenant {
	t.Helper()
	x := tenant{user: bus.NewToken(), agent: bus.NewToken()}
	made, err := Bootstrap(t.Context(), w.bus.Control, BootstrapConfig{
		Organization: name, Connection: "local", Project: "default", UserToken: x.user, AgentToken: x.agent,
	})
	require.NoError(t, err)
	x.Bootstrapped = made
	return x
}

// connect connects with a token; the connection ends with the test.
func (w *world) connect(t testing.TB, token bus.Token) *bus.Conn {
	t.Helper()
	return w.bus.WithToken(t, token)
}

// client is a CLI that builds.
type client struct {
	conn *bus.Conn
	key  *certs.Key
	csr  string
}

func (w *world) client(t testing.TB, token bus.Token) *client {
	t.Helper()
	key, err := certs.NewKey()
	require.NoError(t, err)
	csr, err := key.CSR()
	require.NoError(t, err)
	return &client{conn: w.connect(t, token), key: key, csr: csr}
}

func (c *client) create(t testing.TB, archs ...bus.Arch) bus.BuildView {
	t.Helper()
	v, err := bus.CreateBuild.Call(patiently(t), c.conn, bus.BuildCreate{Build: bus.NewBuildID(), Architectures: archs, CSR: c.csr})
	require.NoError(t, err)
	return v
}

func (c *client) get(t testing.TB, id bus.BuildID) bus.BuildView {
	t.Helper()
	v, err := bus.GetBuild.Call(patiently(t), c.conn, bus.BuildRef{Build: id})
	require.NoError(t, err)
	return v
}

// until waits until the build is as wanted.
func (c *client) until(t testing.TB, id bus.BuildID, wanted func(bus.BuildView) bool) bus.BuildView {
	t.Helper()
	var v bus.BuildView
	require.Eventually(t, func() bool {
		v = c.get(t, id)
		return wanted(v)
	}, patience, 5*time.Millisecond, "build %s: %+v", id, &v)
	return v
}

func (c *client) untilState(t testing.TB, id bus.BuildID, s bus.BuildState) bus.BuildView {
	t.Helper()
	return c.until(t, id, func(v bus.BuildView) bool { return v.State == s })
}

func (c *client) finish(t testing.TB, id bus.BuildID) bus.BuildView {
	t.Helper()
	v, err := bus.FinishBuild.Call(patiently(t), c.conn, bus.BuildFinish{Build: id, State: bus.BuildSucceeded})
	require.NoError(t, err)
	return v
}
