package bustest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// NewExternal is New with the server in a process of its own, as production runs it. It skips the test if there is no
// nats-server.
func NewExternal(t testing.TB, opts ...Option) *Server {
	t.Helper()
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	trust, err := bus.NewTrust()
	require.NoError(t, err)
	return open(t, o, bus.ControlConfig{URL: StartProcess(t, trust), Trust: trust})
}

// StartProcess runs a nats-server with the trust's configuration until the test ends, and returns its URL.
func StartProcess(t testing.TB, trust *bus.Trust) string {
	t.Helper()
	binary := findServer(t)
	dir := t.TempDir()
	config, err := trust.ServerConfig(bus.ServerOptions{Name: "external", Listen: "127.0.0.1:0", Dir: dir})
	require.NoError(t, err)
	config += fmt.Sprintf("ports_file_dir: %q\n", dir)
	file := filepath.Join(dir, "nats-server.conf")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	var log strings.Builder
	cmd := exec.Command(binary, "--config", file)
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // nothing of it is needed any more
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return waitForPort(t, dir)
}

func findServer(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("DEPOT_TOOLS"); dir != "" {
		if path := filepath.Join(dir, "nats-server"); executable(path) {
			return path
		}
	}
	path, err := exec.LookPath("nats-server")
	if err != nil {
		t.Skip("no nats-server in $DEPOT_TOOLS or $PATH; `make tools` builds one")
	}
	return path
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&0o111 != 0
}

// waitForPort reads the file that the server writes when it listens.
func waitForPort(t testing.TB, dir string) string {
	t.Helper()
	var ports struct {
		URLs []string `json:"nats"`
	}
	require.Eventually(t, func() bool {
		files, err := filepath.Glob(filepath.Join(dir, "*.ports"))
		if err != nil || len(files) == 0 {
			return false
		}
		data, err := os.ReadFile(files[0])
		return err == nil && json.Unmarshal(data, &ports) == nil && len(ports.URLs) > 0
	}, 10*time.Second, 10*time.Millisecond, "nats-server does not listen")
	return ports.URLs[0]
}
