package machineagent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
	"github.com/depotctl/depot/certs"
)

// control is an API server for one machine, on a real bus: it decides as the real one does, from memory.
type control struct {
	*bustest.Server
	conn    bustest.Connection
	machine bus.MachineID
	nonce   bus.Nonce
	life    time.Duration // of credentials

	mu            sync.Mutex
	revision      uint64
	desire        bus.MachineDesire
	leases        map[bus.LeaseID]*testLease
	challenge     string
	identity      string // bound
	userKey       string
	registrations int
	renewals      int
	asked         []bus.Instruct
	reports       []bus.MachineReport
	goodbyes      []bus.MachineGoodbye
	wire          []string           // all that the machine sent
	silent        bool               // answers nothing
	stale         bool               // answers from before all leases
	answering     func(bus.Instruct) // called before an answer leaves, without the lock
	changed       chan struct{}      // closed and replaced at each change
}

// testLease is a lease as the API server has it, and the client's end of it.
type testLease struct {
	bus.LeaseGrant
	clientKey  *certs.Key
	clientCSR  string
	clientCert string
	machineCSR string
	serving    int
}

func newControl(t *testing.T, adjust ...func(*control)) *control {
	t.Helper()
	c := &control{
		machine: bus.NewMachineID(), life: time.Hour, desire: bus.DesireServe,
		leases: map[bus.LeaseID]*testLease{}, changed: make(chan struct{}), revision: 1,
	}
	for _, a := range adjust {
		a(c)
	}
	if c.Server == nil {
		c.Server = bustest.New(t)
	}
	_, c.conn = c.Default(t)
	c.nonce = bus.LaunchNonce(c.conn.Token, c.machine, 1)
	c.AdmitNonce(c.conn, c.nonce)
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // until the agent has said goodbye
	t.Cleanup(cancel)
	require.NoError(t, bus.ChallengeMachine.Serve(ctx, c.Control, c.serveChallenge))
	require.NoError(t, bus.RegisterMachine.Serve(ctx, c.Control, c.serveRegister))
	require.NoError(t, bus.RenewMachine.Serve(ctx, c.Control, c.serveRenew))
	require.NoError(t, bus.InstructMachine.Serve(ctx, c.Control, c.serveInstruct))
	require.NoError(t, bus.SayGoodbye.Serve(ctx, c.Control, func(_ context.Context, _ bus.Caller, g bus.MachineGoodbye) (bus.Empty, error) {
		c.change(func() { c.goodbyes = append(c.goodbyes, g) })
		return bus.Empty{}, nil
	}))
	require.NoError(t, bus.MachineIsLive.Receive(ctx, c.Control, func(_ context.Context, _ bus.Caller, r bus.MachineReport) {
		c.change(func() { c.reports = append(c.reports, r) })
	}))
	return c
}

// change changes the record and wakes whoever waits for that.
func (c *control) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

// wait waits until the record is as wanted.
func (c *control) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		c.mu.Lock()
		done, changed := ok(), c.changed
		c.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			c.mu.Lock()
			defer c.mu.Unlock()
			last := bus.Instruct{}
			if len(c.asked) > 0 {
				last = c.asked[len(c.asked)-1]
			}
			require.FailNow(t, "waited too long: "+what, "last question: %+v", last)
		}
	}
}

func (c *control) sent(m any) {
	text, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	c.wire = append(c.wire, string(text))
}

func (c *control) serveChallenge(context.Context, bus.Caller, bus.Empty) (bus.MachineChallenge, error) {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	c.change(func() { c.challenge = base64.StdEncoding.EncodeToString(b) })
	return bus.MachineChallenge{Challenge: base64.StdEncoding.EncodeToString(b)}, nil
}

func (c *control) serveRegister(_ context.Context, from bus.Caller, r bus.MachineRegister) (m bus.MachineCredential, err error) {
	c.change(func() {
		c.sent(r)
		m, err = c.register(from, r)
	})
	return m, err
}

func (c *control) register(from bus.Caller, r bus.MachineRegister) (bus.MachineCredential, error) {
	block, _ := pem.Decode([]byte(r.IdentityKey))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return bus.MachineCredential{}, err
	}
	signature, err := base64.StdEncoding.DecodeString(r.Signature)
	key, ok := public.(ed25519.PublicKey)
	switch {
	case err != nil, !ok, !ed25519.Verify(key, bus.RegistrationDigest(from.Machine, r), signature):
		return bus.MachineCredential{}, bus.Faultf(bus.CodeForbidden, "bad signature")
	case r.Challenge != c.challenge || c.challenge == "":
		return bus.MachineCredential{}, bus.Faultf(bus.CodeForbidden, "bad challenge")
	case c.identity != "" && c.identity != r.IdentityKey:
		return bus.MachineCredential{}, bus.Faultf(bus.CodeForbidden, "bound to another key")
	}
	c.challenge, c.identity, c.userKey = "", r.IdentityKey, r.UserKey
	c.registrations++
	return c.mint()
}

func (c *control) mint() (bus.MachineCredential, error) {
	return c.Control.MintMachine(bus.Grant{
		Role: bus.RoleMachine, Account: c.conn.Account, Organization: c.conn.Organization, Connection: c.conn.ID, Machine: c.machine, Attempt: 1,
	}, c.userKey, c.life)
}

func (c *control) serveRenew(context.Context, bus.Caller, bus.Empty) (m bus.MachineCredential, err error) {
	c.change(func() {
		c.renewals++
		m, err = c.mint()
	})
	return m, err
}

func (c *control) serveInstruct(ctx context.Context, _ bus.Caller, q bus.Instruct) (answer bus.Instruction, err error) {
	c.mu.Lock()
	silent, answering := c.silent, c.answering
	c.mu.Unlock()
	if silent {
		<-ctx.Done()
		return bus.Instruction{}, ctx.Err()
	}
	c.change(func() {
		c.sent(q)
		c.asked = append(c.asked, q)
		answer, err = c.instruct(q)
	})
	if answering != nil {
		answering(q)
	}
	return answer, err
}

func (c *control) instruct(q bus.Instruct) (bus.Instruction, error) {
	for _, r := range q.CSRs {
		if l := c.leases[r.Lease]; l != nil && l.machineCSR != r.CSR {
			if err := c.certify(l, r.CSR); err != nil {
				return bus.Instruction{}, err
			}
		}
	}
	for _, r := range q.Serving {
		if l := c.leases[r.Lease]; l != nil && l.Generation == r.Generation {
			l.serving = r.Generation
		}
	}
	answer := bus.Instruction{Desire: c.desire, RefreshSeconds: 10, Revision: c.revision, Leases: []bus.LeaseGrant{}, Wanted: []bus.LeaseID{}}
	if c.stale {
		answer.Revision = 1
		return answer, nil
	}
	for _, id := range slices.Sorted(maps.Keys(c.leases)) {
		if l := c.leases[id]; l.Generation > 0 {
			answer.Leases = append(answer.Leases, l.LeaseGrant)
		} else {
			answer.Wanted = append(answer.Wanted, id)
		}
	}
	return answer, nil
}

func (c *control) certify(l *testLease, csr string) error {
	a, err := certs.NewAuthority(certs.Lease{ID: string(l.Lease), Build: string(l.Build), Project: "prj-a", Organization: "org-a"}, time.Now(), l.Deadline)
	if err != nil {
		return err
	}
	defer a.Forget()
	if l.Certificate, err = a.SignServer(csr); err != nil {
		return err
	}
	if l.clientCert, err = a.SignClient(l.clientCSR); err != nil {
		return err
	}
	l.CA, l.machineCSR = a.CA(), csr
	l.Generation++
	c.revision++
	return nil
}

// lease takes a lease on the machine, without telling it.
func (c *control) lease(t *testing.T, life time.Duration) *testLease {
	t.Helper()
	l := &testLease{LeaseGrant: bus.LeaseGrant{Lease: bus.NewLeaseID(), Build: bus.NewBuildID(), Deadline: time.Now().Add(life)}}
	var err error
	l.clientKey, err = certs.NewKey()
	require.NoError(t, err)
	l.clientCSR, err = l.clientKey.CSR()
	require.NoError(t, err)
	l.ClientSPKI, err = certs.SPKI(l.clientCSR)
	require.NoError(t, err)
	c.change(func() {
		c.revision++
		c.leases[l.Lease] = l
	})
	return l
}

// end ends a lease and hints.
func (c *control) end(t *testing.T, l *testLease) {
	t.Helper()
	c.change(func() {
		c.revision++
		delete(c.leases, l.Lease)
	})
	c.hint(t, "")
}

func (c *control) hint(t *testing.T, lease bus.LeaseID) {
	t.Helper()
	require.NoError(t, bus.HintMachine.Send(t.Context(), c.Control, c.conn.Account, string(c.machine), bus.MachineHint{Lease: lease}))
}

// want changes what the machine as a whole shall do, and hints.
func (c *control) want(t *testing.T, d bus.MachineDesire) {
	t.Helper()
	c.change(func() {
		c.revision++
		c.desire = d
	})
	c.hint(t, "")
}

// serve takes a lease, hints, and waits until the machine serves it.
func (c *control) serve(t *testing.T) *testLease {
	t.Helper()
	l := c.lease(t, time.Hour)
	c.hint(t, l.Lease)
	c.waitServing(t, l, 1)
	return l
}

func (c *control) waitServing(t *testing.T, l *testLease, generation int) {
	t.Helper()
	c.wait(t, fmt.Sprintf("lease served in generation %d", generation), func() bool { return l.serving == generation })
}

// client is the configuration that the API server would give to the lease's client now.
func (c *control) client(t *testing.T, l *testLease) *tls.Config {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	cfg, err := certs.ClientConfig(string(l.Lease), l.CA, l.clientCert, l.clientKey)
	require.NoError(t, err)
	return cfg
}

func (c *control) address(t *testing.T) string {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.asked[len(c.asked)-1]
	require.NotEmpty(t, last.Addresses)
	return last.Addresses[0]
}

// daemon is what the machine last said of its daemon.
func (c *control) daemon() bus.DaemonStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastDaemon()
}

// heard returns the machine's last words.
func (c *control) heard() []bus.MachineGoodbye {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.goodbyes)
}

// registered returns how often the machine has registered.
func (c *control) registered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.registrations
}

func (c *control) lastDaemon() bus.DaemonStatus {
	if len(c.asked) == 0 {
		return bus.DaemonStatus{}
	}
	return c.asked[len(c.asked)-1].Daemon
}
