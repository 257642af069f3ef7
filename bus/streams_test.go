package bus

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

func TestStreams_EveryRowWithAStreamIsKeptByIt(t *testing.T) {
	t.Parallel()
	c := newQueueTest(t, ackWait, maxDeliver).control
	for row := range Table() {
		if row.Stream == "" {
			require.NotContains(t, []Kind{KindQueue, KindEvents}, row.Kind, row.Name)
			continue
		}
		name, err := c.js.StreamNameBySubject(t.Context(), streamSubject(row, "A", map[string]string{"{project}": "p", "{build}": "b", "{resource}": "r"}))
		require.NoError(t, err, row.Name)
		require.Equal(t, row.Stream, name)
	}
}

// What tenants can reach must not be captured by a stream: a reply that lands in one would be stored in somebody's name.
func TestStreams_CaptureNothingThatTenantsSend(t *testing.T) {
	t.Parallel()
	c := newQueueTest(t, ackWait, maxDeliver).control
	for _, subject := range []string{"_INBOX.x", "_R_.x", "conn.A.api.hello", "org.A.api.hello", "conn.A.ctl.agent", "$JS.ACK.ACTIONS.A.1"} {
		_, err := c.js.StreamNameBySubject(t.Context(), subject)
		require.ErrorIs(t, err, jetstream.ErrStreamNotFound, subject)
	}
}

func TestStreams_AreOnDiskWithLeaderReadsAndBounds(t *testing.T) {
	t.Parallel()
	c := newQueueTest(t, ackWait, maxDeliver).control
	_, err := OpenBucket[int](t.Context(), c, "numbers")
	require.NoError(t, err)
	streams := 0
	lister := c.js.ListStreams(t.Context())
	for info := range lister.Info() {
		streams++
		cfg := info.Config
		require.Equal(t, jetstream.FileStorage, cfg.Storage, cfg.Name)
		require.False(t, cfg.AllowDirect, cfg.Name)
		require.Positive(t, cfg.MaxBytes, cfg.Name)
		require.Equal(t, maxConsumers, cfg.MaxConsumers, cfg.Name)
		require.Equal(t, "1", cfg.Metadata[layoutKey], cfg.Name)
		if cfg.Retention == jetstream.WorkQueuePolicy {
			require.Equal(t, jetstream.DiscardNew, cfg.Discard, cfg.Name)
		}
	}
	require.NoError(t, lister.Err())
	require.Equal(t, 6, streams)
	info, err := c.js.Stream(t.Context(), "ACTIONS")
	require.NoError(t, err)
	require.Equal(t, 10*time.Minute, info.CachedInfo().Config.Duplicates)
	info, err = c.js.Stream(t.Context(), "EVENTS")
	require.NoError(t, err)
	require.Equal(t, 24*time.Hour, info.CachedInfo().Config.MaxAge)
}

func TestStreams_OpenAgainChangesNothingAndKeepsEverything(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, ackWait, maxDeliver)
	q.publish(t)
	require.NoError(t, q.control.ensureStreams(t.Context()))
	require.Equal(t, 1, q.waiting(t))
	first, err := OpenBucket[int](t.Context(), q.control, "numbers")
	require.NoError(t, err)
	_, err = first.Create(t.Context(), "n", 1)
	require.NoError(t, err)
	second, err := OpenBucket[int](t.Context(), q.control, "numbers")
	require.NoError(t, err)
	got, _, err := second.Get(t.Context(), "n")
	require.NoError(t, err)
	require.Equal(t, 1, got)
}

func TestStreams_UpdateThatWouldLoseDataIsRefused(t *testing.T) {
	t.Parallel()
	base := func() jetstream.StreamConfig {
		cfg := eventsConfig("X")
		cfg.Subjects, cfg.Replicas, cfg.Metadata = []string{"a", "b"}, 1, map[string]string{layoutKey: "1"}
		return cfg
	}
	const bytes = 1000
	require.NoError(t, checkLayout(base(), base(), bytes))
	for want, change := range map[string]func(have, want *jetstream.StreamConfig){
		"upgrade this API server":                  func(have, _ *jetstream.StreamConfig) { have.Metadata[layoutKey] = "2" },
		"keeps messages by":                        func(_, want *jetstream.StreamConfig) { want.Retention = jetstream.WorkQueuePolicy },
		"holds 1000 bytes and would be cut to 999": func(_, want *jetstream.StreamConfig) { want.MaxBytes = 999 },
		"kept for 1h0m0s instead of 24h0m0s":       func(_, want *jetstream.StreamConfig) { want.MaxAge = time.Hour },
		"5 messages of each subject":               func(_, want *jetstream.StreamConfig) { want.MaxMsgsPerSubject = 5 },
		"kept for 24h0m0s instead of 0s":           func(have, _ *jetstream.StreamConfig) { have.MaxAge = 0 },
		"subject b would not be kept":              func(_, want *jetstream.StreamConfig) { want.Subjects = []string{"a"} },
		"start the API server with Replicas 3":     func(have, _ *jetstream.StreamConfig) { have.Replicas = 3 },
	} {
		have, wanted := base(), base()
		change(&have, &wanted)
		require.ErrorContains(t, checkLayout(have, wanted, bytes), want)
	}
	for name, change := range map[string]func(have, want *jetstream.StreamConfig){
		"more replicas":   func(_, want *jetstream.StreamConfig) { want.Replicas = 3 },
		"another subject": func(_, want *jetstream.StreamConfig) { want.Subjects = []string{"a", "b", "c"} },
		"older layout":    func(have, _ *jetstream.StreamConfig) { have.Metadata = nil },
		"longer":          func(_, want *jetstream.StreamConfig) { want.MaxAge = 0 },
	} {
		have, wanted := base(), base()
		change(&have, &wanted)
		require.NoError(t, checkLayout(have, wanted, bytes), name)
	}
}

func TestStreams_NewerLayoutIsLeftAlone(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, ackWait, maxDeliver)
	cfg := q.stream.CachedInfo().Config
	cfg.Metadata = map[string]string{layoutKey: "99"}
	_, err := q.control.js.UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
	require.ErrorContains(t, q.control.ensureStreams(t.Context()), "update stream BUILDS: it has layout 99 and this program knows 1")
}

func TestConsumers_OfAnAccountGoWithWhatWaitsForIt(t *testing.T) {
	t.Parallel()
	q := newQueueTest(t, ackWait, maxDeliver)
	c := q.control
	for _, account := range []string{"A", "B"} {
		require.NoError(t, c.ensureConsumer(t.Context(), account))
		require.NoError(t, c.ensureConsumer(t.Context(), account), "again")
		m := NewMachineID()
		a := Action{ID: ActionID(m, 1, StopMachine), Kind: StopMachine, Machine: m, Attempt: 1}
		require.NoError(t, Actions.Publish(t.Context(), c, account, a, "same id", string(m)))
	}
	require.Equal(t, 2, Stored(t, c, "ACTIONS"), "ids of two accounts do not meet")
	require.NoError(t, c.deleteConsumer(t.Context(), "A"))
	require.Equal(t, 1, Stored(t, c, "ACTIONS"))
	require.Equal(t, 1, Consumers(t, c, "ACTIONS"))
	require.NoError(t, c.deleteConsumer(t.Context(), "A"), "again")
}
