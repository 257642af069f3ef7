// Package instance runs depotd as a process with a state directory, an address and a user configuration of its own, for
// programs that show or measure the whole of depot.
package instance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/depotctl/config"
)

// Config of an Instance.
type Config struct {
	Bin   string    // directory of depotd
	Dir   string    // where everything of the instance lies
	Args  []string  // further arguments of depotd
	Lines io.Writer // where depotd's own lines go; nil means nowhere
}

// Instance is a running depotd.
type Instance struct {
	cfg    Config
	cmd    *exec.Cmd
	exited chan error
}

// limit bounds the start and the stop: they take a fraction of a second.
const limit = time.Minute

// Start runs depotd and waits until it is ready. Machines end with it.
func Start(ctx context.Context, cfg Config) (*Instance, error) {
	if cfg.Lines == nil {
		cfg.Lines = io.Discard
	}
	i := &Instance{cfg: cfg, exited: make(chan error, 1)}
	log, err := os.Create(i.LogFile())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := append([]string{"--dir", i.StateDir(), "--listen", "127.0.0.1:0", "--stop-machines"}, cfg.Args...)
	i.cmd = exec.Command(filepath.Join(cfg.Bin, "depotd"), args...) //nolint:noctx // Stop ends it, and waits
	i.cmd.Env, i.cmd.Stderr = i.Env(), log
	out, err := i.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := i.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start depotd: %w", err)
	}
	ready := make(chan struct{})
	go func() {
		i.follow(out, ready)
		i.exited <- i.cmd.Wait()
	}()
	select {
	case <-ready:
		return i, nil
	case err := <-i.exited:
		return nil, fmt.Errorf("depotd ended: %w\n%s", err, i.log())
	case <-time.After(limit):
		err = fmt.Errorf("depotd was not ready within %s", limit)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return nil, errors.Join(err, i.Stop())
}

// follow passes on what depotd says, and closes ready at its line that says so.
func (i *Instance) follow(out io.Reader, ready chan struct{}) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(i.cfg.Lines, lines.Text())
		if ready != nil && strings.HasPrefix(lines.Text(), "depotd: ready") {
			close(ready)
			ready = nil
		}
	}
}

// StateDir is depotd's state directory.
func (i *Instance) StateDir() string { return filepath.Join(i.cfg.Dir, "state") }

// LogFile is where depotd's log goes.
func (i *Instance) LogFile() string { return filepath.Join(i.cfg.Dir, "depotd.log") }

func (i *Instance) log() string {
	text, err := os.ReadFile(i.LogFile())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Env is an environment in which depotctl finds this instance and no other, and keeps its state here.
func (i *Instance) Env() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DEPOT_") && !strings.HasPrefix(v, "SUDO_") {
			env = append(env, v)
		}
	}
	return append(env, "XDG_CONFIG_HOME="+filepath.Join(i.cfg.Dir, "config"), "XDG_STATE_HOME="+filepath.Join(i.cfg.Dir, "home"))
}

// Connect returns a connection as the user that depotd made at its first start.
func (i *Instance) Connect(ctx context.Context, name string) (*bus.Conn, error) {
	user, err := config.File{Path: filepath.Join(i.cfg.Dir, "config", "depot", "config.json")}.Load()
	if err != nil {
		return nil, err
	}
	return bus.Connect(ctx, bus.Config{URL: user.Server, Token: user.Token, Name: name})
}

// Stop ends depotd and its machines, and waits for them.
func (i *Instance) Stop() error {
	if err := i.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-i.exited:
		if err != nil {
			return fmt.Errorf("depotd ended: %w\n%s", err, i.log())
		}
		return nil
	case <-time.After(limit):
		return fmt.Errorf("depotd did not end within %s: %w\n%s", limit, errors.Join(i.cmd.Process.Kill(), <-i.exited), i.log())
	}
}
