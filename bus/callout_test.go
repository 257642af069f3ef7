package bus_test

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

func TestTheCalloutLetsNobodyIntoTheInstallationsOwnAccounts(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		keys := s.Trust.AccountKeys()
		require.ElementsMatch(t, []string{"SYS", "AUTH", "CONTROL", "REFUSED"}, slices.Collect(maps.Keys(keys)))
		for name, account := range keys {
			for _, role := range []bus.Role{bus.RoleUser, bus.RoleAgent, bus.RoleAPI, bus.RoleRefused, bus.RoleMachine, ""} {
				cfg := s.Config()
				cfg.Token = s.Admit(bus.Grant{Role: role, Account: account})
				cfg.ConnectTimeout = 50 * time.Millisecond
				_, err := bus.Connect(t.Context(), cfg)
				require.Error(t, err, "%s in %s", role, name)
			}
			require.ErrorIs(t, s.Control.EnsureAccount(t.Context(), bus.ScopeOrganization, account, name), bus.ErrForbidden)
			require.ErrorIs(t, s.Control.DeleteAccount(t.Context(), account), bus.ErrForbidden)
			_, err := s.Control.MintMachine(bus.Grant{Role: bus.RoleMachine, Account: account, Machine: bus.NewMachineID()}, userKey(t), time.Hour)
			require.ErrorIs(t, err, bus.ErrForbidden)
		}
	})
}

func userKey(t *testing.T) string {
	t.Helper()
	key, err := bus.NewUserKey()
	require.NoError(t, err)
	return key.Public()
}

// Even if the API server decided wrongly, the server accepts users of a kind of account only from the key of that kind.
func TestAUserOfOneKindOfAccountIsNotAcceptedInAnother(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		o, c := s.Default(t)
		for role, account := range map[bus.Role]string{bus.RoleUser: c.Account, bus.RoleAgent: o.Account} {
			cfg := s.Config()
			cfg.Token = s.Admit(bus.Grant{Role: role, Account: account})
			cfg.ConnectTimeout = 300 * time.Millisecond
			_, err := bus.Connect(t.Context(), cfg)
			require.Error(t, err, role)
		}
	})
}

// asked is a callout request as a server would send it.
func asked(t *testing.T, s *bustest.Server, token string, expires time.Time) *nats.Msg {
	t.Helper()
	server, err := nkeys.CreateServer()
	require.NoError(t, err)
	serverID, err := server.PublicKey()
	require.NoError(t, err)
	box, err := nkeys.CreateCurveKeys()
	require.NoError(t, err)
	boxID, err := box.PublicKey()
	require.NoError(t, err)
	claims := jwt.NewAuthorizationRequestClaims(s.Trust.AccountKeys()["AUTH"])
	claims.Audience = "nats-authorization-request"
	claims.UserNkey = userKey(t)
	claims.Server = jwt.ServerID{ID: serverID, XKey: boxID}
	claims.ConnectOptions.Token = token
	claims.Expires = expires.Unix()
	text, err := claims.Encode(server)
	require.NoError(t, err)
	sealed, err := box.Seal([]byte(text), s.Trust.CalloutKey())
	require.NoError(t, err)
	m := nats.NewMsg("$SYS.REQ.USER.AUTH")
	m.Reply, m.Sub, m.Data = "_INBOX_api.answer", nil, sealed
	m.Header.Set("Nats-Server-Xkey", boxID)
	return m
}

func TestTheCalloutDropsWhatNobodyWaitsForAndWhatIsNotEncrypted(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	var decided atomic.Int64
	authorize := func(context.Context, bus.Credential) (bus.Grant, error) {
		decided.Add(1)
		return bus.Grant{}, bus.ErrBadToken
	}
	stale := asked(t, s, bus.NewToken().Reveal(), time.Now().Add(-time.Minute))
	require.ErrorContains(t, s.Control.Admit(stale, authorize), "older than the server waits")
	open := asked(t, s, bus.NewToken().Reveal(), time.Now().Add(time.Second))
	open.Header.Del("Nats-Server-Xkey")
	require.ErrorContains(t, s.Control.Admit(open, authorize), "not encrypted")
	forged := asked(t, s, bus.NewToken().Reveal(), time.Now().Add(time.Second))
	forged.Data[len(forged.Data)-1] ^= 1
	require.ErrorContains(t, s.Control.Admit(forged, authorize), "open callout request")
	require.Zero(t, decided.Load(), "nothing of it costs a look-up")
}

func TestGarbageCostsNoLookUp(t *testing.T) {
	t.Parallel()
	s := bustest.New(t, bustest.WithListener(), bustest.WithoutCallout())
	var decided atomic.Int64
	require.NoError(t, s.Control.ServeCallout(t.Context(), func(context.Context, bus.Credential) (bus.Grant, error) {
		decided.Add(1)
		return bus.Grant{}, bus.ErrBadToken
	}))
	good := bus.NewToken().Reveal()
	for _, text := range []string{"", "garbage", good[:len(good)-1] + "x", "nonce.mch-x.1.short"} {
		_, err := nats.Connect(s.URL, nats.Token(text))
		require.ErrorIs(t, err, nats.ErrAuthorization, text)
	}
	require.Zero(t, decided.Load())
	_, err := bus.Connect(t.Context(), bus.Config{URL: s.URL, Token: bus.NewToken()})
	require.ErrorIs(t, err, bus.ErrBadToken)
	require.Positive(t, decided.Load())
}

func TestASessionEndsWithItsGrantAndAtTheLatestInAnHour(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	_, c := s.Default(t)
	g := bus.Grant{Role: bus.RoleMachine, Account: c.Account, Machine: bus.NewMachineID()}
	now := time.Now()
	long, err := s.Control.MintMachine(g, userKey(t), time.Hour)
	require.NoError(t, err)
	require.WithinDuration(t, now.Add(time.Hour), long.ExpiresAt, 5*time.Second)
	g.ExpiresAt = now.Add(time.Minute)
	short, err := s.Control.MintMachine(g, userKey(t), time.Hour)
	require.NoError(t, err)
	require.WithinDuration(t, g.ExpiresAt, short.ExpiresAt, time.Second)

	claims, err := jwt.DecodeUserClaims(short.JWT)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{jwt.ConnectionTypeStandard, jwt.ConnectionTypeWebsocket, jwt.ConnectionTypeInProcess}, claims.AllowedConnectionTypes)
	require.Equal(t, c.Account, claims.IssuerAccount)
	require.False(t, claims.BearerToken)
}

// Admissions run side by side: one slow look-up keeps nobody else waiting.
func TestASlowLookUpKeepsNobodyElseWaiting(t *testing.T) {
	t.Parallel()
	s := bustest.New(t, bustest.WithoutCallout())
	_, c := s.Default(t)
	slow := bus.NewToken()
	var once sync.Once
	waiting := make(chan struct{})
	require.NoError(t, s.Control.ServeCallout(t.Context(), func(ctx context.Context, cred bus.Credential) (bus.Grant, error) {
		if cred.TokenID == slow.ID {
			once.Do(func() { close(waiting) })
			<-ctx.Done()
		}
		return s.Authorize(ctx, cred)
	}))
	cfg := s.Config()
	cfg.Token = slow
	cfg.ConnectTimeout = 4 * time.Second
	refused := make(chan error, 1)
	go func() {
		_, err := bus.Connect(t.Context(), cfg)
		refused <- err
	}()
	<-waiting
	start := time.Now()
	s.WithToken(t, c.Token)
	require.Less(t, time.Since(start), 1500*time.Millisecond)
	require.ErrorIs(t, <-refused, bus.ErrNoAPIServer)
}
