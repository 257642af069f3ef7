package depotctl

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
)

// beMain makes the test binary behave as depotctl itself.
const beMain = "DEPOTCTL_TEST_BE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) != "" {
		os.Exit(Main(os.Args[1:]))
	}
	testscript.Main(withDaemon{m}, map[string]func(){"depotctl": func() { os.Exit(Main(os.Args[1:])) }})
}

// withDaemon stops the shared daemon after the last test.
type withDaemon struct{ m *testing.M }

func (w withDaemon) Run() int {
	code := w.m.Run()
	if shared.daemon != nil {
		shared.daemon.stop()
	}
	return code
}

// program is depotctl as a process of its own.
type program struct {
	cmd    *exec.Cmd
	stderr lockedBuffer
	stdout lockedBuffer
	home   string
}

// depotctl prepares a run against the API server a.
func (a *api) depotctl(t testing.TB, args ...string) *program {
	t.Helper()
	p := &program{home: t.TempDir()}
	p.cmd = exec.Command(os.Args[0], args...)
	p.cmd.Env = append(os.Environ(), beMain+"=1", "HOME="+p.home, "XDG_CONFIG_HOME=", "XDG_STATE_HOME=",
		"DEPOT_SERVER="+a.bus.URL, "DEPOT_TOKEN="+a.token.Reveal(), "DEPOT_PROJECT_ID=", "BUILDKIT_PROGRESS=plain", "DOCKER_HOST=unix:///nowhere/docker.sock")
	p.cmd.Dir = t.TempDir()
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	t.Cleanup(func() {
		if p.cmd.Process != nil && p.cmd.ProcessState == nil {
			require.NoError(t, p.cmd.Process.Kill())
			_ = p.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("depotctl %s\nstdout:\n%s\nstderr:\n%s", strings.Join(args, " "), p.stdout.String(), p.stderr.String())
		}
	})
	return p
}

// write puts a file into the program's working directory.
func (p *program) write(t testing.TB, name, content string) *program {
	t.Helper()
	path := filepath.Join(p.cmd.Dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	return p
}

// withTool puts the program that RUN steps execute into the context.
func (p *program) withTool(t testing.TB) *program {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(p.cmd.Dir, "tool"), buildTool(t), 0o755))
	return p
}

func (p *program) start(t testing.TB) *program {
	t.Helper()
	require.NoError(t, p.cmd.Start())
	return p
}

// wait returns the exit code.
func (p *program) wait(t testing.TB) ExitCode {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.cmd.Wait() // the exit code says it
	}()
	select {
	case <-done:
		return ExitCode(p.cmd.ProcessState.ExitCode())
	case <-time.After(60 * time.Second):
		require.NoError(t, p.cmd.Process.Kill())
		<-done
		require.FailNow(t, "depotctl did not end within 60 s")
		return -1
	}
}

func (p *program) run(t testing.TB) ExitCode {
	t.Helper()
	return p.start(t).wait(t)
}

// sees waits until the program has printed text.
func (p *program) sees(t testing.TB, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(p.stderr.String(), text) }, 30*time.Second, 20*time.Millisecond, "stderr never said %q", text)
}

// lastLine is what a user reads at the end, before the hints.
func (p *program) lastLine() string {
	lines := strings.Split(strings.TrimSpace(p.stderr.String()), "\n")
	for _, line := range slices.Backward(lines) {
		if !strings.HasPrefix(line, "hint: ") {
			return line
		}
	}
	return ""
}

// lockedBuffer can be read while the program writes.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// buildTool compiles testdata/tool once.
func buildTool(t testing.TB) []byte {
	t.Helper()
	compiled.once.Do(func() {
		dir, err := os.MkdirTemp("", "depotctl-tool-") //nolint:usetesting // it outlives the test that needs it first
		if err != nil {
			compiled.err = err
			return
		}
		defer os.RemoveAll(dir)
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "tool"), "./testdata/tool")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			compiled.err = fmt.Errorf("%w: %s", err, out)
			return
		}
		compiled.program, compiled.err = os.ReadFile(filepath.Join(dir, "tool"))
	})
	require.NoError(t, compiled.err)
	return compiled.program
}

var compiled struct {
	once    sync.Once
	program []byte
	err     error
}
