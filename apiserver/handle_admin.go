package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/depotctl/depot/bus"
)

func (s *Server) createProject(ctx context.Context, from bus.Caller, m bus.ProjectCreate) (bus.ProjectView, error) {
	c, err := s.connection(ctx, from.Organization, m.Connection)
	if err != nil {
		return bus.ProjectView{}, err
	}
	p := Project{Organization: from.Organization, Name: m.Name, Connection: c.ID, Architectures: m.Architectures, CreatedAt: s.moment().now}
	if p.ID, err = reserve(ctx, s.store, p.Organization, "project", p.Name, bus.NewProjectID()); err != nil {
		return bus.ProjectView{}, err
	}
	have, err := ensure(ctx, s.store.projects, string(p.ID), func() Project { return p })
	if err != nil {
		return bus.ProjectView{}, fmt.Errorf("create project %s: %w", p.Name, err)
	}
	if have.Connection != p.Connection || !slices.Equal(have.Architectures, p.Architectures) {
		return bus.ProjectView{}, bus.Faultf(bus.CodeConflict, "project %s exists already", p.Name).WithHint("choose another name, or use the one that is there")
	}
	return s.projectView(ctx, have)
}

func (s *Server) getProject(ctx context.Context, from bus.Caller, m bus.ProjectRef) (bus.ProjectView, error) {
	p, err := s.projectOf(ctx, from, m.Project)
	if err != nil {
		return bus.ProjectView{}, err
	}
	return s.projectView(ctx, p)
}

func (s *Server) projectView(ctx context.Context, p Project) (bus.ProjectView, error) {
	o, err := recall(ctx, s.mirrors.organizations, s.store.organizations, string(p.Organization))
	if err != nil {
		return bus.ProjectView{}, fmt.Errorf("read organization: %w", err)
	}
	v := bus.ProjectView{Project: p.ID, Name: p.Name, Connection: p.Connection, Architectures: p.Architectures, Default: o.DefaultProject == p.ID, CreatedAt: p.CreatedAt}
	if p.Connection != "" {
		c, err := recall(ctx, s.mirrors.connections, s.store.connections, string(p.Connection))
		if err != nil {
			return v, fmt.Errorf("read connection %s: %w", p.Connection, err)
		}
		v.Architectures = p.offered(c)
	}
	return v, nil
}

func (s *Server) listProjects(ctx context.Context, from bus.Caller, _ bus.Empty) (bus.ProjectList, error) {
	list := bus.ProjectList{Projects: []bus.ProjectView{}}
	for p := range s.mirrors.projects.all() {
		if p.Organization != from.Organization {
			continue
		}
		v, err := s.projectView(ctx, p)
		if err != nil {
			return list, err
		}
		list.Projects = append(list.Projects, v)
	}
	slices.SortFunc(list.Projects, func(a, b bus.ProjectView) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (s *Server) createToken(ctx context.Context, from bus.Caller, m bus.TokenCreate) (bus.TokenView, error) {
	t := Token{
		ID: m.Token, Hash: m.Hash, Name: m.Name, Role: m.Role, Organization: from.Organization, Account: from.Account,
		CreatedAt: s.moment().now, ExpiresAt: m.ExpiresAt,
	}
	switch m.Role {
	case bus.RoleCI:
		p, err := s.project(ctx, from.Organization, m.Project)
		if err != nil {
			return bus.TokenView{}, err
		}
		t.Project = p.ID
	case bus.RoleAgent:
		c, err := s.connection(ctx, from.Organization, m.Connection)
		if err != nil {
			return bus.TokenView{}, err
		}
		t.Connection, t.Account = c.ID, c.Account
	case bus.RoleUser, bus.RoleAPI, bus.RoleMachine, bus.RoleNewMachine, bus.RoleRefused:
	}
	have, err := ensure(ctx, s.store.tokens, string(t.ID), func() Token { return t })
	if err != nil {
		return bus.TokenView{}, fmt.Errorf("create token: %w", err)
	}
	if have.Hash != t.Hash || have.Organization != t.Organization || have.Role != t.Role {
		return bus.TokenView{}, bus.Faultf(bus.CodeConflict, "token %s exists already", t.ID).WithHint("make a new token")
	}
	s.log.InfoContext(ctx, "token made", "org", t.Organization, "token_id", t.ID, "role", t.Role, "by", from.Token)
	return have.view(), nil
}

func (s *Server) listTokens(_ context.Context, from bus.Caller, _ bus.Empty) (bus.TokenList, error) {
	list := bus.TokenList{Tokens: []bus.TokenView{}}
	for t := range s.mirrors.tokens.all() {
		if t.Organization == from.Organization && t.RevokedAt.IsZero() {
			list.Tokens = append(list.Tokens, t.view())
		}
	}
	slices.SortFunc(list.Tokens, func(a, b bus.TokenView) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.Token), string(b.Token)))
	})
	return list, nil
}

// revokeToken marks the token, so that nobody gets in with it, and cuts whoever is in, in a moment: the caller's own
// session is among those of the account, and shall hear the answer first. Builds that the token started are canceled;
// those of other tokens go on.
func (s *Server) revokeToken(ctx context.Context, from bus.Caller, m bus.TokenRef) (bus.Empty, error) {
	first := false
	t, _, err := change(ctx, s.store.tokens, string(m.Token), func(t Token) (Token, error) {
		if t.Organization != from.Organization {
			return t, bus.ErrNotFound
		}
		if first = t.RevokedAt.IsZero(); first {
			t.RevokedAt = s.moment().now
		}
		return t, nil
	})
	if errors.Is(err, bus.ErrNotFound) {
		return bus.Empty{}, bus.Faultf(bus.CodeNotFound, "token %s does not exist", m.Token).WithHint("list them with: depotctl tokens list")
	}
	if err != nil || !first {
		return bus.Empty{}, err
	}
	s.log.InfoContext(ctx, "token revoked", "org", t.Organization, "token_id", t.ID, "by", from.Token)
	time.AfterFunc(answerFirst, func() {
		s.outbox.put(string(t.ID), func(ctx context.Context) error { return s.cut(ctx, t) })
	})
	for b := range s.mirrors.builds.all() {
		if b.Token == t.ID && !b.State.Ended() {
			s.cancelFor(ctx, b, "the token that started it was revoked")
		}
	}
	return bus.Empty{}, nil
}

// answerFirst is long enough for an answer to leave before the session that waits for it is cut.
const answerFirst = 25 * time.Millisecond

func (s *Server) cancelFor(ctx context.Context, b Build, reason string) {
	if _, err := s.stepBuild(ctx, b.ID, buildCanceled{reason}); err != nil {
		s.log.WarnContext(ctx, "build not canceled yet", "build", b.ID, "err", err)
	}
}

// cut ends every session of a revoked token's account; holders of good tokens come back by themselves.
func (s *Server) cut(ctx context.Context, t Token) error {
	name := string(t.Organization)
	if t.Role == bus.RoleAgent {
		name = string(t.Connection)
	}
	if err := s.control.RevokeSessions(ctx, t.scope(), t.Account, name); err != nil {
		return fmt.Errorf("cut sessions of token %s: %w", t.ID, err)
	}
	s.cuts.note(t.ID)
	return nil
}

// cuts are the tokens whose sessions this replica has cut: another replica does it again if this one died in between.
type cuts struct {
	mu sync.Mutex
	at map[bus.TokenID]time.Time
}

func (c *cuts) note(id bus.TokenID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == nil {
		c.at = map[bus.TokenID]time.Time{}
	}
	c.at[id] = time.Now()
}

func (c *cuts) noted(id bus.TokenID) (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.at[id]
	return t, ok
}

func (s *Server) listBuilds(ctx context.Context, from bus.Caller, m bus.ListBuilds) (bus.BuildList, error) {
	var only bus.ProjectID
	if m.Project != "" || from.Role == bus.RoleCI {
		p, err := s.projectOf(ctx, from, m.Project)
		if err != nil {
			return bus.BuildList{}, err
		}
		only = p.ID
	}
	list := bus.BuildList{Builds: []bus.BuildView{}}
	for b := range s.mirrors.builds.all() {
		if mayBuild(from, b) && (only == "" || b.Project == only) {
			list.Builds = append(list.Builds, b.view())
		}
	}
	slices.SortFunc(list.Builds, func(a, b bus.BuildView) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), strings.Compare(string(a.Build), string(b.Build)))
	})
	limit := cmp.Or(m.Limit, 50)
	list.Builds = list.Builds[:min(limit, len(list.Builds))]
	return list, nil
}

func (s *Server) listMachines(_ context.Context, from bus.Caller, _ bus.Empty) (bus.MachineList, error) {
	list := bus.MachineList{Machines: []bus.MachineView{}}
	for m := range s.mirrors.machines.all() {
		if m.Organization != from.Organization || m.State == MachineDeleted {
			continue
		}
		p, _ := s.mirrors.projects.get(string(m.Project))
		r := s.pulses.reportOf(m.ID)
		list.Machines = append(list.Machines, bus.MachineView{
			Machine: m.ID, Project: m.Project, ProjectName: p.Name, Connection: m.Connection, Architecture: m.Architecture, Volume: m.Volume,
			State: string(m.State), Reason: m.Reason, Builds: len(slices.Collect(maps.Keys(m.Leases))), CreatedAt: m.CreatedAt, Since: m.Since,
			DiskFreeBytes: r.DiskFreeBytes, CacheBytes: r.CacheBytes,
		})
	}
	slices.SortFunc(list.Machines, func(a, b bus.MachineView) int { return strings.Compare(string(a.Machine), string(b.Machine)) })
	return list, nil
}
