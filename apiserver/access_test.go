package apiserver

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// TestAccess_ServicesOfOrganizations asks every service of organizations as every kind of caller about what belongs to
// one project of one organization. "ok" is an answer, "-" a refusal by the bus, anything else the code of the fault.
func TestAccess_ServicesOfOrganizations(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x, stranger := w.tenant(t, "acme"), w.tenant(t, "evil")
	w.cloud(t, x)
	w.cloud(t, stranger)
	owner := w.client(t, x.user)
	second, err := bus.CreateProject.Call(patiently(t), owner.conn, bus.ProjectCreate{Name: "second"})
	require.NoError(t, err)
	v := owner.untilState(t, owner.create(t).Build, bus.BuildReady)
	victim := owner.token(t, bus.RoleUser, "")

	callers := []struct {
		name string
		conn *bus.Conn
	}{
		{"own", owner.conn},
		{"ci", w.connect(t, owner.token(t, bus.RoleCI, x.Project))},
		{"ci_of_other_project", w.connect(t, owner.token(t, bus.RoleCI, second.Project))},
		{"other_organization", w.connect(t, stranger.user)},
	}
	for _, row := range []struct {
		name string
		ask  func(conn *bus.Conn) error
		want [4]string // in the order of the callers
	}{
		{"build.create", func(conn *bus.Conn) error {
			_, err := bus.CreateBuild.Call(patiently(t), conn, bus.BuildCreate{Build: bus.NewBuildID(), Project: string(x.Project), CSR: owner.csr})
			return err
		}, [4]string{"ok", "ok", "not_found", "not_found"}},
		{"build.get", func(conn *bus.Conn) error {
			_, err := bus.GetBuild.Call(patiently(t), conn, bus.BuildRef{Build: v.Build})
			return err
		}, [4]string{"ok", "ok", "not_found", "not_found"}},
		{"build.events", func(conn *bus.Conn) error {
			_, err := bus.ReplayBuild.Call(patiently(t), conn, bus.BuildRef{Build: v.Build})
			return err
		}, [4]string{"ok", "ok", "not_found", "not_found"}},
		{"build.finish", func(conn *bus.Conn) error {
			_, err := bus.FinishBuild.Call(patiently(t), conn, bus.BuildFinish{Build: owner.create(t).Build, State: bus.BuildFailed})
			return err
		}, [4]string{"ok", "ok", "not_found", "not_found"}},
		{"build.cancel", func(conn *bus.Conn) error {
			_, err := bus.CancelBuild.Call(patiently(t), conn, bus.BuildRef{Build: owner.create(t).Build})
			return err
		}, [4]string{"ok", "ok", "not_found", "not_found"}},
		{"build.list", func(conn *bus.Conn) error {
			list, err := bus.ListRecentBuilds.Call(patiently(t), conn, bus.ListBuilds{})
			return orEmpty(err, len(list.Builds))
		}, [4]string{"ok", "ok", "empty", "empty"}},
		{"build.list of a project", func(conn *bus.Conn) error {
			_, err := bus.ListRecentBuilds.Call(patiently(t), conn, bus.ListBuilds{Project: string(x.Project)})
			return err
		}, [4]string{"ok", "ok", "not_found", "not_found"}},
		{"project.get", func(conn *bus.Conn) error {
			_, err := bus.GetProject.Call(patiently(t), conn, bus.ProjectRef{Project: string(x.Project)})
			return err
		}, [4]string{"ok", "ok", "not_found", "not_found"}},
		{"project.get by name", func(conn *bus.Conn) error {
			_, err := bus.GetProject.Call(patiently(t), conn, bus.ProjectRef{Project: "second"})
			return err
		}, [4]string{"ok", "not_found", "ok", "not_found"}},
		{"project.list", func(conn *bus.Conn) error {
			list, err := bus.ListProjects.Call(patiently(t), conn, bus.Empty{})
			return orEmpty(err, len(list.Projects)-1)
		}, [4]string{"ok", "-", "-", "empty"}},
		{"machine.list", func(conn *bus.Conn) error {
			list, err := bus.ListLiveMachines.Call(patiently(t), conn, bus.Empty{})
			return orEmpty(err, len(list.Machines))
		}, [4]string{"ok", "-", "-", "empty"}},
		{"token.list", func(conn *bus.Conn) error {
			list, err := bus.ListTokens.Call(patiently(t), conn, bus.Empty{})
			return orEmpty(err, len(list.Tokens)-2)
		}, [4]string{"ok", "-", "-", "empty"}},
		{"token.create", func(conn *bus.Conn) error {
			token := bus.NewToken()
			_, err := bus.CreateToken.Call(patiently(t), conn, bus.TokenCreate{Token: token.ID, Hash: token.Hash(), Name: "x", Role: bus.RoleCI, Project: string(x.Project)})
			return err
		}, [4]string{"ok", "-", "-", "not_found"}},
		{"token.create over another's", func(conn *bus.Conn) error {
			_, err := bus.CreateToken.Call(patiently(t), conn, bus.TokenCreate{Token: victim.ID, Hash: bus.NewToken().Hash(), Name: "x", Role: bus.RoleUser})
			return err
		}, [4]string{"conflict", "-", "-", "conflict"}},
		{"token.create for a connection", func(conn *bus.Conn) error {
			token := bus.NewToken()
			_, err := bus.CreateToken.Call(patiently(t), conn, bus.TokenCreate{Token: token.ID, Hash: token.Hash(), Name: "x", Role: bus.RoleAgent, Connection: string(x.Connection)})
			return err
		}, [4]string{"ok", "-", "-", "not_found"}},
		{"project.create", func(conn *bus.Conn) error {
			_, err := bus.CreateProject.Call(patiently(t), conn, bus.ProjectCreate{Name: "third", Connection: string(x.Connection)})
			return err
		}, [4]string{"ok", "-", "-", "not_found"}},
		// The organization's own is last: it cuts all sessions of the account.
		{"token.revoke", func(conn *bus.Conn) error {
			if conn == owner.conn {
				return nil
			}
			_, err := bus.RevokeToken.Call(patiently(t), conn, bus.TokenRef{Token: victim.ID})
			return err
		}, [4]string{"ok", "-", "-", "not_found"}},
	} {
		for i, c := range callers {
			require.Equal(t, row.want[i], outcome(row.ask(c.conn)), "%s as %s", row.name, c.name)
		}
	}
	require.Equal(t, bus.BuildReady, owner.get(t, v.Build).State, "nobody else ended it")
}

var errEmpty = errors.New("empty")

// orEmpty tells a list with nothing of ours in it from one with something.
func orEmpty(err error, n int) error {
	if err == nil && n <= 0 {
		return errEmpty
	}
	return err
}

func outcome(err error) string {
	var fault *bus.Fault
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, errEmpty):
		return "empty"
	case errors.Is(err, bus.ErrForbidden):
		return "-"
	case errors.As(err, &fault):
		return string(fault.Code)
	}
	return err.Error()
}

// token makes a token of the client's organization.
func (c *client) token(t *testing.T, role bus.Role, project bus.ProjectID, until ...time.Time) bus.Token {
	t.Helper()
	token := bus.NewToken()
	ask := bus.TokenCreate{Token: token.ID, Hash: token.Hash(), Name: "made", Role: role, Project: string(project)}
	if len(until) > 0 {
		ask.ExpiresAt = until[0]
	}
	v, err := bus.CreateToken.Call(patiently(t), c.conn, ask)
	require.NoError(t, err)
	require.Equal(t, token.ID, v.Token)
	return token
}

func TestAccess_ServicesOfConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x, stranger := w.tenant(t, "acme"), w.tenant(t, "evil")
	cloud := w.cloud(t, x)
	rogue := w.cloud(t, stranger)
	c := w.client(t, x.user)
	v := c.untilState(t, c.create(t).Build, bus.BuildReady)
	m := cloud.machine(v.Leases[0].Machine)

	for name, attack := range map[string]func(conn *bus.Conn) error{
		"intent": func(conn *bus.Conn) error {
			_, err := bus.ReportIntent.Call(patiently(t), conn, bus.LaunchIntent{Machine: m.id, Attempt: 1, NonceHash: m.nonce.Hash()})
			return err
		},
		"result": func(conn *bus.Conn) error {
			_, err := bus.ReportResult.Call(patiently(t), conn, bus.ActionResult{Action: "a", Kind: bus.DeleteMachine, Machine: m.id, Attempt: 1})
			return err
		},
		"result of a volume": func(conn *bus.Conn) error {
			_, err := bus.ReportResult.Call(patiently(t), conn, bus.ActionResult{Action: "a", Kind: bus.DeleteVolume, Volume: m.volume})
			return err
		},
	} {
		require.ErrorIs(t, attack(rogue.conn), bus.CodeNotFound, name)
	}
	_, err := bus.ReportInventory.Call(patiently(t), rogue.conn, bus.Inventory{
		At: time.Now(), Architectures: []bus.Arch{bus.AMD64}, Machines: []bus.MachineStatus{{Machine: m.id, Attempt: 1, State: bus.CloudTerminated}},
	})
	require.NoError(t, err)
	require.Equal(t, MachineServing, w.machine(t, m.id).State, "a foreign inventory says nothing about it")
	require.Equal(t, bus.BuildReady, c.get(t, v.Build).State)
}

func TestAccess_TokensAreToldApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	w.cloud(t, x)
	c := w.client(t, x.user)
	soon := time.Now().Add(1500 * time.Millisecond)
	revoked, expired := c.token(t, bus.RoleUser, ""), c.token(t, bus.RoleCI, x.Project, soon)
	holder, keeper := w.client(t, revoked), w.client(t, x.user)
	doomed, kept := holder.create(t), keeper.untilState(t, keeper.create(t).Build, bus.BuildReady)

	_, err := bus.RevokeToken.Call(patiently(t), c.conn, bus.TokenRef{Token: revoked.ID})
	require.NoError(t, err)
	select {
	case <-holder.conn.Done():
		require.ErrorIs(t, holder.conn.Err(), bus.ErrRevokedToken, "its holder is cut, and told why")
	case <-time.After(patience):
		require.Fail(t, "the holder of a revoked token is still connected")
	}
	v := keeper.untilState(t, doomed.Build, bus.BuildCanceled)
	require.Contains(t, v.Reason, "revoked")
	require.Equal(t, bus.BuildReady, keeper.get(t, kept.Build).State, "builds of other tokens go on")

	<-time.After(time.Until(soon.Add(time.Second)))
	forged := bus.NewToken()
	for want, token := range map[error]bus.Token{bus.ErrRevokedToken: revoked, bus.ErrExpiredToken: expired, bus.ErrBadToken: forged} {
		cfg := w.bus.Config()
		cfg.Token = token
		_, err := bus.Connect(t.Context(), cfg)
		require.ErrorIs(t, err, want)
	}
	list, err := bus.ListTokens.Call(patiently(t), keeper.conn, bus.Empty{})
	require.NoError(t, err)
	for _, v := range list.Tokens {
		require.NotEqual(t, revoked.ID, v.Token)
	}
}

// A token's id is public; who knows it and not the secret learns nothing of its state.
func TestAccess_StateOfATokenIsToldOnlyToItsHolder(t *testing.T) {
	t.Parallel()
	held := bus.NewToken()
	token := Token{ID: held.ID, Hash: held.Hash(), RevokedAt: epoch}
	require.ErrorIs(t, token.admit(bus.NewToken().Hash(), epoch), bus.ErrBadToken)
	require.ErrorIs(t, token.admit(held.Hash(), epoch), bus.ErrRevokedToken)
}

func TestAccess_SessionsOfARevokedTokenAreCutByWhoeverIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	c := w.client(t, x.user)
	revoked := c.token(t, bus.RoleUser, "")
	holder := w.client(t, revoked)
	// As if the API server had died right after it had marked the token.
	_, _, err := change(t.Context(), w.newest().store.tokens, string(revoked.ID), func(t Token) (Token, error) {
		t.RevokedAt = time.Now().Add(-20 * time.Second)
		return t, nil
	})
	require.NoError(t, err)
	select {
	case <-holder.conn.Done():
		require.ErrorIs(t, holder.conn.Err(), bus.ErrRevokedToken)
	case <-time.After(patience):
		require.Fail(t, "the holder is still connected")
	}
	require.Eventually(t, func() bool {
		token, _, err := w.newest().store.tokens.Get(context.WithoutCancel(t.Context()), string(revoked.ID))
		return err == nil && !token.CutAt.IsZero()
	}, patience, 50*time.Millisecond, "and it is cut once")
}

func TestBuild_BadRequestsSayWhatToDo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x, func(c *cloud) { c.archs = []bus.Arch{bus.AMD64} })
	c := w.client(t, x.user)
	_, _, err := change(t.Context(), w.newest().store.projects, string(x.Project), func(p Project) (Project, error) { return p, nil })
	require.NoError(t, err)
	homeless := Project{ID: bus.NewProjectID(), Organization: x.Organization, Name: "homeless"}
	_, err = w.newest().store.projects.Create(t.Context(), string(homeless.ID), homeless)
	require.NoError(t, err)

	for _, bad := range []struct {
		ask  bus.BuildCreate
		code bus.Code
		says string
	}{
		{bus.BuildCreate{Project: "nothing", CSR: c.csr}, bus.CodeNotFound, "project nothing does not exist"},
		{bus.BuildCreate{Project: "No Name!", CSR: c.csr}, bus.CodeNotFound, "project No Name! does not exist"},
		{bus.BuildCreate{Project: string(bus.NewProjectID()), CSR: c.csr}, bus.CodeNotFound, "does not exist"},
		{bus.BuildCreate{Project: string(homeless.ID), CSR: c.csr}, bus.CodeInvalid, "project homeless has no connection"},
		{bus.BuildCreate{Architectures: []bus.Arch{bus.ARM64}, CSR: c.csr}, bus.CodeInvalid, "project default has no arm64 builders"},
		{bus.BuildCreate{CSR: "garbage"}, bus.CodeInvalid, "certificate request"},
	} {
		bad.ask.Build = bus.NewBuildID()
		_, err := bus.CreateBuild.Call(patiently(t), c.conn, bad.ask)
		require.ErrorIs(t, err, bad.code, bad.says)
		require.ErrorContains(t, err, bad.says)
		var fault *bus.Fault
		require.ErrorAs(t, err, &fault)
		if bad.ask.CSR == c.csr {
			require.NotEmpty(t, fault.Hint, bad.says)
		}
		_, err = bus.GetBuild.Call(patiently(t), c.conn, bus.BuildRef{Build: bad.ask.Build})
		require.ErrorIs(t, err, bus.CodeNotFound, "nothing of it is kept")
	}
	require.Empty(t, cloud.machineIDs())

	silent := w.tenant(t, "silent")
	_, err = bus.CreateBuild.Call(patiently(t), w.connect(t, silent.user), bus.BuildCreate{Build: bus.NewBuildID(), CSR: c.csr})
	require.ErrorIs(t, err, bus.CodeUnavailable, "without a cloud-agent nobody knows what can be built")
	require.ErrorContains(t, err, "connection local")
}

func TestProject_IsMadeOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	c := w.client(t, x.user)
	first, err := bus.CreateProject.Call(patiently(t), c.conn, bus.ProjectCreate{Name: "web"})
	require.NoError(t, err)
	again, err := bus.CreateProject.Call(patiently(t), c.conn, bus.ProjectCreate{Name: "web"})
	require.NoError(t, err)
	require.Equal(t, first.Project, again.Project)
	_, err = bus.CreateProject.Call(patiently(t), c.conn, bus.ProjectCreate{Name: "web", Architectures: []bus.Arch{bus.ARM64}})
	require.ErrorIs(t, err, bus.CodeConflict)
	def, err := bus.GetProject.Call(patiently(t), c.conn, bus.ProjectRef{})
	require.NoError(t, err)
	require.Equal(t, x.Project, def.Project)
	require.True(t, def.Default)
	require.Eventually(t, func() bool {
		list, err := bus.ListProjects.Call(patiently(t), c.conn, bus.Empty{})
		return err == nil && len(list.Projects) == 2 && list.Projects[1].Name == "web"
	}, patience, 5*time.Millisecond)
}

func TestBootstrap_MayRunAgainAndAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	cfg := BootstrapConfig{Organization: "acme", Connection: "local", Project: "default", UserToken: bus.NewToken(), AgentToken: bus.NewToken()}
	first, err := Bootstrap(t.Context(), w.bus.Control, cfg)
	require.NoError(t, err)
	again, err := Bootstrap(t.Context(), w.bus.Control, cfg)
	require.NoError(t, err)
	require.Equal(t, first, again)
	cfg.UserToken = bus.NewToken()
	_, err = Bootstrap(t.Context(), w.bus.Control, cfg)
	require.NoError(t, err, "a further token is added")
	w.connect(t, cfg.UserToken)

	for _, bad := range []BootstrapConfig{{}, {Organization: "A B"}, {Organization: "acme", Project: "default"}} {
		_, err := Bootstrap(t.Context(), w.bus.Control, bad)
		require.Error(t, err, "%+v", bad)
	}
}
