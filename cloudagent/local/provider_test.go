package local

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

const hostArch = bus.Arch(runtime.GOARCH)

// testConfig is of a provider whose machines run the stand-in.
func testConfig(t testing.TB) Config {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("machines need root: run the tests as root")
	}
	self, err := os.Executable()
	require.NoError(t, err)
	return Config{
		Dir:              t.TempDir(),
		Tools:            Tools{Machineagent: self, Buildkitd: self, Runc: self},
		AllowHostNetwork: true,
		StopGrace:        10 * time.Second,
		Log:              slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// newProvider makes a provider, and removes all its machines at the end of the test.
func newProvider(t testing.TB, cfg Config) *Provider {
	t.Helper()
	p, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { removeAll(t, p) })
	return p
}

func removeAll(t testing.TB, p *Provider) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	machines, err := p.machineRecords()
	require.NoError(t, err)
	for _, m := range machines {
		if t.Failed() {
			log, _ := os.ReadFile(p.LogPath(m.Machine))
			t.Logf("log of %s:\n%s", m.Machine, log)
		}
		require.NoError(t, p.DeleteMachine(ctx, cloudagent.MachineRef{Connection: m.Connection, Machine: m.Machine, Attempt: m.Attempt}))
	}
}

func newSpec() cloudagent.MachineSpec {
	ref := cloudagent.MachineRef{Connection: bus.NewConnectionID(), Machine: bus.NewMachineID(), Attempt: 1}
	return cloudagent.MachineSpec{
		MachineRef: ref, Project: bus.NewProjectID(), Architecture: hostArch, BusURL: "nats://bus.example:4222",
		Nonce: bus.LaunchNonce(bus.NewToken(), ref.Machine, ref.Attempt),
	}
}

func announced(context.Context, string) error { return nil }

func create(t *testing.T, p *Provider, spec cloudagent.MachineSpec) {
	t.Helper()
	require.NoError(t, p.CreateMachine(t.Context(), spec, announced))
}

// machine returns what List says of a machine.
func machine(t *testing.T, p *Provider, ref cloudagent.MachineRef) bus.MachineStatus {
	t.Helper()
	listing, err := p.List(t.Context(), ref.Connection)
	require.NoError(t, err)
	for _, m := range listing.Machines {
		if m.Machine == ref.Machine {
			return m
		}
	}
	require.Fail(t, "machine is not listed")
	return bus.MachineStatus{}
}

// ask makes a request of the stand-in in a machine, which may only just have been started.
func ask(t *testing.T, p *Provider, ref cloudagent.MachineRef, path string, query ...string) (int, string) {
	t.Helper()
	values := url.Values{}
	for i := 0; i < len(query); i += 2 {
		values.Set(query[i], query[i+1])
	}
	status := machine(t, p, ref)
	require.Len(t, status.Addresses, 1)
	var code int
	var body []byte
	require.Eventually(t, func() bool {
		response, err := http.Get("http://" + status.Addresses[0] + ":8443" + path + "?" + values.Encode())
		if err != nil {
			return false
		}
		defer response.Body.Close()
		code = response.StatusCode
		body, err = io.ReadAll(response.Body)
		return err == nil
	}, eventually, tick)
	return code, string(body)
}

func shell(t *testing.T, p *Provider, ref cloudagent.MachineRef, script string) string {
	t.Helper()
	code, out := ask(t, p, ref, "/shell", "script", script)
	require.Equal(t, http.StatusOK, code, out)
	return out
}
