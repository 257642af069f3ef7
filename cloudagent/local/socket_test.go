package local

import (
	"context"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/cloudagent"
)

// runProvider runs a provider whose bus is an echo, until stop is called or the test ends.
func runProvider(t *testing.T, cfg Config, port string) (*Provider, func()) {
	t.Helper()
	var err error
	cfg.DialBus, err = DialURL("nats://127.0.0.1:" + port)
	require.NoError(t, err)
	p := newProvider(t, cfg)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return p, stop
}

// reachesBus waits until a machine gets an answer through its socket.
func reachesBus(t *testing.T, p *Provider, ref cloudagent.MachineRef) {
	t.Helper()
	require.Eventually(t, func() bool {
		code, body := ask(t, p, ref, "/dial", "network", "unix", "address", "/run/depot/bus/bus.sock", "say", "x")
		return code == http.StatusOK && strings.HasPrefix(body, "127.0.0.1:")
	}, eventually, tick)
}

func TestMachine_ReachesTheBusOnlyThroughTheSocketAlsoAfterARestart(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	port := echo(t, "127.0.0.1")
	first, stop := runProvider(t, cfg, port)
	spec := newSpec()
	create(t, first, spec)
	reachesBus(t, first, spec.MachineRef)
	_, reached := dial(t, first, spec.MachineRef, net.JoinHostPort("127.0.0.1", port))
	require.False(t, reached)
	info, err := os.Stat(filepath.Join(cfg.Dir, busDir, busSocket))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())

	stop()
	code, _ := ask(t, first, spec.MachineRef, "/dial", "network", "unix", "address", "/run/depot/bus/bus.sock", "say", "x")
	require.Equal(t, http.StatusBadGateway, code)
	second, _ := runProvider(t, cfg, port)
	reachesBus(t, second, spec.MachineRef)
}

func TestProvider_TakesOverTheSocketOfOneThatEnds(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	port := echo(t, "127.0.0.1")
	first, stop := runProvider(t, cfg, port)
	spec := newSpec()
	create(t, first, spec)
	reachesBus(t, first, spec.MachineRef)
	second, _ := runProvider(t, cfg, port)
	stop()
	reachesBus(t, second, spec.MachineRef)
}

func TestForward_EndsWithEitherSideAndWithTheProvider(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	accepted := make(chan net.Conn, 1)
	cfg.DialBus = func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		accepted <- theirs
		return ours, nil
	}
	p := newProvider(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	connect := func() (machine, bus net.Conn) {
		require.Eventually(t, func() bool {
			var err error
			machine, err = (&net.Dialer{}).DialContext(t.Context(), "unix", filepath.Join(cfg.Dir, busDir, busSocket))
			return err == nil
		}, eventually, tick)
		bus = <-accepted
		_, err := machine.Write([]byte("x"))
		require.NoError(t, err)
		_, err = bus.Read(make([]byte, 1))
		require.NoError(t, err)
		return machine, bus
	}
	requireEnd := func(conn net.Conn) {
		_, err := conn.Read(make([]byte, 1))
		require.Error(t, err)
	}
	machine, bus := connect()
	require.NoError(t, bus.Close())
	requireEnd(machine)
	machine, bus = connect()
	require.NoError(t, machine.Close())
	requireEnd(bus)
	machine, bus = connect()
	cancel()
	require.NoError(t, <-ended)
	requireEnd(machine)
	requireEnd(bus)
}

func TestDialURL_WantsTheAddressOfABus(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "127.0.0.1:4250", "http://x:1", "nats://", "nats://%zz"} {
		_, err := DialURL(bad)
		require.Error(t, err, bad)
	}
	for _, good := range []string{"nats://127.0.0.1:4250", "tls://bus.example.com", "nats://[::1]:4222"} {
		_, err := DialURL(good)
		require.NoError(t, err, good)
	}
}
