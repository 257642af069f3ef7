package bus

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Consumers returns how many consumers a stream has.
func Consumers(t *testing.T, c *Control, stream string) int {
	t.Helper()
	s, err := c.js.Stream(t.Context(), stream)
	require.NoError(t, err)
	return s.CachedInfo().State.Consumers
}

// Stored returns how many messages a stream holds.
func Stored(t *testing.T, c *Control, stream string) int {
	t.Helper()
	s, err := c.js.Stream(t.Context(), stream)
	require.NoError(t, err)
	return int(s.CachedInfo().State.Msgs)
}
