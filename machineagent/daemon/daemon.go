package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// grace is how long the daemon may take to stop by itself. It usually takes milliseconds; on a machine that is busy,
// taking down the networks that it kept in reserve takes longer.
const grace = 20 * time.Second

// Daemon is a buildkitd that was started.
type Daemon struct {
	cfg  Config
	cmd  *exec.Cmd
	log  *logFile
	done chan struct{}

	// Set before done is closed.
	exit  error // of the process, with its last words
	swept error // of the cleaning up after it
}

// Launch starts the daemon. What an earlier one left behind on this machine, because nobody saw it die, is removed
// first. ctx bounds the launch alone; the daemon dies with Stop or with this process.
func Launch(ctx context.Context, cfg Config) (*Daemon, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("launch daemon: %w", err)
	}
	for _, dir := range []string{cfg.StateDir, cfg.CacheDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("launch daemon: %w", err)
		}
	}
	if err := requireFree(cfg.CacheDir); err != nil {
		return nil, fmt.Errorf("launch daemon: %w", err)
	}
	if err := sweep(ctx, cfg); err != nil {
		return nil, fmt.Errorf("launch daemon: %w", err)
	}
	text, err := cfg.render()
	if err != nil {
		return nil, fmt.Errorf("launch daemon: %w", err)
	}
	config := filepath.Join(cfg.StateDir, configName)
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return nil, fmt.Errorf("launch daemon: %w", err)
	}
	log, err := openLog(filepath.Join(cfg.StateDir, logName))
	if err != nil {
		return nil, fmt.Errorf("launch daemon: %w", err)
	}
	_ = os.Remove(cfg.socket()) // of a daemon that was killed
	d := &Daemon{cfg: cfg, log: log, done: make(chan struct{})}
	d.cmd = exec.Command(cfg.Buildkitd, "--config", config) //nolint:noctx // it outlives ctx; Stop ends it
	d.cmd.Env = cfg.environment()
	d.cmd.Dir = cfg.StateDir
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.WaitDelay = time.Second // a child that kept the log open does not hold up the end
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go d.run(started) //nolint:gosec // G118: it lives as long as the daemon, not as long as the launch
	if err := <-started; err != nil {
		return nil, fmt.Errorf("launch daemon: %w", err)
	}
	cfg.Log.Info("daemon started", slog.Int("pid", d.cmd.Process.Pid))
	return d, nil
}

// run starts the process and sees it end, on one thread: the kernel sends the death signal of a parent when the
// thread that started the child ends, not the process.
func (d *Daemon) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := d.cmd.Start(); err != nil {
		_ = d.log.Close()
		started <- err
		return
	}
	started <- nil
	err := d.cmd.Wait()
	if err == nil {
		err = errors.New("exit status 0")
	}
	d.exit = fmt.Errorf("buildkitd ended: %w%s", err, d.log.lastWords())
	d.swept = sweep(context.Background(), d.cfg)
	_ = d.log.Close()
	close(d.done)
}

// Dial opens a connection to the daemon's unix socket.
func (d *Daemon) Dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", d.cfg.socket())
}

// Done is closed when the daemon has ended and nothing of it is left.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Err says how the daemon ended, once Done is closed.
func (d *Daemon) Err() error {
	select {
	case <-d.done:
		return d.exit
	default:
		return nil
	}
}

// Stop ends the daemon and waits until nothing of it is left. An error means that it did not end cleanly: it had to be
// killed, or something of it remains. ctx shortens the grace that it gets.
func (d *Daemon) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	var killed error
	select {
	case <-d.done:
	case <-ctx.Done():
		killed = errors.New("it did not stop in time and was killed")
		_ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
		select {
		case <-d.done:
		case <-time.After(2 * grace): // a disk that does not answer keeps processes from dying
			return errors.New("stop daemon: it does not die")
		}
	}
	if err := errors.Join(killed, d.swept); err != nil {
		return fmt.Errorf("stop daemon: %w", err)
	}
	return nil
}
