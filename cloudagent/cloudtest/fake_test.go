package cloudtest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
	"github.com/depotctl/depot/cloudagent/cloudtest"
)

func TestFake_Conforms(t *testing.T) {
	t.Parallel()
	cloudtest.Run(t, func(*testing.T) cloudagent.Provider { return &cloudtest.Fake{} })
}

func TestFake_LosesTheReplyButNotTheEffect(t *testing.T) {
	t.Parallel()
	lost := errors.New("connection reset")
	fake := &cloudtest.Fake{After: func(_ context.Context, method string) error {
		if method == "CreateMachine" {
			return lost
		}
		return nil
	}}
	ref := cloudagent.MachineRef{Connection: bus.NewConnectionID(), Machine: bus.NewMachineID(), Attempt: 1}
	spec := cloudagent.MachineSpec{MachineRef: ref, Project: bus.NewProjectID(), Architecture: bus.AMD64}
	require.ErrorIs(t, fake.CreateMachine(t.Context(), spec, func(context.Context, string) error { return nil }), lost)
	listing, err := fake.List(t.Context(), ref.Connection)
	require.NoError(t, err)
	require.Len(t, listing.Live(), 1)
	require.Equal(t, 1, fake.Launches(ref))
}

func TestFake_ShowsTransitionsUntilItIsSettled(t *testing.T) {
	t.Parallel()
	fake := &cloudtest.Fake{Slow: true}
	ref := cloudagent.MachineRef{Connection: bus.NewConnectionID(), Machine: bus.NewMachineID(), Attempt: 1}
	state := func() bus.CloudState {
		listing, err := fake.List(t.Context(), ref.Connection)
		require.NoError(t, err)
		return listing.Machines[0].State
	}
	spec := cloudagent.MachineSpec{MachineRef: ref, Project: bus.NewProjectID(), Architecture: bus.AMD64}
	require.NoError(t, fake.CreateMachine(t.Context(), spec, func(context.Context, string) error { return nil }))
	for _, step := range []struct {
		call     func(context.Context, cloudagent.MachineRef) error
		via, end bus.CloudState
	}{
		{func(context.Context, cloudagent.MachineRef) error { return nil }, bus.CloudPending, bus.CloudRunning},
		{fake.StopMachine, bus.CloudStopping, bus.CloudStopped},
		{fake.StartMachine, bus.CloudPending, bus.CloudRunning},
		{fake.DeleteMachine, bus.CloudShuttingDown, bus.CloudTerminated},
	} {
		require.NoError(t, step.call(t.Context(), ref))
		require.Equal(t, step.via, state())
		fake.Settle()
		require.Equal(t, step.end, state())
	}
}
