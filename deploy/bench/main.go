// Command bench measures depot beside what its users would otherwise run, in one run on one machine, interleaved, so
// that ratios mean something where absolute times do not:
//
//   - a fully cached build by depotctl, by docker-buildx (remote driver) and by buildctl, on the same builder;
//   - the acquisition of a builder that runs, beside a plain mTLS connection to it;
//   - the acquisition of a builder that must start, by stage, beside BuildKit's own start;
//   - upload of a context and export of a tar through the front, beside BuildKit's own TLS listener.
//
// It prints tables and asserts nothing: figures are for people.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// options are how often and how much.
type options struct {
	bin    string
	only   string
	rounds int // of the cached build
	warm   int // acquisitions
	cold   int // machines started
	bulk   int // transfers each way
	mb     int // of one transfer
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of depotd, depotctl and the tools")
	flag.StringVar(&o.only, "only", "cached,warm,cold,bulk", "what to measure")
	flag.IntVar(&o.rounds, "rounds", 20, "rounds of the cached build")
	flag.IntVar(&o.warm, "warm", 100, "acquisitions of a running builder")
	flag.IntVar(&o.cold, "cold", 10, "acquisitions of a builder that must start")
	flag.IntVar(&o.bulk, "bulk", 5, "transfers in each direction")
	flag.IntVar(&o.mb, "mb", 500, "size of one transfer in 10^6 bytes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures each part that was asked for against one depotd.
func run(ctx context.Context, o options) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Hour, fmt.Errorf("the bench took more than an hour"))
	defer cancel()
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "depot-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b, err := start(ctx, o, dir)
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := b.stop(); err == nil {
			err = stopErr
		}
	}()
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"cached", b.cached}, {"warm", b.warmAcquisition}, {"cold", b.coldAcquisition}, {"bulk", b.transfers}} {
		if !strings.Contains(o.only, part.name) {
			continue
		}
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("measure %s: %w", part.name, err)
		}
	}
	return nil
}
