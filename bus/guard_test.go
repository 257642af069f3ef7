package bus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

func request(row bus.Row, subject, reply string, body bus.Message) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Header.Set("Depot-Type", row.Name+".v1")
	m.Reply = reply
	m.Data, _ = json.Marshal(body) // messages always marshal
	return m
}

// Within CONTROL a reply subject is not rewritten, as in any single account. This is the negative control of the next
// test: without the guard the API server would write into the queue of whomever the reply names.
func TestARequestWhoseReplyTheServerDidNotWriteIsDropped(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		o, c := s.Default(t)
		served := make(chan bus.Caller, 10)
		require.NoError(t, bus.ListProjects.Serve(t.Context(), s.Control, func(_ context.Context, from bus.Caller, _ bus.Empty) (bus.ProjectList, error) {
			served <- from
			return bus.ProjectList{}, nil
		}))
		before := queued(t, s)
		for _, reply := range []string{"act." + c.Account + ".injected", "_INBOX.somebody", ""} {
			m := request(bus.ListProjects.Row(), "org."+o.Account+".api.project.list", reply, bus.Empty{})
			require.NoError(t, s.Control.NATS().PublishMsg(m))
		}
		require.Eventually(t, func() bool { return s.Control.Guarded() == 3 }, 5*time.Second, time.Millisecond)
		require.Empty(t, served)
		require.Equal(t, before, queued(t, s))
	})
}

// queued is how many messages all action queues hold.
func queued(t *testing.T, s *bustest.Server) uint64 {
	t.Helper()
	js, err := jetstream.New(s.Control.NATS())
	require.NoError(t, err)
	stream, err := js.Stream(t.Context(), bus.Actions.Row().Stream)
	require.NoError(t, err)
	return stream.CachedInfo().State.Msgs
}

func TestRepliesOfATenantReachNobodyElse(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		o, victim := s.Default(t)
		publishAction(t, s, anAction())
		attacker := s.Connection(t, o.ID)
		a := s.WithToken(t, attacker.Token).NATS()

		var served atomic.Int64
		require.NoError(t, bus.ReportInventory.Serve(t.Context(), s.Control, func(_ context.Context, from bus.Caller, _ bus.Inventory) (bus.Empty, error) {
			if from.Account != attacker.Account {
				return bus.Empty{}, fmt.Errorf("caller is %+v", from)
			}
			served.Add(1)
			return bus.Empty{}, nil
		}))
		hint := make(chan struct{}, 10)
		require.NoError(t, bus.AgentHint.Subscribe(t.Context(), s.Agent(t), func(bus.Empty) { hint <- struct{}{} }))
		heard := tap(t, s, victim.Account)

		pending := ackPending(t, s, victim.Account)
		for _, reply := range []string{
			"act." + victim.Account + ".injected", "conn." + victim.Account + ".ctl.agent", "conn." + victim.Account + ".api.agent.result",
			"$JS.ACK.ACTIONS." + victim.Account + ".1.1.1.1.0", "_R_.abc.def", "_GR_.a.b.c", "$JS.API.STREAM.PURGE.ACTIONS", "queue.build.x", "$KV.tokens.x",
		} {
			require.NoError(t, a.PublishMsg(request(bus.ReportInventory.Row(), "api.agent.inventory", reply, bus.Inventory{})))
			pull := nats.NewMsg("depot.js.CONSUMER.MSG.NEXT.ACTIONS.me")
			pull.Reply, pull.Data = reply, []byte(`{"batch":1,"no_wait":true}`)
			require.NoError(t, a.PublishMsg(pull))
		}
		require.NoError(t, a.Flush())
		require.Eventually(t, func() bool { return served.Load() >= 5 }, 5*time.Second, time.Millisecond, "the attacks were real requests")
		require.NoError(t, s.Control.NATS().Flush())

		require.EqualValues(t, 1, queued(t, s), "the victim's queue is as it was")
		require.Equal(t, pending, ackPending(t, s, victim.Account), "and nothing in it was acknowledged")
		require.Empty(t, hint)
		require.Empty(t, heard())
	})
}

// tap returns what has been published on the account's subjects in CONTROL since.
func tap(t *testing.T, s *bustest.Server, account string) func() []string {
	t.Helper()
	heard := make(chan string, 100)
	for _, subject := range []string{"conn." + account + ".>", "org." + account + ".>", "act." + account + ".>", "$KV.>", "queue.>"} {
		sub, err := s.Control.NATS().Subscribe(subject, func(m *nats.Msg) { heard <- m.Subject })
		require.NoError(t, err)
		t.Cleanup(func() { _ = sub.Unsubscribe() })
	}
	require.NoError(t, s.Control.NATS().Flush())
	return func() []string {
		var all []string
		for len(heard) > 0 {
			all = append(all, <-heard)
		}
		return all
	}
}

func ackPending(t *testing.T, s *bustest.Server, account string) int {
	t.Helper()
	js, err := jetstream.New(s.Control.NATS())
	require.NoError(t, err)
	consumer, err := js.Consumer(t.Context(), bus.Actions.Row().Stream, account)
	require.NoError(t, err)
	return consumer.CachedInfo().NumAckPending
}

func TestWhoAsksIsWrittenByTheServer(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		_, c := s.Default(t)
		id, other := bus.NewMachineID(), bus.NewMachineID()
		callers := make(chan bus.Caller, 1)
		require.NoError(t, bus.RenewMachine.Serve(t.Context(), s.Control, func(_ context.Context, from bus.Caller, _ bus.Empty) (bus.MachineCredential, error) {
			callers <- from
			return bus.MachineCredential{JWT: "x"}, nil
		}))
		m := request(bus.RenewMachine.Row(), "api.machine."+string(id)+".renew", "", bus.Empty{})
		m.Header.Set("Nats-Request-Info", `{"acc":"`+c.Account+`","name_tag":"machine.`+string(other)+`"}`)
		m.Header.Add("Nats-Request-Info", `{"acc":"A"}`)
		_, err := s.Machine(t, id).NATS().RequestMsg(m, 5*time.Second)
		require.NoError(t, err)
		require.Equal(t, bus.Caller{
			Role: bus.RoleMachine, Account: c.Account, Organization: c.Organization, Connection: c.ID, Machine: id, Attempt: 1,
		}, <-callers)
	})
}

// A client with a user JWT may send any user name beside it.
func TestAUserNameBesideAJWTIsNotBelieved(t *testing.T) {
	t.Parallel()
	s := bustest.New(t, bustest.WithListener())
	_, c := s.Default(t)
	id, other := bus.NewMachineID(), bus.NewMachineID()
	callers := make(chan bus.Caller, 1)
	require.NoError(t, bus.RenewMachine.Serve(t.Context(), s.Control, func(_ context.Context, from bus.Caller, _ bus.Empty) (bus.MachineCredential, error) {
		callers <- from
		return bus.MachineCredential{JWT: "x"}, nil
	}))
	cred := s.Credential(t, c, id, time.Hour)
	nc, err := nats.Connect(s.URL, nats.UserInfo("machine."+string(other), "x"), nats.CustomInboxPrefix("_INBOX_"+string(id)),
		nats.UserJWT(func() (string, error) { return cred.JWT, nil }, cred.Sign))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	_, err = nc.RequestMsg(request(bus.RenewMachine.Row(), "api.machine."+string(id)+".renew", "", bus.Empty{}), 5*time.Second)
	require.NoError(t, err)
	require.Equal(t, id, (<-callers).Machine)
}

// thief is a user of the account with no permission limits at all, as the holder of ConnSign can make them.
func thief(t *testing.T, s *bustest.Server, account, name string) *nats.Conn {
	t.Helper()
	key, err := nkeys.CreateUser()
	require.NoError(t, err)
	public, err := key.PublicKey()
	require.NoError(t, err)
	text, err := s.Trust.StealConnSign(account, public, name)
	require.NoError(t, err)
	nc, err := nats.Connect(s.URL, nats.UserJWT(func() (string, error) { return text, nil }, key.Sign))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

func TestAStolenUserKeyReachesNothingOfAnotherAccount(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*bustest.Server{"tcp": bustest.New(t, bustest.WithListener())} {
		t.Run(name, func(t *testing.T) { stolenUserKey(t, s) })
	}
	t.Run("process", func(t *testing.T) { stolenUserKey(t, bustest.NewExternal(t)) })
}

func stolenUserKey(t *testing.T, s *bustest.Server) {
	o, victim := s.Default(t)
	publishAction(t, s, anAction())
	attacker := s.Connection(t, o.ID)
	nc := thief(t, s, attacker.Account, "agent."+string(victim.Token.ID)+"."+string(victim.ID))

	callers := make(chan bus.Caller, 1)
	require.NoError(t, bus.ReportInventory.Serve(t.Context(), s.Control, func(_ context.Context, from bus.Caller, _ bus.Inventory) (bus.Empty, error) {
		callers <- from
		return bus.Empty{}, nil
	}))
	_, err := nc.RequestMsg(request(bus.ReportInventory.Row(), "api.agent.inventory", "", bus.Inventory{}), 5*time.Second)
	require.NoError(t, err)
	require.Equal(t, attacker.Account, (<-callers).Account, "whatever the thief calls itself, the account is the server's word")

	for _, subject := range []string{
		"conn." + victim.Account + ".api.agent.inventory", "act." + victim.Account + ".x", "$KV.tokens.x", "queue.build.x",
		"$JS.API.CONSUMER.MSG.NEXT.ACTIONS." + victim.Account, "depot.js.CONSUMER.MSG.NEXT.ACTIONS." + victim.Account,
		"$JS.ACK.ACTIONS." + victim.Account + ".1.1.1.1.0", "$JS.API.STREAM.PURGE.ACTIONS", "$JS.API.STREAM.MSG.GET.ACTIONS",
		"$JS.API.CONSUMER.DELETE.ACTIONS." + victim.Account, "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.USER.AUTH",
	} {
		answer, err := nc.Request(subject, []byte(`{"batch":1,"no_wait":true}`), 300*time.Millisecond)
		if err == nil { // JetStream's own answer in an account without it
			require.Contains(t, string(answer.Data), "not enabled", subject)
		}
	}
	sub, err := nc.SubscribeSync(">")
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	require.NoError(t, bus.AgentHint.Send(t.Context(), s.Control, victim.Account, "", bus.Empty{}))
	require.NoError(t, s.Control.NATS().Flush())
	m, err := sub.NextMsg(100 * time.Millisecond)
	require.ErrorIs(t, err, nats.ErrTimeout, "%+v", m)
	require.EqualValues(t, 1, queued(t, s))
	require.Zero(t, ackPending(t, s, victim.Account))
}

func TestForgedImportsOfAnotherAccountHaveNoEffect(t *testing.T) {
	t.Parallel()
	s := bustest.New(t, bustest.WithListener())
	o, victim := s.Default(t)
	publishAction(t, s, anAction())
	attacker := s.Connection(t, o.ID)
	require.NoError(t, s.Control.PushForged(t.Context(), attacker.Account, victim.Account))
	served := make(chan bus.Caller, 1)
	require.NoError(t, bus.ReportInventory.Serve(t.Context(), s.Control, func(_ context.Context, from bus.Caller, _ bus.Inventory) (bus.Empty, error) {
		served <- from
		return bus.Empty{}, nil
	}))
	nc := thief(t, s, attacker.Account, "agent."+string(victim.Token.ID))
	_, err := nc.RequestMsg(request(bus.ReportInventory.Row(), "api.agent.inventory", "", bus.Inventory{}), time.Second)
	require.ErrorIs(t, err, nats.ErrNoResponders)
	_, err = nc.Request("depot.js.CONSUMER.MSG.NEXT.ACTIONS.me", []byte(`{"batch":1,"no_wait":true}`), time.Second)
	require.ErrorIs(t, err, nats.ErrNoResponders)
	sub, err := nc.SubscribeSync("ctl.>")
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	require.NoError(t, bus.AgentHint.Send(t.Context(), s.Control, victim.Account, "", bus.Empty{}))
	require.NoError(t, s.Control.NATS().Flush())
	_, err = sub.NextMsg(100 * time.Millisecond)
	require.ErrorIs(t, err, nats.ErrTimeout)
	require.Empty(t, served)
	require.Zero(t, ackPending(t, s, victim.Account))
}

// Deduplication spans a stream: who may publish into it could make another's message vanish by using its id first.
func TestTenantsCannotPublishIntoAStream(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		o, c := s.Default(t)
		squat := func(conn *bus.Conn, subject string) error {
			m := nats.NewMsg(subject)
			m.Header.Set(nats.MsgIdHdr, "action."+c.Account+".squatted")
			return conn.TryPublish(t.Context(), m)
		}
		for _, conn := range []*bus.Conn{s.Agent(t), s.Machine(t, bus.NewMachineID()), s.User(t)} {
			for _, subject := range []string{
				"act." + c.Account + ".x", "act.me.x", "queue.build.x", "ev.a.b", "org." + o.Account + ".ev.a.b", "$KV.tokens.x", "dead.x",
			} {
				require.ErrorIs(t, squat(conn, subject), bus.ErrForbidden, subject)
			}
		}
		require.NoError(t, bus.Actions.Publish(t.Context(), s.Control, c.Account, anAction(), "squatted", "mch-a"))
		require.EqualValues(t, 1, queued(t, s), "the honest message is stored")
	})
}
