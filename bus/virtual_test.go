package bus_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

// pass lets virtual time go by.
func pass(d time.Duration) { <-time.After(d) }

// A session ends by itself after an hour, and the client comes back through the callout: that is how the token of a
// client which stays connected for days is checked again.
func TestATokenIsCheckedAgainEveryHour(t *testing.T) {
	t.Parallel()
	bustest.Virtual(t, func(t *testing.T) {
		s := bustest.New(t, bustest.WithoutCallout())
		_, c := s.Default(t)
		var checks atomic.Int64
		require.NoError(t, s.Control.ServeCallout(t.Context(), func(ctx context.Context, cred bus.Credential) (bus.Grant, error) {
			checks.Add(1)
			return s.Authorize(ctx, cred)
		}))
		agent := s.WithToken(t, c.Token)
		pass(59 * time.Minute)
		require.EqualValues(t, 1, checks.Load())
		pass(10 * time.Hour)
		require.EqualValues(t, 11, checks.Load())
		require.True(t, agent.Connected())
		require.NoError(t, agent.Err())

		s.Revoke(c.Token.ID) // and nobody pushes a revocation
		pass(time.Hour)
		require.ErrorIs(t, agent.Err(), bus.ErrRevokedToken)
	})
}

func TestAMachinesCredentialEndsItsConnection(t *testing.T) {
	t.Parallel()
	bustest.Virtual(t, func(t *testing.T) {
		s := bustest.New(t)
		machine := s.Machine(t, bus.NewMachineID())
		pass(59 * time.Minute)
		require.NoError(t, machine.Err())
		pass(2 * time.Minute)
		require.ErrorIs(t, machine.Err(), bus.ErrExpiredToken)
	})
}

func TestAClientOutlivesALongOutageOfTheAPIServer(t *testing.T) {
	t.Parallel()
	bustest.Virtual(t, func(t *testing.T) {
		s := bustest.New(t, bustest.WithoutCallout())
		_, c := s.Default(t)
		ctx, stop := context.WithCancel(t.Context())
		require.NoError(t, s.Control.ServeCallout(ctx, s.Authorize))
		agent := s.WithToken(t, c.Token)
		stop()
		pass(50 * time.Minute)
		require.True(t, agent.Connected(), "sessions outlive the API server")
		pass(time.Hour)
		require.False(t, agent.Connected(), "nobody renews them")
		require.NoError(t, agent.Err(), "but it goes on trying")
		require.NoError(t, s.Control.ServeCallout(t.Context(), s.Authorize))
		pass(time.Minute)
		require.True(t, agent.Connected())
	})
}
