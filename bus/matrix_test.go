package bus_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

// member is a connected client of one role, with the account that it is in.
type member struct {
	conn  *bus.Conn
	grant bus.Grant
}

// members connects one client of every role of the table: a role without one fails the test.
func members(t *testing.T, s *bustest.Server) map[bus.Role]member {
	t.Helper()
	o, c := s.Default(t)
	project, machine := bus.NewProjectID(), bus.NewMachineID()
	all := map[bus.Role]member{
		bus.RoleUser:       {s.User(t), bus.Grant{Account: o.Account, Token: bus.NewTokenID()}},
		bus.RoleCI:         {s.CI(t, project), bus.Grant{Account: o.Account, Project: project, Token: bus.NewTokenID()}},
		bus.RoleAgent:      {s.Agent(t), bus.Grant{Account: c.Account, Token: c.Token.ID}},
		bus.RoleNewMachine: {s.NewMachine(t, machine), bus.Grant{Account: c.Account, Machine: machine}},
		bus.RoleMachine:    {s.Machine(t, machine), bus.Grant{Account: c.Account, Machine: machine}},
	}
	for _, role := range bus.Roles {
		if role == bus.RoleRefused {
			continue // it lives for seconds: TestARefusedClientMayOnlyAskWhy
		}
		m, ok := all[role]
		require.True(t, ok, "role %s has no member in the matrix", role)
		m.grant.Role = role
		all[role] = m
	}
	return all
}

// The access matrix is complete by construction: every role against every row, and the running server must do what the
// table says. A row added to the table is in it without further ado.
func TestEachRoleMayDoExactlyWhatTheTableSays(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		all := members(t, s)
		for row := range bus.Table() {
			for role, m := range all {
				t.Run(fmt.Sprintf("%s/%s", row.Name, role), func(t *testing.T) {
					allowed := slices.Contains(row.Roles, role)
					switch row.Kind {
					case bus.KindService, bus.KindSignal:
						require.Equal(t, allowed, maySend(t, s, row, m))
					case bus.KindHint, bus.KindEvents:
						require.Equal(t, allowed, mayHear(t, s, row, m))
					case bus.KindQueue:
						require.Equal(t, allowed, mayConsume(t, row, m))
					default:
						t.Fatalf("kind %q is not probed", row.Kind)
					}
				})
			}
		}
	})
}

// maySend reports whether a request or signal of the member comes through to the API server, as the member's own.
func maySend(t *testing.T, s *bustest.Server, row bus.Row, m member) bool {
	t.Helper()
	came := make(chan bus.Caller, 1)
	if !servedByBus(row) {
		ctx, stop := contextUntil(t)
		defer stop()
		require.NoError(t, s.Control.ReceiveRaw(ctx, row, func(from bus.Caller, _ *nats.Msg) { came <- from }))
	}
	msg := request(row, bus.LocalSubject(row, m.grant), "", bus.Empty{})
	if row.Kind == bus.KindSignal {
		if err := m.conn.TryPublish(t.Context(), msg); err != nil {
			require.ErrorIs(t, err, bus.ErrForbidden)
			return false
		}
	} else {
		denied := errors.Is(m.conn.TryPublish(t.Context(), nats.NewMsg(msg.Subject)), bus.ErrForbidden)
		answer, err := m.conn.NATS().RequestMsg(msg, answerWait(denied))
		if err != nil {
			require.True(t, denied, "no answer and no denial: %v", err)
			return false
		}
		require.False(t, denied)
		require.NotEmpty(t, answer.Header.Get("Depot-Type"))
		if servedByBus(row) {
			return true
		}
	}
	select {
	case from := <-came:
		require.Equal(t, m.grant.Role, from.Role)
		require.Equal(t, m.grant.Account, from.Account)
		require.Equal(t, m.grant.Machine, from.Machine)
		return true
	case <-time.After(5 * time.Second):
		t.Fatal("allowed by the server, but nothing came through")
		return false
	}
}

// servedByBus reports whether package bus answers the row by itself, so that a second receiver would get only a share.
func servedByBus(row bus.Row) bool {
	return row.Name == bus.SayHello.Row().Name || row.Name == bus.RejectDelivery.Row().Name
}

// answerWait is long for what must be answered and short for what must not be.
func answerWait(denied bool) time.Duration {
	if denied {
		return 10 * time.Millisecond
	}
	return 5 * time.Second
}

// mayHear reports whether the member hears what the API server sends to its account.
func mayHear(t *testing.T, s *bustest.Server, row bus.Row, m member) bool {
	t.Helper()
	heard := make(chan struct{}, 10)
	err := m.conn.TrySubscribe(t.Context(), bus.LocalSubject(row, m.grant), func(*nats.Msg) { heard <- struct{}{} })
	if err != nil {
		require.ErrorIs(t, err, bus.ErrForbidden)
		return false
	}
	params := map[string]string{"{self}": string(m.grant.Machine), "{project}": string(m.grant.Project), "{build}": string(bus.NewBuildID())}
	if m.grant.Project == "" {
		params["{project}"] = string(bus.NewProjectID())
	}
	require.NoError(t, s.Control.NATS().Publish(bus.RemoteSubject(row, m.grant.Account, params), nil))
	select {
	case <-heard:
		return true
	case <-time.After(5 * time.Second):
		t.Fatal("subscribed, but what is sent does not come")
		return false
	}
}

// mayConsume reports whether the member gets at the queue, under the names that a tenant has for it.
func mayConsume(t *testing.T, row bus.Row, m member) bool {
	t.Helper()
	subject := "depot.js.CONSUMER.INFO." + row.Stream + ".me"
	if err := m.conn.TryPublish(t.Context(), nats.NewMsg(subject)); err != nil {
		require.ErrorIs(t, err, bus.ErrForbidden)
		return false
	}
	js, err := jetstream.NewWithAPIPrefix(m.conn.NATS(), "depot.js")
	require.NoError(t, err)
	consumer, err := js.Consumer(t.Context(), row.Stream, "me")
	require.NoError(t, err)
	return consumer.CachedInfo().Name == m.grant.Account
}

func TestWhatIsNotInTheTableIsClosed(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		o, c := s.Default(t)
		other := s.Connection(t, o.ID)
		publish := []string{
			"anything", "api", "api.unknown", "$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.CONSUMER.MSG.NEXT.ACTIONS.me",
			"$JS.API.CONSUMER.MSG.NEXT.ACTIONS." + other.Account, "depot.js.STREAM.NAMES", "depot.js.CONSUMER.CREATE.ACTIONS",
			"depot.js.CONSUMER.MSG.NEXT.BUILDS.me", "depot.js.CONSUMER.MSG.NEXT.ACTIONS." + other.Account,
			"$JS.ACK.ACTIONS." + other.Account + ".1.1.1.1.0", "$JS.ACK._.hash.ACTIONS." + other.Account + ".1.1.1.1.0", "$JS.FC.ACTIONS.x.y",
			"$KV.tokens.x", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.AUTH", "_INBOX.x", "_INBOX_" + string(c.Token.ID) + ".x",
			"_R_.x.y", "conn." + c.Account + ".api.agent.result", "conn." + other.Account + ".api.agent.result", "org." + o.Account + ".api.project.list",
			"act." + c.Account + ".x", "queue.build.x", "ctl.agent", "ctl.machine.x", "ev.a.b", "api.machine." + string(bus.NewMachineID()) + ".renew",
		}
		subscribe := []string{
			">", "*", "*.>", "$SYS.>", "$JS.>", "$KV.>", "_INBOX.>", "_INBOX_*.>", "*.*", "_R_.>", "_INBOX_" + string(bus.NewTokenID()) + ".>",
			"conn.>", "org.>", "act.>", "queue.>", "api.>", "api.project.list", "ctl.>", "ctl.*", "ev.>", "ctl.machine.*", "ctl.machine." + string(bus.NewMachineID()),
			"$JS.ACK.>", "depot.js.>", "dead.>",
		}
		for role, m := range members(t, s) {
			for _, subject := range publish {
				if subject == "_INBOX_"+string(c.Token.ID)+".x" && role == bus.RoleAgent {
					continue // its own; publishing there is refused all the same, but proves nothing
				}
				require.ErrorIs(t, m.conn.TryPublish(t.Context(), nats.NewMsg(subject)), bus.ErrForbidden, "%s publishes %s", role, subject)
			}
			for _, subject := range subscribe {
				require.ErrorIs(t, m.conn.TrySubscribe(t.Context(), subject, func(*nats.Msg) {}), bus.ErrForbidden, "%s subscribes %s", role, subject)
			}
		}
	})
}

// The two walls inside an account: a CI job sees its project only, a machine is itself only.
func TestACIJobHearsOfItsOwnProjectOnly(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		project := bus.NewProjectID()
		ci := s.CI(t, project)
		for _, subject := range []string{"ev." + string(bus.NewProjectID()) + ".*", "ev.*.*"} {
			require.ErrorIs(t, ci.TrySubscribe(t.Context(), subject, func(*nats.Msg) {}), bus.ErrForbidden, subject)
		}
		require.NoError(t, ci.TrySubscribe(t.Context(), "ev."+string(project)+".*", func(*nats.Msg) {}))
	})
}

func TestARefusedClientMayOnlyAskWhy(t *testing.T) {
	t.Parallel()
	s := bustest.New(t, bustest.WithListener())
	token := bus.NewToken()
	denied := make(chan string, 100)
	nc, err := nats.Connect(s.URL, nats.Token(token.Reveal()), nats.CustomInboxPrefix("_INBOX_"+string(token.ID)), nats.NoReconnect(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err.Error() }))
	require.NoError(t, err, "it is admitted, to be told")
	t.Cleanup(nc.Close)
	for row := range bus.Table() {
		if row.Kind != bus.KindService && row.Kind != bus.KindSignal {
			continue
		}
		subject := bus.LocalSubject(row, bus.Grant{Role: bus.RoleRefused, Token: token.ID})
		require.NoError(t, nc.Publish(subject, nil))
		require.NoError(t, nc.Flush())
		if slices.Contains(row.Roles, bus.RoleRefused) {
			answer, err := nc.RequestMsg(request(row, subject, "", bus.Hello{Protocol: 1}), 5*time.Second)
			require.NoError(t, err)
			require.Equal(t, "unknown", answer.Header.Get("Depot-Refused"))
			continue
		}
		require.Contains(t, strings.ToLower(<-denied), strings.ToLower(`"`+subject+`"`))
	}
	require.Empty(t, denied)
}
