package bus

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// restartTest is a bus server that can be stopped and started again at the same address and with the same state.
type restartTest struct {
	cfg     EmbeddedConfig
	server  *Embedded
	control *Control
	account string
	token   Token
}

func newRestartTest(t *testing.T) *restartTest {
	t.Helper()
	trust, err := NewTrust()
	require.NoError(t, err)
	r := &restartTest{cfg: EmbeddedConfig{Dir: t.TempDir(), Trust: trust, Listen: "127.0.0.1:0"}, token: NewToken()}
	r.start(t)
	t.Cleanup(func() { require.NoError(t, r.server.Close()) })
	r.cfg.Listen = strings.TrimPrefix(r.server.URL(), "nats://")
	r.control, err = OpenControl(t.Context(), ControlConfig{URL: r.server.URL(), Trust: trust})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.control.Close()) })
	r.account, err = NewAccount()
	require.NoError(t, err)
	require.NoError(t, r.control.EnsureAccount(t.Context(), ScopeConnection, r.account, "connection"))
	require.NoError(t, r.control.ServeCallout(t.Context(), func(context.Context, Credential) (Grant, error) {
		return Grant{Role: RoleAgent, Account: r.account, Token: r.token.ID, Organization: NewOrganizationID(), Connection: NewConnectionID()}, nil
	}))
	return r
}

func (r *restartTest) start(t *testing.T) {
	t.Helper()
	var err error
	r.server, err = StartEmbedded(t.Context(), r.cfg)
	require.NoError(t, err)
}

func (r *restartTest) restart(t *testing.T) {
	t.Helper()
	require.NoError(t, r.server.Close())
	r.start(t)
}

func TestQueues_GoOnAfterTheServerWasRestarted(t *testing.T) {
	t.Parallel()
	r := newRestartTest(t)
	agent, err := Connect(t.Context(), Config{URL: r.server.URL(), Token: r.token})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, agent.Close()) })

	ctx, cancel := context.WithCancel(t.Context())
	builds, actions, ended := make(chan BuildID, 8), make(chan string, 8), make(chan error, 2)
	go func() {
		ended <- BuildRequests.Work(ctx, r.control, func(_ context.Context, d Delivery[BuildRef]) error {
			builds <- d.Message.Build
			return nil
		})
	}()
	go func() {
		ended <- Actions.Consume(ctx, agent, func(_ context.Context, d Delivery[Action]) error {
			actions <- d.Message.ID
			return nil
		})
	}()
	for round := range 3 {
		build, machine := NewBuildID(), NewMachineID()
		action := Action{ID: ActionID(machine, 1, StopMachine), Kind: StopMachine, Machine: machine, Attempt: 1}
		require.NoError(t, BuildRequests.Publish(t.Context(), r.control, "", BuildRef{Build: build}, string(build), string(build)))
		require.NoError(t, Actions.Publish(t.Context(), r.control, r.account, action, action.ID, string(machine)))
		require.Equal(t, build, <-builds, "round %d", round)
		require.Equal(t, action.ID, <-actions, "round %d", round)
		r.restart(t)
	}
	cancel()
	require.NoError(t, <-ended)
	require.NoError(t, <-ended)
}

func TestBucket_WatchGoesOnAfterTheServerWasRestarted(t *testing.T) {
	t.Parallel()
	r := newRestartTest(t)
	b, err := OpenBucket[int](t.Context(), r.control, "numbers")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	seen, ended := make(chan int, 64), make(chan error, 1)
	var syncs int
	go func() {
		ended <- b.Watch(ctx, func(e Entry[int], synced bool) {
			if synced {
				syncs++
				seen <- 0
				return
			}
			seen <- e.Value
		})
	}()
	require.Equal(t, 0, <-seen)
	for round := 1; round <= 3; round++ {
		_, err := b.Create(t.Context(), strconv.Itoa(round), round)
		require.NoError(t, err)
		for got := <-seen; got != round; got = <-seen {
			require.Equal(t, round-1, got, "only what was seen before may come again")
		}
		r.restart(t)
	}
	cancel()
	require.NoError(t, <-ended)
	require.Equal(t, 1, syncs)
}

func TestBucket_WriteWaitsForTheServer(t *testing.T) {
	t.Parallel()
	r := newRestartTest(t)
	b, err := OpenBucket[int](t.Context(), r.control, "numbers")
	require.NoError(t, err)
	require.NoError(t, r.server.Close())
	wrote := make(chan error, 1)
	go func() {
		_, err := b.Create(t.Context(), "n", 1)
		wrote <- err
	}()
	select {
	case err := <-wrote:
		t.Fatalf("write ended without a server: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	r.start(t)
	require.NoError(t, <-wrote)
	got, _, err := b.Get(t.Context(), "n")
	require.NoError(t, err)
	require.Equal(t, 1, got)
}

func TestQueues_EndWithTheReasonWhyTheConnectionEnded(t *testing.T) {
	t.Parallel()
	r := newRestartTest(t)
	agent, err := Connect(t.Context(), Config{URL: r.server.URL(), Token: r.token})
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		ended <- Actions.Consume(t.Context(), agent, func(context.Context, Delivery[Action]) error { return nil })
	}()
	require.NoError(t, agent.Close())
	require.Error(t, <-ended)
}

func TestActions_KeepTheirLeaseAcrossAccounts(t *testing.T) {
	t.Parallel()
	r := newRestartTest(t)
	cfg := consumerConfig(r.account, 64)
	cfg.FilterSubject, cfg.AckWait = streamSubject(*Actions.row, r.account, nil), 2*time.Second
	_, err := r.control.js.UpdateConsumer(t.Context(), Actions.row.Stream, cfg)
	require.NoError(t, err)
	agent, err := Connect(t.Context(), Config{URL: r.server.URL(), Token: r.token})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, agent.Close()) })
	machine := NewMachineID()
	action := Action{ID: ActionID(machine, 1, StopMachine), Kind: StopMachine, Machine: machine, Attempt: 1}
	require.NoError(t, Actions.Publish(t.Context(), r.control, r.account, action, action.ID, string(machine)))
	ctx, cancel := context.WithCancel(t.Context())
	attempts, ended := make(chan int, 8), make(chan error, 1)
	go func() {
		postponed := false
		ended <- Actions.Consume(ctx, agent, func(ctx context.Context, d Delivery[Action]) error {
			attempts <- d.Attempt
			if !postponed {
				postponed = true
				return Postpone(3 * time.Second)
			}
			return sleep(ctx, 3*time.Second)
		})
	}()
	require.Equal(t, 1, <-attempts)
	require.Equal(t, 1, <-attempts)
	require.Eventually(t, func() bool { return Stored(t, r.control, "ACTIONS") == 0 }, 30*time.Second, 10*time.Millisecond)
	cancel()
	require.NoError(t, <-ended)
	require.Empty(t, attempts)
}
