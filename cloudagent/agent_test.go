package cloudagent_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
	"github.com/depotctl/depot/cloudagent"
	"github.com/depotctl/depot/cloudagent/cloudtest"
)

// world is a bus, the API server's side of a connection, and a cloud.
type world struct {
	*bustest.Server
	connection bustest.Connection
	project    bus.ProjectID
	cloud      *cloudtest.Fake

	intents     chan bus.LaunchIntent
	results     chan bus.ActionResult
	inventories chan bus.Inventory

	mu     sync.Mutex
	answer func(request bus.Message) error // what the API server says; nil is yes
}

func newWorld(t *testing.T, opts ...bustest.Option) *world {
	t.Helper()
	w := &world{
		Server: bustest.New(t, opts...), project: bus.NewProjectID(), cloud: &cloudtest.Fake{},
		intents: make(chan bus.LaunchIntent, 100), results: make(chan bus.ActionResult, 100), inventories: make(chan bus.Inventory, 1000),
	}
	_, w.connection = w.Default(t)
	require.NoError(t, bus.ReportIntent.Serve(t.Context(), w.Control, serve(w, w.intents)))
	require.NoError(t, bus.ReportResult.Serve(t.Context(), w.Control, serve(w, w.results)))
	require.NoError(t, bus.ReportInventory.Serve(t.Context(), w.Control, serve(w, w.inventories)))
	return w
}

func serve[M bus.Message](w *world, got chan M) func(context.Context, bus.Caller, M) (bus.Empty, error) {
	return func(_ context.Context, _ bus.Caller, m M) (bus.Empty, error) {
		w.mu.Lock()
		answer := w.answer
		w.mu.Unlock()
		if answer != nil {
			if err := answer(m); err != nil {
				return bus.Empty{}, err
			}
		}
		got <- m
		return bus.Empty{}, nil
	}
}

// answers makes the API server answer so from now on.
func (w *world) answers(answer func(bus.Message) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

func (w *world) config(t *testing.T) cloudagent.Config {
	cfg := w.Config()
	cfg.Token = w.connection.Token
	return cloudagent.Config{
		Bus: cfg, BusURL: "nats://192.0.2.9:4222", Provider: w.cloud, Version: "test",
		Limits: cloudagent.Limits{Architectures: []bus.Arch{bus.AMD64}},
		Log:    slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// start runs an agent until the test ends, or until stop is called, and waits until it is ready.
func (w *world) start(t *testing.T, cfg cloudagent.Config) (stop func()) {
	t.Helper()
	agent, err := cloudagent.New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	select {
	case <-agent.Ready():
	case <-time.After(10 * time.Second):
		require.Fail(t, "agent is not ready")
	}
	return stop
}

func (w *world) action(kind bus.ActionKind, machine bus.MachineID, attempt int) bus.Action {
	a := bus.Action{ID: bus.ActionID(machine, attempt, kind), Kind: kind, Machine: machine, Attempt: attempt, IssuedAt: time.Now().UTC()}
	if kind == bus.CreateMachine {
		a.Project, a.Architecture = w.project, bus.AMD64
	}
	return a
}

func (w *world) publish(t *testing.T, a bus.Action) {
	t.Helper()
	resource := string(a.Machine)
	if resource == "" {
		resource = string(a.Volume)
	}
	require.NoError(t, bus.Actions.Publish(t.Context(), w.Control, w.connection.Account, a, a.ID, resource))
}

func receive[T any](t *testing.T, from chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(20 * time.Second):
		require.Fail(t, fmt.Sprintf("no %T came", *new(T)))
		return *new(T)
	}
}

// result waits for the result of an action.
func (w *world) result(t *testing.T, a bus.Action) bus.ActionResult {
	t.Helper()
	r := receive(t, w.results)
	require.Equal(t, a.ID, r.Action)
	require.Equal(t, []any{a.Kind, a.Machine, a.Attempt, a.Volume}, []any{r.Kind, r.Machine, r.Attempt, r.Volume})
	return r
}

// listed waits for an inventory that fulfils the condition.
func (w *world) listed(t *testing.T, condition func(bus.Inventory) bool) {
	t.Helper()
	for !condition(receive(t, w.inventories)) {
	}
}

func (w *world) ref(a bus.Action) cloudagent.MachineRef {
	return cloudagent.MachineRef{Connection: w.connection.ID, Machine: a.Machine, Attempt: a.Attempt}
}

func TestAgent_ReportsIntentThenLaunchesThenReportsResultAndInventory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(t, w.config(t))
	first := receive(t, w.inventories)
	require.Equal(t, "test", first.Version)
	require.Equal(t, []bus.Arch{bus.AMD64}, first.Architectures)
	require.Equal(t, cloudagent.DefaultMaxMachines, first.MaxMachines)
	require.Empty(t, first.Machines)

	a := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	launchedBefore := -1
	w.answers(func(m bus.Message) error {
		if _, ok := m.(bus.LaunchIntent); ok {
			launchedBefore = w.cloud.Launches(w.ref(a))
		}
		return nil
	})
	w.publish(t, a)
	nonce := bus.LaunchNonce(w.connection.Token, a.Machine, 1)
	require.Equal(t, bus.LaunchIntent{Machine: a.Machine, Attempt: 1, NonceHash: nonce.Hash(), Offering: "fake.amd64"}, receive(t, w.intents))
	require.Nil(t, w.result(t, a).Fault)
	require.Zero(t, launchedBefore)
	require.Equal(t, nonce, w.cloud.Nonce(a.Machine))
	w.listed(t, func(i bus.Inventory) bool { return len(i.Machines) == 1 && i.Machines[0].Machine == a.Machine })
}

func TestAgent_CarriesOutTheWholeVocabulary(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(t, w.config(t))
	machine, volume := bus.NewMachineID(), bus.NewVolumeID()
	do := func(a bus.Action) {
		w.publish(t, a)
		require.Nil(t, w.result(t, a).Fault, a.Kind)
	}
	onVolume := func(a bus.Action) bus.Action {
		a.Volume = volume
		return a
	}
	do(bus.Action{ID: "v.create", Kind: bus.CreateVolume, Volume: volume, Project: w.project, Architecture: bus.AMD64, SizeGB: 5})
	do(onVolume(w.action(bus.CreateMachine, machine, 1)))
	w.listed(t, func(i bus.Inventory) bool { return len(i.Volumes) == 1 && i.Volumes[0].Machine == machine })
	do(w.action(bus.StopMachine, machine, 1))
	w.listed(t, func(i bus.Inventory) bool { return i.Machines[0].State == bus.CloudStopped })
	do(onVolume(w.action(bus.DetachVolume, machine, 1)))
	w.listed(t, func(i bus.Inventory) bool { return i.Volumes[0].State == bus.CloudAvailable })
	do(onVolume(w.action(bus.AttachVolume, machine, 1)))
	do(w.action(bus.StartMachine, machine, 1))
	w.listed(t, func(i bus.Inventory) bool { return i.Machines[0].State == bus.CloudRunning })
	do(w.action(bus.DeleteMachine, machine, 1))
	do(bus.Action{ID: "v.delete", Kind: bus.DeleteVolume, Volume: volume})
	w.listed(t, func(i bus.Inventory) bool {
		return i.Machines[0].State == bus.CloudTerminated && len(i.Volumes) == 0
	})
}

func TestAgent_LaunchesOnceWhenItsReportIsLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var lost atomic.Int32
	w.answers(func(m bus.Message) error {
		if _, ok := m.(bus.ActionResult); ok && lost.Add(1) == 1 {
			return bus.Faultf(bus.CodeUnavailable, "the write was not acknowledged")
		}
		return nil
	})
	w.start(t, w.config(t))
	a := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	w.publish(t, a)
	require.Nil(t, w.result(t, a).Fault)
	require.EqualValues(t, 2, lost.Load())
	require.Equal(t, 1, w.cloud.Launches(w.ref(a)))
}

func TestAgent_LaunchesOnceWhenTheCloudsReplyIsLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var lost atomic.Bool
	w.cloud.After = func(_ context.Context, method string) error {
		if method == "CreateMachine" && lost.CompareAndSwap(false, true) {
			return errors.New("connection reset")
		}
		return nil
	}
	w.start(t, w.config(t))
	a := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	w.publish(t, a)
	require.Nil(t, w.result(t, a).Fault)
	require.True(t, lost.Load())
	require.Equal(t, 1, w.cloud.Launches(w.ref(a)))
}

func TestAgent_LaunchesNothingUntilItsIntentIsTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	refused := make(chan struct{}, 10)
	w.answers(func(m bus.Message) error {
		if _, ok := m.(bus.LaunchIntent); ok {
			refused <- struct{}{}
			return bus.Faultf(bus.CodeUnavailable, "no quorum")
		}
		return nil
	})
	w.start(t, w.config(t))
	a := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	w.publish(t, a)
	receive(t, refused)
	require.Zero(t, w.cloud.Launches(w.ref(a)))
	w.answers(nil)
	require.Nil(t, w.result(t, a).Fault)
	require.Equal(t, 1, w.cloud.Launches(w.ref(a)))
}

func TestAgent_ReportsTheRefusalOfAnIntent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.answers(func(m bus.Message) error {
		if _, ok := m.(bus.LaunchIntent); ok {
			return bus.Faultf(bus.CodeConflict, "nobody wants it any more")
		}
		return nil
	})
	w.start(t, w.config(t))
	a := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	w.publish(t, a)
	require.Equal(t, bus.CodeConflict, w.result(t, a).Fault.Code)
	require.Zero(t, w.cloud.Launches(w.ref(a)))
}

func TestAgent_RefusesWhatExceedsItsLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.config(t)
	cfg.Limits = cloudagent.Limits{MaxMachines: 2, MaxVolumeGB: 50, Architectures: []bus.Arch{bus.AMD64}}
	w.start(t, cfg)
	arm := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	arm.Architecture = bus.ARM64
	volume := func(size int, arch bus.Arch) bus.Action {
		id := bus.NewVolumeID()
		return bus.Action{ID: string(id) + ".create", Kind: bus.CreateVolume, Volume: id, Project: w.project, Architecture: arch, SizeGB: size}
	}
	for _, refused := range []bus.Action{arm, volume(51, bus.AMD64), volume(1, bus.ARM64)} {
		w.publish(t, refused)
		fault := w.result(t, refused).Fault
		require.Equal(t, bus.CodeInvalid, fault.Code)
		require.NotEmpty(t, fault.Hint)
	}
	require.NotContains(t, w.cloud.Calls(), "CreateMachine")
	require.NotContains(t, w.cloud.Calls(), "CreateVolume")

	first := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	second := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	third := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	for _, admitted := range []bus.Action{first, second} {
		w.publish(t, admitted)
		require.Nil(t, w.result(t, admitted).Fault)
	}
	w.publish(t, third)
	require.Equal(t, bus.CodeNoCapacity, w.result(t, third).Fault.Code)
	end := w.action(bus.DeleteMachine, first.Machine, 1)
	w.publish(t, end)
	require.Nil(t, w.result(t, end).Fault)
	third.Attempt, third.ID = 2, bus.ActionID(third.Machine, 2, third.Kind)
	w.publish(t, third)
	require.Nil(t, w.result(t, third).Fault, "a deleted machine does not count")
}

func TestAgent_NeverExceedsItsMachinesHoweverManyAreAskedForAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.config(t)
	cfg.Limits.MaxMachines = 3
	w.start(t, cfg)
	const asked = 12
	for range asked {
		w.publish(t, w.action(bus.CreateMachine, bus.NewMachineID(), 1))
	}
	admitted := 0
	for range asked {
		if receive(t, w.results).Fault == nil {
			admitted++
		}
	}
	require.Equal(t, 3, admitted)
}

func TestAgent_RefusesOldAttemptsWithoutAskingTheCloud(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.start(t, w.config(t))
	current := w.action(bus.CreateMachine, bus.NewMachineID(), 2)
	w.publish(t, current)
	require.Nil(t, w.result(t, current).Fault)
	check := func(kind bus.ActionKind) {
		old := w.action(kind, current.Machine, 1)
		w.publish(t, old)
		require.Equal(t, bus.CodeConflict, w.result(t, old).Fault.Code)
		require.NotContains(t, w.cloud.Calls(), "StopMachine")
		require.NotContains(t, w.cloud.Calls(), "DeleteMachine")
	}
	check(bus.StopMachine)
	stop()
	w.start(t, w.config(t)) // has forgotten, and learns it from the inventory
	check(bus.DeleteMachine)
}

func TestAgent_ReportsTheCloudsDecisionsAndRepeatsItsFailures(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var failures atomic.Int32
	w.cloud.Before = func(_ context.Context, method string) error {
		switch method {
		case "CreateMachine":
			return fmt.Errorf("in all zones: %w", bus.Faultf(bus.CodeNoCapacity, "no c7g.4xlarge in use1-az2").WithHint("add a subnet"))
		case "DeleteMachine":
			if failures.Add(1) < 2 {
				return errors.New("throttled")
			}
		case "StopMachine":
			return errors.New("boom")
		}
		return nil
	}
	w.start(t, w.config(t))
	create := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	w.publish(t, create)
	require.Equal(t, bus.Faultf(bus.CodeNoCapacity, "no c7g.4xlarge in use1-az2").WithHint("add a subnet"), w.result(t, create).Fault)

	end := w.action(bus.DeleteMachine, bus.NewMachineID(), 1)
	w.publish(t, end)
	require.Nil(t, w.result(t, end).Fault)
	require.EqualValues(t, 2, failures.Load())

	hopeless := w.action(bus.StopMachine, bus.NewMachineID(), 1)
	w.publish(t, hopeless)
	fault := w.result(t, hopeless).Fault
	require.Equal(t, bus.CodeInternal, fault.Code)
	require.Contains(t, fault.Message, "boom")
}

func TestAgent_PutsActionsOnAMachineInARowAndLetsOthersGoOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	slow := bus.NewMachineID()
	var running, most atomic.Int32
	hold := make(chan struct{})
	w.cloud.Before = func(ctx context.Context, method string) error {
		if method != "DeleteMachine" && method != "StopMachine" {
			return nil
		}
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		select {
		case <-hold:
		case <-ctx.Done():
		}
		return nil
	}
	w.start(t, w.config(t))
	w.publish(t, w.action(bus.StopMachine, slow, 1))
	w.publish(t, w.action(bus.DeleteMachine, slow, 1))
	other := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
	w.publish(t, other)
	require.Nil(t, w.result(t, other).Fault) // while both wait
	close(hold)
	receive(t, w.results)
	receive(t, w.results)
	require.EqualValues(t, 1, most.Load())
}

func TestAgent_SendsNoInventoryWhenItCannotListAndOneWhenItIsAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var broken atomic.Bool
	tried := make(chan struct{}, 100)
	w.cloud.Before = func(_ context.Context, method string) error {
		if method == "List" && broken.Load() {
			tried <- struct{}{}
			return errors.New("throttled")
		}
		return nil
	}
	w.start(t, w.config(t))
	receive(t, w.inventories)
	broken.Store(true)
	require.NoError(t, bus.AgentHint.Send(t.Context(), w.Control, w.connection.Account, "", bus.Empty{}))
	receive(t, tried)
	broken.Store(false)
	require.NoError(t, bus.AgentHint.Send(t.Context(), w.Control, w.connection.Account, "", bus.Empty{}))
	receive(t, w.inventories)
	require.Empty(t, w.inventories, "one for the first hint would have come before")
}

func TestAgent_TwoAgentsLaunchEachMachineOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.config(t)
	cfg.Limits.MaxMachines = 100
	w.start(t, cfg)
	w.start(t, cfg)
	wanted := map[bus.MachineID]bus.Action{}
	for range 30 {
		a := w.action(bus.CreateMachine, bus.NewMachineID(), 1)
		wanted[a.Machine] = a
		w.publish(t, a)
	}
	for len(wanted) > 0 {
		r := receive(t, w.results)
		require.Nil(t, r.Fault)
		require.Equal(t, 1, w.cloud.Launches(cloudagent.MachineRef{Connection: w.connection.ID, Machine: r.Machine, Attempt: 1}))
		delete(wanted, r.Machine)
	}
}

func TestAgent_WaitsForAnAPIServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, bustest.WithoutCallout())
	cfg := w.config(t)
	cfg.Bus.ConnectTimeout = 200 * time.Millisecond // so that several fail
	agent, err := cloudagent.New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(ctx) }()
	select {
	case err := <-ended:
		require.Fail(t, "agent gave up", "%v", err)
	case <-time.After(1500 * time.Millisecond):
	}
	require.NoError(t, w.Control.ServeCallout(t.Context(), w.Authorize))
	receive(t, w.inventories)
	<-agent.Ready()
	cancel()
	require.NoError(t, <-ended)
}

func TestAgent_EndsWithTheReasonWhenItsTokenIsRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	agent, err := cloudagent.New(w.config(t))
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(t.Context()) }()
	<-agent.Ready()
	w.Revoke(w.connection.Token.ID)
	require.NoError(t, w.Control.RevokeSessions(t.Context(), bus.ScopeConnection, w.connection.Account, string(w.connection.ID)))
	require.ErrorIs(t, receive(t, ended), bus.ErrRevokedToken)
}

func TestNew_NamesAllThatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := cloudagent.New(cloudagent.Config{})
	for _, part := range []string{"token", "provider", "architecture"} {
		require.ErrorContains(t, err, part)
	}
}
