package depotctl

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
	"github.com/depotctl/depot/certs"
)

// api is a scripted API server on a real bus: which part a build gets is decided by its project's name.
type api struct {
	t     testing.TB
	bus   *bustest.Server
	org   bustest.Organization
	token bus.Token
	front *front
	arm   *front // nil: front plays arm64 too

	mu       sync.Mutex
	builds   map[bus.BuildID]*scripted
	tokens   []bus.TokenView
	projects []bus.ProjectView
	ended    chan bus.BuildFinish
	created  chan bus.BuildCreate
}

type scripted struct {
	request bus.BuildCreate
	view    bus.BuildView
	asked   int
	live    int
}

// newAPI starts a bus that listens on loopback, and an API server whose builders are reached through f.
func newAPI(t testing.TB, f *front) *api {
	t.Helper()
	a := &api{
		t: t, bus: bustest.New(t, bustest.WithListener()), front: f,
		builds: map[bus.BuildID]*scripted{}, ended: make(chan bus.BuildFinish, 100), created: make(chan bus.BuildCreate, 100),
	}
	a.org, _ = a.bus.Default(t)
	a.token = a.bus.Admit(bus.Grant{Role: bus.RoleUser, Account: a.org.Account, Organization: a.org.ID})
	for _, name := range []string{"web", "arm", "both", "cold", "full", "stuck", "dark", "impostor", "stranger"} {
		a.projects = append(a.projects, bus.ProjectView{
			Project: bus.NewProjectID(), Name: name, Connection: bus.NewConnectionID(), Architectures: []bus.Arch{bus.AMD64}, Default: name == "web",
		})
	}
	serve(a, bus.CreateBuild, a.create)
	serve(a, bus.GetBuild, a.get)
	serve(a, bus.FinishBuild, a.finish)
	serve(a, bus.CancelBuild, a.cancel)
	serve(a, bus.GetProject, func(r bus.ProjectRef) (bus.ProjectView, error) { return a.project(r.Project) })
	serve(a, bus.ListProjects, func(bus.Empty) (bus.ProjectList, error) { return bus.ProjectList{Projects: a.projects}, nil })
	serve(a, bus.CreateProject, a.createProject)
	serve(a, bus.CreateToken, a.createToken)
	serve(a, bus.ListTokens, func(bus.Empty) (bus.TokenList, error) { return bus.TokenList{Tokens: a.tokens}, nil })
	serve(a, bus.RevokeToken, a.revokeToken)
	serve(a, bus.ListRecentBuilds, a.list)
	serve(a, bus.ListLiveMachines, func(bus.Empty) (bus.MachineList, error) {
		return bus.MachineList{Machines: []bus.MachineView{{
			Machine: "mch-aaaaaaaaaaaaaaaa", Project: a.projects[0].Project, ProjectName: "web", Connection: bus.NewConnectionID(),
			Architecture: bus.AMD64, State: "serving", Builds: 1, Since: time.Now().Add(-time.Hour), CacheBytes: 3 << 30, DiskFreeBytes: 40 << 30,
		}}}, nil
	})
	require.NoError(t, bus.BuildIsLive.Receive(t.Context(), a.bus.Control, func(_ context.Context, _ bus.Caller, m bus.BuildLive) {
		a.change(m.Build, func(s *scripted) { s.live++ })
	}))
	return a
}

func serve[Req, Resp bus.Message](a *api, s bus.Service[Req, Resp], handle func(Req) (Resp, error)) {
	a.t.Helper()
	require.NoError(a.t, s.Serve(a.t.Context(), a.bus.Control, func(_ context.Context, _ bus.Caller, r Req) (Resp, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		return handle(r)
	}))
}

func (a *api) project(ref string) (bus.ProjectView, error) {
	for _, p := range a.projects {
		if ref == "" && p.Default || ref == p.Name || ref == string(p.Project) {
			return p, nil
		}
	}
	return bus.ProjectView{}, bus.Faultf(bus.CodeNotFound, "there is no project %q", ref).WithHint("see `depotctl projects list`")
}

func (a *api) create(r bus.BuildCreate) (bus.BuildView, error) {
	if s, ok := a.builds[r.Build]; ok {
		return s.view, nil
	}
	p, err := a.project(r.Project)
	if err != nil {
		return bus.BuildView{}, err
	}
	archs := r.Architectures
	if len(archs) == 0 {
		archs = []bus.Arch{bus.AMD64}
		if p.Name == "arm" {
			archs = []bus.Arch{bus.ARM64}
		}
	}
	s := &scripted{request: r, view: bus.BuildView{
		Build: r.Build, Organization: a.org.ID, Project: p.Project, ProjectName: p.Name, State: bus.BuildWaiting, CreatedAt: time.Now(),
	}}
	for _, arch := range archs {
		s.view.Leases = append(s.view.Leases, bus.LeaseView{
			Lease: bus.NewLeaseID(), Architecture: arch, Attempt: 1, Machine: bus.NewMachineID(), Stage: bus.StageQueued,
		})
	}
	a.builds[r.Build] = s
	a.script(s)
	a.created <- r
	return s.view, nil
}

// script plays the part of a build as far as it goes without time passing.
func (a *api) script(s *scripted) {
	switch s.view.ProjectName {
	case "full":
		s.view.State, s.view.Reason = bus.BuildFailed, "no capacity for amd64 in us-east-1a"
	case "stuck":
		s.view.Leases[0].Stage, s.view.Leases[0].Reason = bus.StageBooting, "waiting for the machine to register"
	case "cold": // get goes on from here
	default:
		a.ready(s)
	}
}

func (a *api) ready(s *scripted) {
	s.view.State, s.view.ReadyAt = bus.BuildReady, time.Now()
	for i := range s.view.Leases {
		l := &s.view.Leases[i]
		l.Stage = bus.StageServing
		identity := certs.Lease{ID: string(l.Lease), Build: string(s.view.Build), Project: string(s.view.Project), Organization: string(a.org.ID)}
		f := a.front
		if l.Architecture == bus.ARM64 && a.arm != nil {
			f = a.arm
		}
		f.grant(a.t, l, identity, s.request.CSR)
		switch s.view.ProjectName {
		case "dark":
			l.Addresses = []string{"127.0.0.1:1"}
		case "impostor", "stranger":
			a.forge(s, l, identity)
		}
	}
}

// forge gives the front other certificates than the client: the client then meets an impostor, or is itself a stranger.
func (a *api) forge(s *scripted, l *bus.LeaseView, identity certs.Lease) {
	genuine := *l
	key, err := certs.NewKey()
	require.NoError(a.t, err)
	csr, err := key.CSR()
	require.NoError(a.t, err)
	if s.view.ProjectName == "impostor" {
		a.front.grant(a.t, l, identity, s.request.CSR)
		l.CA, l.Certificate = genuine.CA, genuine.Certificate
		return
	}
	a.front.grantTo(a.t, l, identity, s.request.CSR, csr)
}

var coldStages = []bus.Stage{bus.StageLaunching, bus.StageBooting, bus.StageRegistered, bus.StageStarting}

func (a *api) get(r bus.BuildRef) (bus.BuildView, error) {
	s, ok := a.builds[r.Build]
	if !ok {
		return bus.BuildView{}, bus.Faultf(bus.CodeNotFound, "there is no build %s", r.Build)
	}
	if s.view.ProjectName == "cold" && s.view.State == bus.BuildWaiting {
		if s.asked < len(coldStages) {
			s.view.Leases[0].Stage = coldStages[s.asked]
		} else {
			a.ready(s)
		}
		s.asked++
		a.event(s.view)
	}
	return s.view, nil
}

// event tells the client that something is new.
func (a *api) event(v bus.BuildView) {
	e := bus.BuildEvent{
		Build: v.Build, Project: v.Project, Time: time.Now(), State: v.State, Architecture: v.Leases[0].Architecture,
		Machine: v.Leases[0].Machine, Stage: v.Leases[0].Stage, Message: "machine " + string(v.Leases[0].Stage),
	}
	require.NoError(a.t, bus.BuildStory.Publish(a.t.Context(), a.bus.Control, a.org.Account, e, string(bus.NewBuildID()), string(v.Project), string(v.Build)))
}

func (a *api) finish(r bus.BuildFinish) (bus.BuildView, error) {
	s, ok := a.builds[r.Build]
	if !ok {
		return bus.BuildView{}, bus.Faultf(bus.CodeNotFound, "there is no build %s", r.Build)
	}
	if !s.view.State.Ended() {
		s.view.State, s.view.Reason = r.State, r.Reason
	}
	a.ended <- r
	return s.view, nil
}

func (a *api) cancel(r bus.BuildRef) (bus.BuildView, error) {
	s, ok := a.builds[r.Build]
	if !ok {
		return bus.BuildView{}, bus.Faultf(bus.CodeNotFound, "there is no build %s", r.Build).WithHint("see `depotctl list builds`")
	}
	if !s.view.State.Ended() {
		s.view.State, s.view.Reason = bus.BuildCanceled, "canceled by a user"
		a.event(s.view)
	}
	return s.view, nil
}

func (a *api) createProject(r bus.ProjectCreate) (bus.ProjectView, error) {
	if _, err := a.project(r.Name); err == nil {
		return bus.ProjectView{}, bus.Faultf(bus.CodeConflict, "there is a project %q already", r.Name)
	}
	p := bus.ProjectView{Project: bus.NewProjectID(), Name: r.Name, Connection: bus.NewConnectionID(), Architectures: r.Architectures}
	a.projects = append(a.projects, p)
	return p, nil
}

func (a *api) createToken(r bus.TokenCreate) (bus.TokenView, error) {
	v := bus.TokenView{Token: r.Token, Name: r.Name, Role: r.Role, ExpiresAt: r.ExpiresAt}
	a.tokens = append(a.tokens, v)
	return v, nil
}

func (a *api) revokeToken(r bus.TokenRef) (bus.Empty, error) {
	i := slices.IndexFunc(a.tokens, func(v bus.TokenView) bool { return v.Token == r.Token })
	if i < 0 {
		return bus.Empty{}, bus.Faultf(bus.CodeNotFound, "there is no token %s", r.Token)
	}
	a.tokens = slices.Delete(a.tokens, i, i+1)
	return bus.Empty{}, nil
}

func (a *api) list(bus.ListBuilds) (bus.BuildList, error) {
	var list bus.BuildList
	for _, s := range a.builds {
		list.Builds = append(list.Builds, s.view)
	}
	return list, nil
}

// change edits a build from a test.
func (a *api) change(id bus.BuildID, edit func(*scripted)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s, ok := a.builds[id]; ok {
		edit(s)
	}
}

// waitEnd returns the client's word on its build.
func (a *api) waitEnd() bus.BuildFinish {
	a.t.Helper()
	select {
	case f := <-a.ended:
		return f
	case <-time.After(20 * time.Second):
		require.FailNow(a.t, "no FinishBuild")
		return bus.BuildFinish{}
	}
}

// waitBuild returns the next order.
func (a *api) waitBuild() bus.BuildCreate {
	a.t.Helper()
	select {
	case r := <-a.created:
		return r
	case <-time.After(20 * time.Second):
		require.FailNow(a.t, "no CreateBuild")
		return bus.BuildCreate{}
	}
}
