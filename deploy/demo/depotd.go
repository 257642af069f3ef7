package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// depotd is the process that the demo starts, and the environment in which depotctl finds it.
type depotd struct {
	bin, dir string
	env      []string
	cmd      *exec.Cmd
	exited   chan error
	machines []string // ids of machines that builds ran on
}

// start runs depotd with a state directory, an address and a configuration file of its own, and waits until it serves.
func start(ctx context.Context, bin, dir string) (*depotd, error) {
	d := &depotd{bin: bin, dir: dir, exited: make(chan error, 1)}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DEPOT_") && !strings.HasPrefix(v, "SUDO_") {
			d.env = append(d.env, v)
		}
	}
	d.env = append(d.env, "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "XDG_STATE_HOME="+filepath.Join(dir, "home"), "SEAL=a secret of the demo")
	log, err := os.Create(d.logFile())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd = exec.Command(filepath.Join(bin, "depotd"), "--dir", d.state(), "--listen", "127.0.0.1:0", "--stop-machines") //nolint:gosec,noctx // stop ends it, and waits
	d.cmd.Env, d.cmd.Stderr = d.env, log
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	go func() {
		d.follow(out, ready)
		d.exited <- d.cmd.Wait()
	}()
	select {
	case <-ready:
		return d, nil
	case err := <-d.exited:
		return nil, errors.Join(fmt.Errorf("depotd ended: %w", err), d.printLog())
	case <-time.After(time.Minute):
		err = errors.New("depotd was not ready within a minute")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return nil, errors.Join(err, d.printLog(), d.stop())
}

func (d *depotd) state() string   { return filepath.Join(d.dir, "state") }
func (d *depotd) logFile() string { return filepath.Join(d.dir, "depotd.log") }

// follow prints what depotd says, and closes ready at its line that says so.
func (d *depotd) follow(out io.Reader, ready chan struct{}) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Println(lines.Text())
		if ready != nil && strings.HasPrefix(lines.Text(), "depotd: ready") {
			close(ready)
			ready = nil
		}
	}
}

func (d *depotd) printLog() error {
	text, err := os.ReadFile(d.logFile())
	fmt.Fprintf(os.Stderr, "%s", text)
	return err
}

// stop ends depotd and the machines, and checks that nothing of the demo is left on this host.
func (d *depotd) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-d.exited:
		if err != nil {
			return errors.Join(fmt.Errorf("depotd ended: %w", err), d.printLog())
		}
	case <-time.After(time.Minute):
		return errors.Join(errors.New("depotd did not end within a minute"), d.cmd.Process.Kill(), d.printLog())
	}
	left, err := leftovers(append(d.machines, d.dir))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	fmt.Println("nothing is left: no process, no mount, no network namespace or link, no cgroup")
	return nil
}

// result is what the output of a build says.
type result struct {
	took        time.Duration
	cached, ran int // steps that came from the cache, and that did not
}

var (
	step   = regexp.MustCompile(`^#(\d+) \[\S+ \d+/\d+\] (RUN|COPY) `)
	cached = regexp.MustCompile(`^#(\d+) CACHED`)
)

// build runs depotctl as a user would.
func (d *depotd) build(ctx context.Context, source, image string) (result, error) {
	args := []string{"build", "--progress=plain", "--secret", "id=seal,env=SEAL", "-o", "type=oci,dest=" + image, source}
	fmt.Println("$ depotctl", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "depotctl"), args...) //nolint:gosec // our own binary
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Env = d.env
	cmd.Stdout = os.Stdout
	out, err := cmd.StderrPipe()
	if err != nil {
		return result{}, err
	}
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return result{}, err
	}
	steps := map[string]bool{} // number of the step: came from the cache
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Println(lines.Text())
		if m := step.FindStringSubmatch(lines.Text()); m != nil {
			steps[m[1]] = steps[m[1]] || false
		}
		if m := cached.FindStringSubmatch(lines.Text()); m != nil {
			steps[m[1]] = true
		}
	}
	if err := cmd.Wait(); err != nil {
		return result{}, errors.Join(fmt.Errorf("depotctl build: %w", err), d.printLog())
	}
	r := result{took: time.Since(started)}
	for _, fromCache := range steps {
		if fromCache {
			r.cached++
		} else {
			r.ran++
		}
	}
	return r, nil
}
