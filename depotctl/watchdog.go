package depotctl

import (
	"context"
	"fmt"
	"time"
)

// The limits of the watchdog. A builder that hangs is given up between 11 and 12 s after its last byte; with the time
// that buildx needs to end (endGrace), the build is over within 15 s.
const (
	watchInterval = time.Second
	askAfter      = 2 * time.Second  // of silence: ask for a sign of life
	lostAfter     = 11 * time.Second // of silence: the builder is lost
	// strideLimit bounds what one tick may add to the silence, so that a suspended client (a closed lid, Ctrl-Z) does
	// not take its own absence for the builder's.
	strideLimit = 2 * time.Second
)

// watch returns why the builder is lost, or nil when ctx ends first. BuildKit and its client have no keepalive of their
// own. The question is Info, which a builder answers from memory however busy its steps keep the machine.
func (l *link) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	answered := make(chan struct{}, 1)
	defer cancel()
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()

	var (
		silence time.Duration
		asked   bool
		beats   = l.pulse.count()
		last    = time.Now()
	)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.pulse.ended:
			return fmt.Errorf("the connection to the %s ended: %w", l.name(), l.pulse.broken())
		case <-answered:
			asked = false
			continue
		case now := <-ticker.C:
			stride := min(now.Sub(last), strideLimit)
			last = now
			if n := l.pulse.count(); n != beats {
				beats, silence = n, 0
				continue
			}
			silence += stride
		}
		if silence >= lostAfter {
			return fmt.Errorf("the %s at %s has not answered for %s", l.name(), l.address, silence.Round(time.Second))
		}
		if silence >= askAfter && !asked {
			asked = true
			go func() { // ends with ctx
				_, _ = l.client.Info(ctx) // an answer of any kind is a byte on the connection
				answered <- struct{}{}
			}()
		}
	}
}
