package apiserver

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// BenchmarkAcquire measures what a client waits for on a machine that runs: from its request until it holds
// certificates. The bus is in this process, with a file store that syncs every write.
func BenchmarkAcquire(b *testing.B) {
	w := newWorld(b, Timeouts{})
	x := w.tenant(b, "acme")
	w.cloud(b, x)
	c := w.client(b, x.user)
	ready := make(chan bus.BuildID, 64)
	require.NoError(b, bus.BuildStory.Subscribe(b.Context(), c.conn, func(e bus.BuildEvent) {
		if e.State == bus.BuildReady {
			ready <- e.Build
		}
	}, "*", "*"))
	c.finish(b, c.untilState(b, c.create(b).Build, bus.BuildReady).Build)
	<-ready
	var took, answered []time.Duration
	for b.Loop() {
		began := time.Now()
		v := c.create(b)
		answered = append(answered, time.Since(began))
		for v.Leases[0].Certificate == "" {
			<-ready
			v = c.get(b, v.Build)
		}
		took = append(took, time.Since(began))
		c.finish(b, v.Build)
	}
	slices.Sort(took)
	slices.Sort(answered)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(answered[len(answered)/2].Microseconds()), "answer-p50-µs")
}
