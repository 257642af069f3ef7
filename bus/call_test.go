package bus_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

func TestADeniedOperationFailsAtOnceAsForbidden(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		project := bus.NewProjectID()
		ci, agent, fresh := s.CI(t, project), s.Agent(t), s.NewMachine(t, bus.NewMachineID())
		start := time.Now()
		_, err := bus.CreateProject.Call(t.Context(), ci, bus.ProjectCreate{Name: "web", Architectures: []bus.Arch{bus.AMD64}})
		require.ErrorIs(t, err, bus.ErrForbidden)
		require.ErrorIs(t, bus.BuildIsLive.Send(t.Context(), agent, bus.BuildLive{Build: bus.NewBuildID()}), bus.ErrForbidden)
		require.ErrorIs(t, bus.HintMachine.Subscribe(t.Context(), fresh, func(bus.MachineHint) {}), bus.ErrForbidden)
		require.Less(t, time.Since(start), 4*time.Second)

		require.NoError(t, bus.BuildIsLive.Send(t.Context(), ci, bus.BuildLive{Build: bus.NewBuildID()}), "an earlier denial says nothing about a later operation")
	})
}

func TestACallWaitsForAnAPIServerAndNamesItsAbsence(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		user := s.User(t)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := bus.ListProjects.Call(ctx, user, bus.Empty{})
		require.ErrorIs(t, err, bus.CodeUnavailable)
		require.ErrorContains(t, err, "no API server answered")

		answered := make(chan error, 1)
		go func() {
			_, err := bus.ListProjects.Call(t.Context(), user, bus.Empty{})
			answered <- err
		}()
		serveProjects(t, s.Control)
		require.NoError(t, <-answered, "it is asked again until the deadline")

		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		_, err = bus.ListTokens.Call(ctx, user, bus.Empty{})
		require.ErrorIs(t, err, context.Canceled, "who gives up is not told about servers")
	})
}

func serveProjects(t *testing.T, c *bus.Control) {
	t.Helper()
	require.NoError(t, bus.ListProjects.Serve(t.Context(), c, func(context.Context, bus.Caller, bus.Empty) (bus.ProjectList, error) {
		return bus.ProjectList{}, nil
	}))
}

func TestFaultsCrossTheBusAndDefectsDoNot(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	s := bustest.New(t, bustest.WithLog(slog.New(slog.NewTextHandler(&log, nil))))
	user := s.User(t)
	outcomes := map[string]func() error{
		"fault":    func() error { return bus.Faultf(bus.CodeNotFound, "no project %q", "web").WithHint("make it") },
		"error":    func() error { return errors.New("secret detail") },
		"deadline": func() error { return context.DeadlineExceeded },
		"panic":    func() error { panic("secret panic") },
	}
	require.NoError(t, bus.GetProject.Serve(t.Context(), s.Control, func(_ context.Context, _ bus.Caller, req bus.ProjectRef) (bus.ProjectView, error) {
		return bus.ProjectView{}, outcomes[req.Project]()
	}))
	ask := func(outcome string) *bus.Fault {
		_, err := bus.GetProject.Call(t.Context(), user, bus.ProjectRef{Project: outcome})
		require.Error(t, err)
		f, ok := errors.AsType[*bus.Fault](err)
		require.True(t, ok, "%v", err)
		return f
	}
	require.Equal(t, &bus.Fault{Code: bus.CodeNotFound, Message: `no project "web"`, Hint: "make it"}, ask("fault"))
	require.Equal(t, bus.CodeUnavailable, ask("deadline").Code)
	for _, defect := range []string{"error", "panic"} {
		f := ask(defect)
		require.Equal(t, bus.CodeInternal, f.Code)
		require.NotContains(t, f.Error()+f.Hint, "secret")
	}
	require.Contains(t, log.String(), "secret detail")
	require.Contains(t, log.String(), "call_test.go", "the stack of a panic is logged")
}

// syncBuffer is a buffer that many goroutines may write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestMessagesAreCheckedOnBothSides(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	user := s.User(t)
	got := make(chan bus.BuildRef, 1)
	require.NoError(t, bus.GetBuild.Serve(t.Context(), s.Control, func(_ context.Context, _ bus.Caller, req bus.BuildRef) (bus.BuildView, error) {
		got <- req
		return bus.BuildView{Build: "nonsense"}, nil
	}))
	_, err := bus.GetBuild.Call(t.Context(), user, bus.BuildRef{Build: "nonsense"})
	require.ErrorContains(t, err, "invalid build.get.v1", "the sender refuses its own nonsense")

	id := bus.NewBuildID()
	_, err = bus.GetBuild.Call(t.Context(), user, bus.BuildRef{Build: id})
	require.ErrorIs(t, err, bus.CodeInternal, "the server refuses its own nonsense")
	require.Equal(t, id, (<-got).Build)

	for name, test := range map[string]struct{ kind, body, want string }{
		"other type":     {"build.cancel.v1", `{"build":"` + string(id) + `"}`, "want \\\"build.get.v1\\\""},
		"no type":        {"", `{"build":"` + string(id) + `"}`, "want \\\"build.get.v1\\\""},
		"no JSON":        {"build.get.v1", `{`, "decode build.get.v1"},
		"invalid":        {"build.get.v1", `{"build":"x"}`, "is not a build id"},
		"a newer peer's": {"build.get.v1", `{"build":"` + string(id) + `","since":"v9"}`, "internal"},
	} {
		m := nats.NewMsg("api.build.get")
		m.Header.Set("Depot-Type", test.kind)
		m.Data = []byte(test.body)
		answer, err := user.NATS().RequestMsg(m, 5*time.Second)
		require.NoError(t, err, name)
		require.Contains(t, string(answer.Data), test.want, name)
		require.Equal(t, "fault.v1", answer.Header.Get("Depot-Type"))
	}
	require.Equal(t, id, (<-got).Build, "unknown fields of a newer peer are ignored")
}

func TestAMessageThatIsTooLargeIsRefusedByItsSender(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	agent := s.Agent(t)
	result := bus.ActionResult{Action: "a", Kind: bus.StopMachine, Fault: bus.Faultf(bus.CodeInternal, "%s", strings.Repeat("x", 1<<20))}
	_, err := bus.ReportResult.Call(t.Context(), agent, result)
	require.ErrorIs(t, err, bus.CodeInvalid)
	require.True(t, agent.Connected(), "the server would have ended the connection")
}

func TestCloseFinishesWhatWasAccepted(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	user := s.User(t)
	second, err := bus.OpenControl(t.Context(), bus.ControlConfig{Server: s.Embedded, Trust: s.Trust})
	require.NoError(t, err)
	begun, finish := make(chan struct{}), make(chan struct{})
	require.NoError(t, bus.ListTokens.Serve(t.Context(), second, func(context.Context, bus.Caller, bus.Empty) (bus.TokenList, error) {
		close(begun)
		<-finish
		return bus.TokenList{}, nil
	}))
	answered := make(chan error, 1)
	go func() {
		_, err := bus.ListTokens.Call(t.Context(), user, bus.Empty{})
		answered <- err
	}()
	<-begun
	closed := make(chan error, 1)
	go func() { closed <- second.Close() }()
	select {
	case err := <-closed:
		t.Fatalf("closed while a handler ran: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	require.NoError(t, <-closed)
	require.NoError(t, <-answered)
}

func TestAHandlersPlacesAreBounded(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	user := s.User(t)
	var running, most atomic.Int64
	var full sync.Once
	release := make(chan struct{})
	require.NoError(t, bus.ListTokens.Serve(t.Context(), s.Control, func(context.Context, bus.Caller, bus.Empty) (bus.TokenList, error) {
		defer running.Add(-1)
		now := running.Add(1)
		for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
		}
		if now == bus.ServeLimit {
			full.Do(func() { close(release) })
		}
		<-release
		return bus.TokenList{}, nil
	}))
	var all sync.WaitGroup
	for range 2 * bus.ServeLimit {
		all.Go(func() {
			_, err := bus.ListTokens.Call(t.Context(), user, bus.Empty{})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.EqualValues(t, bus.ServeLimit, most.Load())
}
