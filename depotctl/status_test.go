package depotctl

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

func viewOf(state bus.BuildState, leases ...bus.LeaseView) bus.BuildView {
	return bus.BuildView{Build: "bld-aaaaaaaaaaaaaaaa", State: state, Leases: leases}
}

func TestStatus_KeepsTheTimeOfEachStage(t *testing.T) {
	t.Parallel()
	t0 := time.Now()
	at := func(seconds int) time.Time { return t0.Add(time.Duration(seconds) * time.Second) }
	s := newStatus(t0)
	s.start(at(1), time.Minute)
	lease := bus.LeaseView{Lease: "lse-aaaaaaaaaaaaaaaa", Architecture: bus.ARM64, Stage: bus.StageLaunching, Reason: "trying us-east-1a"}
	s.learn(viewOf(bus.BuildWaiting, lease), at(3))
	s.hear(bus.BuildEvent{Architecture: bus.ARM64, Stage: bus.StageBooting, Message: "it boots"}, at(10))
	s.hear(bus.BuildEvent{Architecture: bus.ARM64, Stage: bus.StageBooting}, at(11))
	s.hear(bus.BuildEvent{Message: "about the whole build"}, at(12))

	require.Equal(t, []span{
		{stage: bus.StageQueued, from: at(1), to: at(3)},
		{stage: bus.StageLaunching, detail: "trying us-east-1a", from: at(3), to: at(10)},
		{stage: bus.StageBooting, detail: "it boots", from: at(10)},
	}, s.look("").spans, "the build's first builder is the one without a name")
	require.Equal(t, s.look("").spans, s.look(bus.ARM64).spans)
}

func TestStatus_AnEventIsNeverBelieved(t *testing.T) {
	t.Parallel()
	s := newStatus(time.Now())
	s.start(time.Now(), time.Minute)
	s.hear(bus.BuildEvent{State: bus.BuildReady, Architecture: bus.AMD64, Stage: bus.StageServing}, time.Now())
	s.hear(bus.BuildEvent{State: bus.BuildFailed}, time.Now())
	n := s.look("")
	require.False(t, n.serving)
	require.NoError(t, n.failure)
}

func TestStatus_TheServersWordEndsOnlyWhatWasDialled(t *testing.T) {
	t.Parallel()
	first := bus.LeaseView{Lease: "lse-aaaaaaaaaaaaaaaa", Architecture: bus.AMD64, Attempt: 1, Stage: bus.StageServing}
	second := first
	second.Lease, second.Attempt = "lse-bbbbbbbbbbbbbbbb", 2
	for name, c := range map[string]struct {
		dialled bool
		then    bus.BuildView
		want    ExitCode // 0: the build goes on
	}{
		"still running":                {true, viewOf(bus.BuildRunning, first), 0},
		"replaced by another attempt":  {true, viewOf(bus.BuildReady, second), ExitLost},
		"waiting again":                {true, viewOf(bus.BuildWaiting, first), ExitLost},
		"canceled":                     {true, viewOf(bus.BuildCanceled, first), ExitCanceled},
		"expired":                      {true, viewOf(bus.BuildExpired, first), ExitTimeout},
		"replaced before it was taken": {false, viewOf(bus.BuildReady, second), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStatus(time.Now())
			s.start(time.Now(), time.Minute)
			s.learn(viewOf(bus.BuildReady, first), time.Now())
			if c.dialled {
				s.dial(first.Lease)
			}
			s.learn(c.then, time.Now())
			taken := s.look("").taken
			if c.want == 0 {
				require.NoError(t, taken)
				return
			}
			e := &Error{}
			require.ErrorAs(t, taken, &e)
			require.Equal(t, c.want, e.Code)
		})
	}
}

func TestStatus_LosingTheConnectionEndsOnlyAnAcquisition(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	waiting := newStatus(time.Now())
	waiting.disconnect(gone)
	require.ErrorIs(t, waiting.look("").failure, gone)

	running := newStatus(time.Now())
	running.learn(viewOf(bus.BuildRunning, bus.LeaseView{Architecture: bus.AMD64}), time.Now())
	running.disconnect(gone)
	require.NoError(t, running.look("").failure)
	require.NoError(t, running.look("").taken)
}
