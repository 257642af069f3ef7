// Command testreport runs go test and reports what happened in a form that a person, and a log of last week, can read:
// a line for each package, the full output of what failed, every skip with its reason, and the sum as the last line.
//
//	testreport [flags and packages of go test] [-- further flags and packages]...
//
// It fails if a test failed, if a package did not build, and if no test ran at all.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

func main() {
	if !report(os.Args[1:]) {
		os.Exit(1)
	}
}

// report runs everything and reports whether all is well.
func report(args []string) bool {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := newTally(os.Stdout)
	for _, args := range split(args) {
		if err := run(ctx, s, args); err != nil {
			s.broken(err)
		}
	}
	return s.close()
}

// split cuts arguments at each "--".
func split(args []string) [][]string {
	i := slices.Index(args, "--")
	if i < 0 {
		return [][]string{args}
	}
	return append([][]string{args[:i]}, split(args[i+1:])...)
}

// run feeds one go test into the report. That a test failed is no error here: the report knows it from the stream.
func run(ctx context.Context, r *tally, args []string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...) //nolint:gosec // the arguments are the Makefile's
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	if err := read(out, r); err != nil {
		return errors.Join(err, cmd.Wait())
	}
	err = cmd.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); exited && !r.allPassed() && ctx.Err() == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	return nil
}

// read passes each event of the stream to the report, and says what is running when nothing ends for a while.
func read(from io.Reader, r *tally) error {
	events, failed := make(chan event), make(chan error, 1)
	go func() {
		defer close(events)
		lines := json.NewDecoder(bufio.NewReader(from))
		for {
			var e event
			if err := lines.Decode(&e); err != nil {
				failed <- err
				return
			}
			events <- e
		}
	}()
	quiet := time.NewTicker(time.Minute)
	defer quiet.Stop()
	for {
		select {
		case e, more := <-events:
			if !more {
				if err := <-failed; !errors.Is(err, io.EOF) {
					return fmt.Errorf("read the output of go test: %w", err)
				}
				return nil
			}
			if r.add(e) {
				quiet.Reset(time.Minute)
			}
		case <-quiet.C:
			r.stillRunning()
		}
	}
}
