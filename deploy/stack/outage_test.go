package stack_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// outage is how long the control plane is away, and longer than every deadline by which a silent build would be ended.
const outage = 60 * time.Second

func TestBuild_InMidRunSurvivesAMinuteWithoutDepotd(t *testing.T) {
	t.Parallel()
	in := newInstallation(t)
	d := in.depotd(t)
	b := in.build(t, source(t, append(image, runStep("sleep", "75s"))...))
	b.says(t, `step: asleep`)
	d.kill()
	select {
	case <-time.After(outage):
	case <-b.exited:
		require.Fail(t, "ended", "the build ended with its control plane:\n%s", b.out)
	}
	in.depotd(t)
	require.Zero(t, b.exitCode(t), "%s", b.out)
	require.Contains(t, b.out.String(), "step: awake")
	in.requireOneEnd(t)
}

func TestBuild_InMidRunSurvivesTheRevocationOfAnotherToken(t *testing.T) {
	t.Parallel()
	in := newInstallation(t)
	in.depotd(t)
	user := in.user(t)
	other := bus.NewToken()
	_, err := bus.CreateToken.Call(t.Context(), user, bus.TokenCreate{Token: other.ID, Hash: other.Hash(), Name: "other", Role: bus.RoleUser})
	require.NoError(t, err)
	holder, err := bus.Connect(t.Context(), bus.Config{URL: "nats://" + in.listen, Token: other, Name: "test"})
	require.NoError(t, err)
	defer holder.Close()

	b := in.build(t, source(t, append(image, runStep("sleep", "10s"))...))
	b.says(t, `step: asleep`)
	_, err = bus.RevokeToken.Call(t.Context(), user, bus.TokenRef{Token: other.ID})
	require.NoError(t, err)
	select {
	case <-holder.Done():
		require.ErrorIs(t, holder.Err(), bus.ErrRevokedToken)
	case <-time.After(patience):
		require.Fail(t, "the holder of the revoked token is still connected")
	}
	require.Zero(t, b.exitCode(t), "%s", b.out)
	in.requireOneEnd(t)
}
