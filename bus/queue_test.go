package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

func anAction() bus.Action {
	m := bus.NewMachineID()
	return bus.Action{ID: bus.ActionID(m, 1, bus.StopMachine), Kind: bus.StopMachine, Machine: m, Attempt: 1, IssuedAt: time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)}
}

func publishAction(t *testing.T, s *bustest.Server, a bus.Action) {
	t.Helper()
	_, c := s.Default(t)
	require.NoError(t, bus.Actions.Publish(t.Context(), s.Control, c.Account, a, a.ID, string(a.Machine)))
}

// consume runs the agent's queue until the test ends.
func consume(t *testing.T, c *bus.Conn, h bus.Handler[bus.Action]) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- bus.Actions.Consume(ctx, c, h) }()
	var once bool
	stop = func() {
		if once {
			return
		}
		once = true
		cancel()
		require.NoError(t, <-ended)
	}
	t.Cleanup(stop)
	return stop
}

func TestActions_ReachTheAgentOnceAndAreThenGone(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	a := anAction()
	publishAction(t, s, a)
	publishAction(t, s, a) // the same id again
	got := make(chan bus.Delivery[bus.Action], 4)
	stop := consume(t, s.Agent(t), func(_ context.Context, d bus.Delivery[bus.Action]) error {
		got <- d
		return nil
	})
	d := <-got
	require.Equal(t, a, d.Message)
	require.Equal(t, 1, d.Attempt)
	stop()
	require.Empty(t, got)
}

func TestActions_ErrorIsDeliveredAgainAndRejectBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	a := anAction()
	publishAction(t, s, a)
	attempts := make(chan int, 4)
	consume(t, s.Agent(t), func(_ context.Context, d bus.Delivery[bus.Action]) error {
		attempts <- d.Attempt
		if d.Attempt == 1 {
			return errors.New("not this time")
		}
		return bus.Reject(errors.New("never"))
	})
	require.Equal(t, 1, <-attempts)
	require.Equal(t, 2, <-attempts)
	require.Eventually(t, func() bool {
		letters, err := s.Control.DeadLetters(t.Context(), 0, 10)
		require.NoError(t, err)
		return len(letters) == 1 && letters[0].Reason == "never" && letters[0].Cause == bus.DeadRejected && letters[0].Attempts == 2
	}, 30*time.Second, 20*time.Millisecond)
}

func TestActions_OnEveryForm(t *testing.T) { onEveryForm(t, actionsLeaveTheQueueAsTheirHandlersSay) }

func actionsLeaveTheQueueAsTheirHandlersSay(t *testing.T, s *bustest.Server) {
	_, c := s.Default(t)
	const each = 5
	kinds := map[bus.MachineID]int{}
	for i := range 3 * each {
		a := anAction()
		kinds[a.Machine] = i % 3
		require.NoError(t, bus.Actions.Publish(t.Context(), s.Control, c.Account, a, a.ID, string(a.Machine)))
	}
	done := make(chan struct{}, 3*each)
	consume(t, s.Agent(t), func(_ context.Context, d bus.Delivery[bus.Action]) error {
		switch {
		case kinds[d.Message.Machine] == 0:
			done <- struct{}{}
			return nil
		case kinds[d.Message.Machine] == 1:
			return bus.Reject(errors.New("outside the vocabulary"))
		case d.Attempt == 1:
			return errors.New("the cloud is away")
		}
		done <- struct{}{}
		return nil
	})
	for range 2 * each {
		<-done
	}
	require.Eventually(t, func() bool { return bus.Stored(t, s.Control, "ACTIONS") == 0 }, 30*time.Second, 20*time.Millisecond)
	letters, err := s.Control.DeadLetters(t.Context(), 0, 100)
	require.NoError(t, err)
	require.Len(t, letters, each)
	for i, letter := range letters {
		require.Equal(t, "outside the vocabulary", letter.Reason)
		require.Equal(t, "ACTIONS", letter.Stream)
		later, err := s.Control.DeadLetters(t.Context(), letter.Sequence, 1)
		require.NoError(t, err)
		if i+1 < each {
			require.Equal(t, letters[i+1:i+2], later)
		} else {
			require.Empty(t, later)
		}
	}
}

func TestActions_AreTheAgentsAlone(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	_, mine := s.Default(t)
	a := anAction()
	publishAction(t, s, a)
	for name, c := range map[string]*bus.Conn{"machine": s.Machine(t, a.Machine), "user": s.User(t)} {
		err := bus.Actions.Consume(t.Context(), c, func(context.Context, bus.Delivery[bus.Action]) error {
			t.Error("handled by a", name)
			return nil
		})
		require.ErrorIs(t, err, bus.ErrForbidden, name)
	}
	other := s.Connection(t, mine.Organization)
	stranger := s.WithToken(t, other.Token)
	_, err := bus.RejectDelivery.Call(t.Context(), stranger, bus.Rejection{Stream: "ACTIONS", Sequence: 1, Cause: bus.DeadRejected})
	require.ErrorIs(t, err, bus.CodeNotFound)
	_, err = bus.RejectDelivery.Call(t.Context(), s.Agent(t), bus.Rejection{Stream: "BUILDS", Sequence: 1, Cause: bus.DeadRejected})
	require.ErrorIs(t, err, bus.CodeNotFound)
	letters, err := s.Control.DeadLetters(t.Context(), 0, 1)
	require.NoError(t, err)
	require.Empty(t, letters)
	require.Equal(t, 1, bus.Stored(t, s.Control, "ACTIONS"))
}
