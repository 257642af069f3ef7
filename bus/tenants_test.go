package bus_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

func TestRevocationCutsEveryHolderAndNobodyElseForLong(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		holders := 200
		if raceDetector {
			holders = 20
		}
		o, _ := s.Default(t)
		serveProjects(t, s.Control)
		token := s.Admit(bus.Grant{Role: bus.RoleUser, Account: o.Account, Organization: o.ID})
		cut := make([]*bus.Conn, holders)
		for i := range cut {
			cut[i] = s.WithToken(t, token)
		}
		colleague, neighbor := s.User(t), s.Agent(t)

		s.Revoke(token.ID)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, s.Control.RevokeSessions(ctx, bus.ScopeOrganization, o.Account, string(o.ID)))
		for _, conn := range cut {
			waitDone(t, conn)
			require.ErrorIs(t, conn.Err(), bus.ErrRevokedToken)
			require.False(t, conn.Connected())
		}
		require.Eventually(t, func() bool { return colleague.NATS().Stats().Reconnects >= 1 }, time.Minute, 10*time.Millisecond)
		_, err := bus.ListProjects.Call(ctx, colleague, bus.Empty{})
		require.NoError(t, err, "a good token comes back by itself")
		require.Zero(t, neighbor.NATS().Stats().Reconnects, "other accounts notice nothing")
		require.True(t, neighbor.Connected())
	})
}

// A callout that has read the token just before it was revoked can admit its holder just after the push. The second
// push is for this one.
func TestRevocationCutsWhoeverWasBeingAdmittedMeanwhile(t *testing.T) {
	t.Parallel()
	s := bustest.New(t, bustest.WithoutCallout())
	o, _ := s.Default(t)
	token := s.Admit(bus.Grant{Role: bus.RoleUser, Account: o.Account, Organization: o.ID})
	read, proceed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	require.NoError(t, s.Control.ServeCallout(t.Context(), func(ctx context.Context, cred bus.Credential) (bus.Grant, error) {
		g, err := s.Authorize(ctx, cred)
		once.Do(func() {
			close(read)
			<-proceed
		})
		return g, err
	}))
	admitted := make(chan *bus.Conn, 1)
	go func() {
		cfg := s.Config()
		cfg.Token = token
		conn, err := bus.Connect(t.Context(), cfg)
		if err != nil {
			t.Error(err)
		}
		admitted <- conn
	}()
	<-read
	s.Revoke(token.ID)
	require.NoError(t, s.Control.RevokeSessions(t.Context(), bus.ScopeOrganization, o.Account, string(o.ID)))
	close(proceed)
	conn := <-admitted
	require.NotNil(t, conn)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	waitDone(t, conn)
	require.ErrorIs(t, conn.Err(), bus.ErrRevokedToken)
}

func TestADeletedAccountIsGoneAtOnce(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		o, _ := s.Default(t)
		neighbor := s.Agent(t)
		doomed := s.Connection(t, o.ID)
		agent := s.WithToken(t, doomed.Token)
		s.Revoke(doomed.Token.ID)
		require.NoError(t, s.Control.DeleteAccount(t.Context(), doomed.Account))
		waitDone(t, agent)
		require.ErrorIs(t, agent.Err(), bus.ErrRevokedToken)
		claims, err := s.Control.Claims(t.Context(), doomed.Account)
		require.NoError(t, err)
		require.Nil(t, claims)
		require.Zero(t, neighbor.NATS().Stats().Reconnects)
	})
}

func TestAnAccountThatIsAsItShouldBeIsNotPushedAgain(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		o, c := s.Default(t)
		for scope, account := range map[bus.Scope]string{bus.ScopeOrganization: o.Account, bus.ScopeConnection: c.Account} {
			name := string(o.ID)
			if scope == bus.ScopeConnection {
				name = string(c.ID)
			}
			first, err := s.Control.Claims(t.Context(), account)
			require.NoError(t, err)
			require.NoError(t, s.Control.EnsureAccount(t.Context(), scope, account, name))
			second, err := s.Control.Claims(t.Context(), account)
			require.NoError(t, err)
			require.Equal(t, first.ID, second.ID)

			require.NoError(t, s.Control.RevokeSessions(t.Context(), scope, account, name))
			require.NoError(t, s.Control.EnsureAccount(t.Context(), scope, account, "renamed"))
			third, err := s.Control.Claims(t.Context(), account)
			require.NoError(t, err)
			require.Equal(t, "renamed", third.Name)
			require.NotEmpty(t, third.Revocations, "a change forgets no revocation")
		}
	})
}

func TestTrafficCountsWhatCrossesTheBus(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	serveProjects(t, s.Control)
	user := s.User(t)
	in, out := s.Embedded.Traffic()
	_, err := bus.ListProjects.Call(t.Context(), user, bus.Empty{})
	require.NoError(t, err)
	in2, out2 := s.Embedded.Traffic()
	require.Greater(t, in2, in)
	require.Greater(t, out2, out)
	require.Less(t, in2-in+out2-out, int64(8<<10), "a question and its answer")
}
