package local

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkCreateMachine measures what a cold start costs besides BuildKit's own: until the machine's program runs.
func BenchmarkCreateMachine(b *testing.B) {
	cfg := testConfig(b)
	cfg.Log = nil
	p := newProvider(b, cfg)
	for b.Loop() {
		spec := newSpec()
		require.NoError(b, p.CreateMachine(b.Context(), spec, announced))
		b.StopTimer()
		require.NoError(b, p.DeleteMachine(b.Context(), spec.MachineRef))
		b.StartTimer()
	}
}
