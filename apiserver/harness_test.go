package apiserver

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
	"github.com/depotctl/depot/certs"
)

// world is a bus with API servers on it, and whoever talks to them.
type world struct {
	bus      *bustest.Server
	timeouts Timeouts
	crash    func(effect) bool // see Server.crash

	mu      sync.Mutex
	servers []*Server
}

// tenant is an organization with a connection, a default project and their tokens.
type tenant struct {
	Bootstrapped
	user, agent bus.Token
}

// newWorld starts one API server.
func newWorld(t testing.TB, timeouts Timeouts) *world {
	t.Helper()
	w := emptyWorld(t, timeouts)
	w.start(t)
	return w
}

// emptyWorld starts none.
func emptyWorld(t testing.TB, timeouts Timeouts) *world {
	t.Helper()
	return &world{bus: bustest.New(t, bustest.WithoutCallout()), timeouts: timeouts}
}

// newest returns the API server that was started last.
func (w *world) newest() *Server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.servers[len(w.servers)-1]
}

// start adds an API server with a connection of its own, and returns what ends it.
func (w *world) start(t testing.TB) (stop func()) {
	t.Helper()
	control, err := bus.OpenControl(t.Context(), bus.ControlConfig{Server: w.bus.Embedded, Trust: w.bus.Trust, Name: "apiserver", Version: "test"})
	require.NoError(t, err)
	s, err := New(Config{Control: control, Version: "test", Timeouts: w.timeouts, Scan: 100 * time.Millisecond, Log: testLog()})
	require.NoError(t, err)
	s.crash = w.crash
	w.mu.Lock()
	w.servers = append(w.servers, s)
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
		require.NoError(t, control.Close())
	})
	t.Cleanup(stop)
	select {
	case <-s.Ready():
	case err := <-ended:
		require.NoError(t, err, "the API server ended before it was ready")
	case <-time.After(20 * time.Second):
		require.Fail(t, "the API server is not ready")
	}
	return stop
}

// testLog prints everything when DEPOT_TEST_LOG is set.
func testLog() *slog.Logger {
	if os.Getenv("DEPOT_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// tenant makes an organization.
func (w *world) tenant(t testing.TB, name string) tenant {
	t.Helper()
	x := tenant{user: bus.NewToken(), agent: bus.NewToken()}
	made, err := Bootstrap(t.Context(), w.bus.Control, BootstrapConfig{
		Organization: name, Connection: "local", Project: "default", UserToken: x.user, AgentToken: x.agent,
	})
	require.NoError(t, err)
	x.Bootstrapped = made
	return x
}

// connect connects with a token; the connection ends with the test.
func (w *world) connect(t testing.TB, token bus.Token) *bus.Conn { return w.bus.WithToken(t, token) }

// client is a CLI that builds.
type client struct {
	conn *bus.Conn
	key  *certs.Key
	csr  string
}

func (w *world) client(t testing.TB, token bus.Token) *client {
	t.Helper()
	key, err := certs.NewKey()
	require.NoError(t, err)
	csr, err := key.CSR()
	require.NoError(t, err)
	return &client{conn: w.connect(t, token), key: key, csr: csr}
}

func (c *client) create(t testing.TB, archs ...bus.Arch) bus.BuildView {
	t.Helper()
	v, err := bus.CreateBuild.Call(t.Context(), c.conn, bus.BuildCreate{Build: bus.NewBuildID(), Architectures: archs, CSR: c.csr})
	require.NoError(t, err)
	return v
}

func (c *client) get(t testing.TB, id bus.BuildID) bus.BuildView {
	t.Helper()
	v, err := bus.GetBuild.Call(t.Context(), c.conn, bus.BuildRef{Build: id})
	require.NoError(t, err)
	return v
}

// until waits until the build is as wanted.
func (c *client) until(t testing.TB, id bus.BuildID, wanted func(bus.BuildView) bool) bus.BuildView {
	t.Helper()
	var v bus.BuildView
	require.Eventually(t, func() bool {
		v = c.get(t, id)
		return wanted(v)
	}, 15*time.Second, 5*time.Millisecond, "build %s: %+v", id, &v)
	return v
}

func (c *client) untilState(t testing.TB, id bus.BuildID, s bus.BuildState) bus.BuildView {
	t.Helper()
	return c.until(t, id, func(v bus.BuildView) bool { return v.State == s })
}

func (c *client) finish(t testing.TB, id bus.BuildID) bus.BuildView {
	t.Helper()
	v, err := bus.FinishBuild.Call(t.Context(), c.conn, bus.BuildFinish{Build: id, State: bus.BuildSucceeded})
	require.NoError(t, err)
	return v
}

// cloud is a connection's cloud-agent, scripted, with a cloud of machines that speak for themselves over the bus.
type cloud struct {
	t     testing.TB
	w     *world
	ctx   context.Context
	conn  *bus.Conn
	token bus.Token

	refuse  func(bus.Action) *bus.Fault           // refuses actions
	drop    func(bus.Action) bool                 // acknowledges actions and does nothing
	script  func(ctx context.Context, m *machine) // what a machine does; the default serves
	archs   []bus.Arch                            // that it offers
	mu      sync.Mutex
	actions []bus.Action
	running map[bus.MachineID]*machine
	volumes map[bus.VolumeID]bus.MachineID
	killed  map[bus.MachineID]bool
}

func (w *world) cloud(t testing.TB, x tenant, configure ...func(*cloud)) *cloud {
	t.Helper()
	c := &cloud{
		t: t, w: w, ctx: t.Context(), conn: w.connect(t, x.agent), token: x.agent, archs: []bus.Arch{bus.AMD64, bus.ARM64},
		running: map[bus.MachineID]*machine{}, volumes: map[bus.VolumeID]bus.MachineID{}, killed: map[bus.MachineID]bool{},
		script: func(ctx context.Context, m *machine) { m.serve(ctx) },
	}
	for _, f := range configure {
		f(c)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- bus.Actions.Consume(ctx, c.conn, c.carryOut) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
		c.stopAll()
	})
	require.NoError(t, bus.AgentHint.Subscribe(t.Context(), c.conn, func(bus.Empty) { c.report() }))
	c.report()
	return c
}

func (c *cloud) carryOut(ctx context.Context, d bus.Delivery[bus.Action]) error {
	a := d.Message
	c.mu.Lock()
	c.actions = append(c.actions, a)
	c.mu.Unlock()
	if c.drop != nil && c.drop(a) {
		return nil
	}
	result := bus.ActionResult{Action: a.ID, Kind: a.Kind, Machine: a.Machine, Attempt: a.Attempt, Volume: a.Volume, At: time.Now().UTC()}
	if c.refuse != nil {
		result.Fault = c.refuse(a)
	}
	if result.Fault == nil {
		err := c.do(ctx, a)
		if errors.Is(err, bus.CodeUnavailable) {
			return err // again later
		}
		if err != nil {
			result.Fault = bus.AsFault(err)
		}
	}
	if _, err := bus.ReportResult.Call(ctx, c.conn, result); err != nil {
		return err
	}
	c.report()
	return nil
}

func (c *cloud) do(ctx context.Context, a bus.Action) error {
	switch a.Kind {
	case bus.CreateMachine:
		nonce := bus.LaunchNonce(c.token, a.Machine, a.Attempt)
		if _, err := bus.ReportIntent.Call(ctx, c.conn, bus.LaunchIntent{Machine: a.Machine, Attempt: a.Attempt, NonceHash: nonce.Hash()}); err != nil {
			return err
		}
		c.launch(a, nonce)
	case bus.DeleteMachine:
		c.kill(a.Machine)
		c.mu.Lock()
		delete(c.running, a.Machine)
		delete(c.killed, a.Machine)
		c.mu.Unlock()
	case bus.CreateVolume:
		c.mu.Lock()
		if _, ok := c.volumes[a.Volume]; !ok {
			c.volumes[a.Volume] = ""
		}
		c.mu.Unlock()
	case bus.StartMachine, bus.StopMachine, bus.AttachVolume, bus.DetachVolume, bus.DeleteVolume:
	}
	return nil
}

// launch is where a cloud may break the two rules: one instance per machine, one machine per volume.
func (c *cloud) launch(a bus.Action, nonce bus.Nonce) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running[a.Machine] != nil {
		return // carried out already
	}
	for other, m := range c.running {
		if m.volume == a.Volume && !c.killed[other] {
			c.t.Errorf("volume %s is attached to %s and shall be attached to %s", a.Volume, other, a.Machine)
		}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.ctx))
	m := newMachineScript(c.t, c.w, a, nonce)
	m.stop = func() { cancel(); m.done.Wait() }
	c.running[a.Machine] = m
	m.done.Go(func() { c.script(ctx, m) })
}

// kill ends a machine as a cloud would on its own.
func (c *cloud) kill(id bus.MachineID) {
	c.mu.Lock()
	m := c.running[id]
	c.killed[id] = true
	c.mu.Unlock()
	if m != nil {
		m.stop()
	}
}

func (c *cloud) stopAll() {
	c.mu.Lock()
	var all []*machine
	for _, m := range c.running {
		all = append(all, m)
	}
	c.mu.Unlock()
	for _, m := range all {
		m.stop()
	}
}

// report sends the inventory.
func (c *cloud) report() {
	inv := bus.Inventory{Version: "test", Architectures: c.archs, MaxMachines: 10, At: time.Now().UTC()}
	c.mu.Lock()
	for id, m := range c.running {
		state := bus.CloudRunning
		if c.killed[id] {
			state = bus.CloudTerminated
		}
		inv.Machines = append(inv.Machines, bus.MachineStatus{Machine: id, Attempt: m.attempt, Instance: "i-" + string(id), State: state, Volume: m.volume, Project: m.project})
	}
	c.mu.Unlock()
	_, _ = bus.ReportInventory.Call(c.ctx, c.conn, inv) // the next one makes up for it
}

// machineIDs returns the machines that the agent was told to create, in order, without repeats.
func (c *cloud) machineIDs() []bus.MachineID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []bus.MachineID
	seen := map[bus.MachineID]bool{}
	for _, a := range c.actions {
		if a.Kind == bus.CreateMachine && !seen[a.Machine] {
			seen[a.Machine] = true
			ids = append(ids, a.Machine)
		}
	}
	return ids
}

func (c *cloud) machine(id bus.MachineID) *machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running[id]
}

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

// serve registers and then does what it is told, until ctx ends.
func (m *machine) serve(ctx context.Context) {
	credential, err := m.register(ctx)
	if err != nil {
		return // its machine is not wanted any more, or the test is over
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
