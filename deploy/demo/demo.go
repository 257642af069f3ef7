package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/depotctl/depot/deploy/instance"
)

// demo is the running depotd, and what was seen of it.
type demo struct {
	*instance.Instance
	bin, dir string
	machines []string // ids of machines that builds ran on
}

func start(ctx context.Context, bin, dir string) (*demo, error) {
	i, err := instance.Start(ctx, instance.Config{Bin: bin, Dir: dir, Lines: os.Stdout})
	if err != nil {
		return nil, err
	}
	return &demo{Instance: i, bin: bin, dir: dir}, nil
}

// stop ends depotd and the machines, and checks that nothing of the demo is left on this host.
func (d *demo) stop() error {
	if err := d.Stop(); err != nil {
		return err
	}
	left, err := leftovers(append(d.machines, d.dir))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	fmt.Println("nothing is left: no process, no mount, no network link or rule, no cgroup")
	return nil
}

func (d *demo) printLog() error {
	text, err := os.ReadFile(d.LogFile())
	fmt.Fprintf(os.Stderr, "%s", text)
	return err
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
func (d *demo) build(ctx context.Context, source, image string) (result, error) {
	args := []string{"build", "--progress=plain", "--secret", "id=seal,env=SEAL", "-o", "type=oci,dest=" + image, source}
	fmt.Println("$ depotctl", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "depotctl"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Env = append(d.Env(), "SEAL=a secret of the demo")
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
		return result{}, fmt.Errorf("depotctl build: %w (the log of depotd is above)", errors.Join(err, d.printLog()))
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
