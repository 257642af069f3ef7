package stack_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience bounds every wait of these tests for something that takes seconds at most on an idle machine.
const patience = 2 * time.Minute

// program returns the path of a program of ours or of a tool, from the directory that the Makefile names.
func program(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("DEPOT_TOOLS")
	if dir == "" {
		t.Skip("DEPOT_TOOLS does not name a directory with our programs and the tools: make test sets it")
	}
	if os.Geteuid() != 0 {
		t.Skip("machines of the local provider need root: run the tests as root")
	}
	path := filepath.Join(dir, name)
	require.FileExists(t, path)
	return path
}

// output collects what a process prints and lets tests wait for it.
type output struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(p)
	close(o.changed)
	o.changed = make(chan struct{})
	return len(p), nil
}

func (o *output) String() string {
	text, _ := o.state()
	return text
}

func (o *output) state() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String(), o.changed
}

// process is a program that runs beside the test.
type process struct {
	name   string
	cmd    *exec.Cmd
	out    *output
	exited chan struct{}
	err    error // once exited is closed
}

// run starts a program. If the test ends before it does, it is killed.
func run(t testing.TB, env []string, path string, args ...string) *process {
	t.Helper()
	p := &process{name: filepath.Base(path), cmd: exec.Command(path, args...), out: newOutput(), exited: make(chan struct{})}
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.WaitDelay = 5 * time.Second // a machine that outlives its depotd must not hold these open
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.exited)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s %s:\n%s", p.name, strings.Join(args, " "), p.out)
		}
	})
	return p
}

// kill ends the process as a power cut would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.exited
}

// stop ends the process as a user would, and requires that it ends well.
func (p *process) stop(t testing.TB) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, p.wait(t), "%s", p.out)
}

// wait returns how the process ended.
func (p *process) wait(t testing.TB) error {
	t.Helper()
	select {
	case <-p.exited:
		return p.err
	case <-time.After(patience):
		require.Fail(t, "not ended", "%s has not ended after %s:\n%s", p.name, patience, p.out)
		return nil
	}
}

// exitCode waits and returns the exit code.
func (p *process) exitCode(t testing.TB) int {
	t.Helper()
	_ = p.wait(t) // the code says it
	return p.cmd.ProcessState.ExitCode()
}

// says waits until the output matches.
func (p *process) says(t testing.TB, pattern string) {
	t.Helper()
	want, deadline := regexp.MustCompile(pattern), time.After(patience)
	for {
		text, changed := p.out.state()
		if want.MatchString(text) {
			return
		}
		select {
		case <-changed:
		case <-p.exited:
			if want.MatchString(p.out.String()) {
				return
			}
			require.Fail(t, "ended without a word", "%s ended (%v) and never said %q:\n%s", p.name, p.err, pattern, p.out)
		case <-deadline:
			require.Fail(t, "silent", "%s did not say %q in %s:\n%s", p.name, pattern, patience, p.out)
		}
	}
}
