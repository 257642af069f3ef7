package apiserver

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

func TestBuildGetsABuilderFromNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)

	v := c.create(t)
	require.Len(t, v.Leases, 1)
	v = c.untilState(t, v.Build, bus.BuildReady)
	require.Equal(t, []string{"127.0.0.1:1234"}, v.Leases[0].Addresses)
	require.Equal(t, bus.StageServing, v.Leases[0].Stage)
	require.NotEmpty(t, v.Leases[0].Certificate)
	require.Len(t, cloud.machineIDs(), 1)

	require.Equal(t, bus.BuildSucceeded, c.finish(t, v.Build).State)
	require.Empty(t, c.get(t, v.Build).Leases[0].Certificate)
}
