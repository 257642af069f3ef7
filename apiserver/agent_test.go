package apiserver

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
)

// machine is a machine-agent, scripted.
type machine struct {
	t       testing.TB
	w       *world
	id      bus.MachineID
	attempt int
	volume  bus.VolumeID
	project bus.ProjectID
	nonce   bus.Nonce
	public  string // PEM
	private ed25519.PrivateKey
	user    *bus.UserKey
	stop    func()
	done    sync.WaitGroup

	mu      sync.Mutex
	keys    map[bus.LeaseID]*certs.Key
	csrs    map[bus.LeaseID]string
	grants  map[bus.LeaseID]bus.LeaseGrant
	conn    *bus.Conn // as RoleMachine
	poke    chan struct{}
	noServe bool // registers, and does not report that leases serve
}

func newMachineScript(t testing.TB, w *world, a bus.Action, nonce bus.Nonce) *machine {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKIXPublicKey(public)
	require.NoError(t, err)
	user, err := bus.NewUserKey()
	require.NoError(t, err)
	return &machine{
		t: t, w: w, id: a.Machine, attempt: a.Attempt, volume: a.Volume, project: a.Project, nonce: nonce,
		public: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), private: private, user: user,
		keys: map[bus.LeaseID]*certs.Key{}, csrs: map[bus.LeaseID]string{}, grants: map[bus.LeaseID]bus.LeaseGrant{},
		poke: make(chan struct{}, 1),
	}
}

// claim is a registration that is right in every way; mutate spoils it.
func (m *machine) claim(challenge string, mutate ...func(*bus.MachineRegister)) bus.MachineRegister {
	r := bus.MachineRegister{
		Attempt: m.attempt, IdentityKey: m.public, UserKey: m.user.Public(), Challenge: challenge,
		Attestation: bus.Attestation{Kind: AttestorNonce}, Version: "test",
	}
	for _, f := range mutate {
		f(&r)
	}
	r.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(m.private, bus.RegistrationDigest(m.id, r)))
	return r
}

func (m *machine) register(ctx context.Context) (bus.MachineCredential, error) {
	cfg := m.w.bus.Config()
	cfg.Nonce = m.nonce
	conn, err := bus.Connect(ctx, cfg)
	if err != nil {
		return bus.MachineCredential{}, err
	}
	defer func() { _ = conn.Close() }()
	challenge, err := bus.ChallengeMachine.Call(ctx, conn, bus.Empty{})
	if err != nil {
		return bus.MachineCredential{}, err
	}
	return bus.RegisterMachine.Call(ctx, conn, m.claim(challenge.Challenge))
}

// serve registers and then does what it is told, until ctx ends. What goes wrong is tried again: a registration too,
// with a fresh challenge, because its answer may have been lost.
func (m *machine) serve(ctx context.Context) {
	for ctx.Err() == nil {
		m.session(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (m *machine) session(ctx context.Context) {
	credential, err := m.register(ctx)
	if err != nil {
		return
	}
	cfg := m.w.bus.Config()
	cfg.User = &bus.UserCredential{Machine: m.id, JWT: credential.JWT, Sign: m.user.Sign}
	conn, err := bus.Connect(ctx, cfg)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	m.mu.Lock()
	m.conn = conn
	m.mu.Unlock()
	if err := bus.HintMachine.Subscribe(ctx, conn, func(h bus.MachineHint) { m.wake(h.Lease) }); err != nil {
		return
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		again := m.instruct(ctx, conn)
		if again {
			continue
		}
		select {
		case <-ctx.Done():
		case <-m.poke:
		case <-tick.C:
		}
	}
}

func (m *machine) wake(lease bus.LeaseID) {
	if lease != "" {
		m.request(lease)
	}
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// request makes a key for the lease if there is none.
func (m *machine) request(lease bus.LeaseID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys[lease] == nil {
		m.keys[lease], _ = certs.NewKey()
		m.csrs[lease], _ = m.keys[lease].CSR()
	}
}

// loseKeys forgets all keys, as after a restart.
func (m *machine) loseKeys() {
	m.mu.Lock()
	clear(m.keys)
	clear(m.csrs)
	clear(m.grants)
	m.mu.Unlock()
}

// instruct is one round of the conversation. It reports whether there is more to say at once.
func (m *machine) instruct(ctx context.Context, conn *bus.Conn) bool {
	say := bus.Instruct{Daemon: bus.DaemonStatus{State: bus.DaemonReady, Version: "test"}, Addresses: []string{"127.0.0.1:1234"}}
	m.mu.Lock()
	for id, csr := range m.csrs {
		say.CSRs = append(say.CSRs, bus.LeaseCSR{Lease: id, CSR: csr})
	}
	if !m.noServe {
		for id, g := range m.grants {
			say.Serving = append(say.Serving, bus.LeaseRef{Lease: id, Generation: g.Generation})
		}
	}
	m.mu.Unlock()
	told, err := bus.InstructMachine.Call(ctx, conn, say)
	if err != nil {
		return false
	}
	more := false
	for _, id := range told.Wanted {
		m.request(id)
		more = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	grants := map[bus.LeaseID]bus.LeaseGrant{}
	for _, g := range told.Leases {
		if m.keys[g.Lease] == nil {
			more = true
			m.keys[g.Lease], _ = certs.NewKey()
			m.csrs[g.Lease], _ = m.keys[g.Lease].CSR()
			continue
		}
		if m.grants[g.Lease].Generation != g.Generation {
			more = true
		}
		grants[g.Lease] = g
	}
	m.grants = grants
	return more
}

// connection returns the machine's connection once it has registered.
func (m *machine) connection() *bus.Conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.conn
}

// holds returns what the machine serves for a lease.
func (m *machine) holds(id bus.LeaseID) (bus.LeaseGrant, *certs.Key, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, ok := m.grants[id]
	return g, m.keys[id], ok
}
