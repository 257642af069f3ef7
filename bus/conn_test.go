package bus_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

func TestEveryRoleIsWelcomedAndHeard(t *testing.T) { onEveryForm(t, everyRoleIsWelcomedAndHeard) }

func everyRoleIsWelcomedAndHeard(t *testing.T, s *bustest.Server) {
	o, c := s.Default(t)
	require.NoError(t, bus.ListProjects.Serve(t.Context(), s.Control, func(_ context.Context, from bus.Caller, _ bus.Empty) (bus.ProjectList, error) {
		require.Equal(t, o.Account, from.Account)
		require.Equal(t, o.ID, from.Organization)
		return bus.ProjectList{}, nil
	}))
	require.NoError(t, bus.RenewMachine.Serve(t.Context(), s.Control, func(_ context.Context, from bus.Caller, _ bus.Empty) (bus.MachineCredential, error) {
		require.Equal(t, c.ID, from.Connection)
		return bus.MachineCredential{JWT: string(from.Machine)}, nil
	}))
	user := s.User(t)
	require.Equal(t, bus.RoleUser, user.Welcome().Role)
	_, err := bus.ListProjects.Call(t.Context(), user, bus.Empty{})
	require.NoError(t, err)

	project := bus.NewProjectID()
	ci := s.CI(t, project)
	require.Equal(t, project, ci.Welcome().Project)
	_, err = bus.ListProjects.Call(t.Context(), ci, bus.Empty{})
	require.ErrorIs(t, err, bus.ErrForbidden)

	require.Equal(t, bus.RoleAgent, s.Agent(t).Welcome().Role)
	id := bus.NewMachineID()
	require.Equal(t, bus.RoleNewMachine, s.NewMachine(t, id).Welcome().Role)
	machine := s.Machine(t, id)
	got, err := bus.RenewMachine.Call(t.Context(), machine, bus.Empty{})
	require.NoError(t, err)
	require.Equal(t, string(id), got.JWT)

	hints := make(chan bus.MachineHint, 1)
	require.NoError(t, bus.HintMachine.Subscribe(t.Context(), machine, func(h bus.MachineHint) { hints <- h }))
	require.NoError(t, bus.HintMachine.Send(t.Context(), s.Control, c.Account, string(id), bus.MachineHint{}))
	<-hints

	live := make(chan bus.Caller, 1)
	require.NoError(t, bus.BuildIsLive.Receive(t.Context(), s.Control, func(_ context.Context, from bus.Caller, m bus.BuildLive) { live <- from }))
	require.NoError(t, bus.BuildIsLive.Send(t.Context(), user, bus.BuildLive{Build: bus.NewBuildID()}))
	require.Equal(t, bus.RoleUser, (<-live).Role)
}
