package apiserver

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// launched starts a machine that does nothing by itself, and returns it.
func launched(t *testing.T, w *world, x tenant) (*cloud, *machine) {
	t.Helper()
	ready := make(chan *machine, 1)
	cloud := w.cloud(t, x, func(c *cloud) {
		c.script = func(ctx context.Context, m *machine) {
			ready <- m
			<-ctx.Done()
		}
	})
	w.client(t, x.user).create(t)
	select {
	case m := <-ready:
		return cloud, m
	case <-time.After(patience):
		require.Fail(t, "no machine was launched")
		return nil, nil
	}
}

// knock connects with the machine's launch nonce.
func (m *machine) knock(t *testing.T) *bus.Conn {
	t.Helper()
	cfg := m.w.bus.Config()
	cfg.Nonce = m.nonce
	return m.w.bus.Connect(t, cfg)
}

func ask(t *testing.T, conn *bus.Conn) string {
	t.Helper()
	c, err := bus.ChallengeMachine.Call(patiently(t), conn, bus.Empty{})
	require.NoError(t, err)
	return c.Challenge
}

func TestRegistration_EachBindingAloneRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	_, m := launched(t, w, w.tenant(t, "acme"))
	conn := m.knock(t)
	otherPublic, otherPrivate, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	_ = otherPublic
	for name, spoil := range map[string]func() bus.MachineRegister{
		"a challenge that was not given": func() bus.MachineRegister { ask(t, conn); return m.claim("aW52ZW50ZWQ=") },
		"a challenge that was replaced": func() bus.MachineRegister {
			old := ask(t, conn)
			ask(t, conn)
			return m.claim(old)
		},
		"another attempt": func() bus.MachineRegister {
			return m.claim(ask(t, conn), func(r *bus.MachineRegister) { r.Attempt = 2 })
		},
		"a key that is not held": func() bus.MachineRegister {
			r := m.claim(ask(t, conn))
			r.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(otherPrivate, bus.RegistrationDigest(m.id, r)))
			return r
		},
		"a user key that was swapped": func() bus.MachineRegister {
			r := m.claim(ask(t, conn))
			key, err := bus.NewUserKey()
			require.NoError(t, err)
			r.UserKey = key.Public()
			return r
		},
		"a signature for another machine": func() bus.MachineRegister {
			r := m.claim(ask(t, conn))
			r.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(m.private, bus.RegistrationDigest(bus.NewMachineID(), r)))
			return r
		},
		"an attestation of another kind": func() bus.MachineRegister {
			return m.claim(ask(t, conn), func(r *bus.MachineRegister) { r.Attestation.Kind = "aws" })
		},
		"no key at all": func() bus.MachineRegister {
			return m.claim(ask(t, conn), func(r *bus.MachineRegister) { r.IdentityKey = "none" })
		},
	} {
		_, err := bus.RegisterMachine.Call(patiently(t), conn, spoil())
		require.ErrorIs(t, err, bus.CodeForbidden, name)
		require.False(t, w.machine(t, m.id).NonceUsed, name)
	}
	_, err = bus.RegisterMachine.Call(patiently(t), conn, m.claim(ask(t, conn)))
	require.NoError(t, err, "and with none of them spoiled it registers")
	require.Equal(t, MachineRegistered, w.machine(t, m.id).State)
}

func TestRegistration_ChallengeExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{Challenge: time.Millisecond})
	_, m := launched(t, w, w.tenant(t, "acme"))
	conn := m.knock(t)
	r := m.claim(ask(t, conn))
	<-time.After(5 * time.Millisecond)
	_, err := bus.RegisterMachine.Call(patiently(t), conn, r)
	require.ErrorContains(t, err, "has expired")
}

func TestRegistration_NonceIsUsedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	w.start(t)
	w.start(t)
	_, m := launched(t, w, w.tenant(t, "acme"))
	conn := m.knock(t)
	challenge := ask(t, conn)
	var won atomic.Int32
	var all sync.WaitGroup
	for range 64 {
		rival := newMachineScript(t, w, bus.Action{Machine: m.id, Attempt: 1}, m.nonce) // the nonce, and a key of its own
		all.Go(func() {
			if _, err := bus.RegisterMachine.Call(patiently(t), conn, rival.claim(challenge)); err == nil {
				won.Add(1)
			}
		})
	}
	all.Wait()
	require.Equal(t, int32(1), won.Load())
}

func TestRegistration_RestartedAgentProvesItsKeyAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	_, m := launched(t, w, w.tenant(t, "acme"))
	conn := m.knock(t)
	_, err := bus.RegisterMachine.Call(patiently(t), conn, m.claim(ask(t, conn)))
	require.NoError(t, err)

	thief := newMachineScript(t, w, bus.Action{Machine: m.id, Attempt: 1}, m.nonce)
	stolen := thief.knock(t)
	_, err = bus.RegisterMachine.Call(patiently(t), stolen, thief.claim(ask(t, stolen)))
	require.ErrorContains(t, err, "bound to another key")

	again := m.knock(t)
	challenge := ask(t, again)
	credential, err := bus.RegisterMachine.Call(patiently(t), again, m.claim(challenge))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Hour), credential.ExpiresAt, time.Minute)
	_, err = bus.RegisterMachine.Call(patiently(t), again, m.claim(challenge))
	require.ErrorContains(t, err, "not the outstanding one", "a challenge is used once")

	cfg := w.bus.Config()
	cfg.User = &bus.UserCredential{Machine: m.id, JWT: credential.JWT, Sign: m.user.Sign}
	registered := w.bus.Connect(t, cfg)
	renewed, err := bus.RenewMachine.Call(patiently(t), registered, bus.Empty{})
	require.NoError(t, err)
	require.NotEmpty(t, renewed.JWT)
	_, err = bus.RegisterMachine.Call(patiently(t), registered, m.claim(ask(t, registered)))
	require.NoError(t, err)
}

func TestRegistration_OnlyAnnouncedLaunchesGetIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	_, m := launched(t, w, x)
	for name, nonce := range map[string]bus.Nonce{
		"a machine without a record": bus.LaunchNonce(x.agent, bus.NewMachineID(), 1),
		"another attempt":            bus.LaunchNonce(x.agent, m.id, 2),
		"another connection's token": bus.LaunchNonce(bus.NewToken(), m.id, 1),
	} {
		cfg := w.bus.Config()
		cfg.Nonce = nonce
		_, err := bus.Connect(t.Context(), cfg)
		require.ErrorIs(t, err, bus.ErrBadToken, name)
	}
}

func TestRegistration_MachineThatIsNotWantedAnyMoreIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	x := w.tenant(t, "acme")
	cloud, m := launched(t, w, x)
	conn := m.knock(t)
	r := m.claim(ask(t, conn))
	cloud.mu.Lock()
	cloud.killed[m.id] = true
	cloud.mu.Unlock()
	cloud.report()
	require.Eventually(t, func() bool { return !w.machine(t, m.id).alive() }, patience, time.Millisecond)
	_, err := bus.RegisterMachine.Call(patiently(t), conn, r)
	require.ErrorIs(t, err, bus.CodeForbidden)
	cfg := w.bus.Config()
	cfg.Nonce = m.nonce
	_, err = bus.Connect(t.Context(), cfg)
	require.ErrorIs(t, err, bus.ErrRevokedToken)
	_, err = bus.ReportIntent.Call(patiently(t), cloud.conn, bus.LaunchIntent{Machine: m.id, Attempt: 1, NonceHash: strings.Repeat("0", 64)})
	require.ErrorIs(t, err, bus.CodeConflict, "and shall not be launched either")
}

func TestInstruction_NeedsTheMachinesOwnCredentialOfThisAttempt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Timeouts{})
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)
	v := c.untilState(t, c.create(t).Build, bus.BuildReady)
	m := cloud.machine(v.Leases[0].Machine)
	_, err := bus.InstructMachine.Call(patiently(t), m.knock(t), bus.Instruct{Daemon: bus.DaemonStatus{State: bus.DaemonReady}})
	require.ErrorIs(t, err, bus.ErrForbidden, "a nonce is not a credential")

	_, _, err = change(t.Context(), w.newest().store.machines, string(m.id), func(m Machine) (Machine, error) {
		m.Attempt++
		return m, nil
	})
	require.NoError(t, err)
	_, err = bus.InstructMachine.Call(patiently(t), m.connection(), bus.Instruct{Daemon: bus.DaemonStatus{State: bus.DaemonReady}})
	require.ErrorIs(t, err, bus.CodeForbidden, "an old attempt has no effect")
	_, err = bus.SayGoodbye.Call(patiently(t), m.connection(), bus.MachineGoodbye{})
	require.ErrorIs(t, err, bus.CodeForbidden)
	require.Equal(t, MachineServing, w.machine(t, m.id).State)
}
