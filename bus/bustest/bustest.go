package bustest

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// Server is a running bus with an API server's connection. Its callout admits from a table of grants in memory, which
// Admit, Revoke and Expire change.
type Server struct {
	Embedded *bus.Embedded // nil with an external server
	Trust    *bus.Trust
	Control  *bus.Control
	URL      string // "" means in process only

	tcp    bool
	mu     sync.Mutex
	tokens map[bus.TokenID]grant
	nonces map[string]bus.Grant // by hash

	once         sync.Once
	organization Organization
	connection   Connection
}

type grant struct {
	hash    string
	grant   bus.Grant
	revoked bool
}

// Organization is an organization with an account on the bus.
type Organization struct {
	ID      bus.OrganizationID
	Account string
}

// Connection is a connection with an account on the bus.
type Connection struct {
	ID           bus.ConnectionID
	Organization bus.OrganizationID
	Account      string
	Token        bus.Token // of its cloud-agent
}

// Option changes what New starts.
type Option func(*options)

type options struct {
	listen    string
	noCallout bool
	log       *slog.Logger
}

// WithListener makes the server listen on a free port of loopback too; Server.URL is its address.
func WithListener() Option { return func(o *options) { o.listen = "127.0.0.1:0" } }

// WithoutCallout leaves admission to the test: until somebody calls ServeCallout nobody gets in.
func WithoutCallout() Option { return func(o *options) { o.noCallout = true } }

// WithLog logs what the bus logs.
func WithLog(log *slog.Logger) Option { return func(o *options) { o.log = log } }

// New starts a bus that ends with the test.
func New(t testing.TB, opts ...Option) *Server {
	t.Helper()
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	trust, err := bus.NewTrust()
	require.NoError(t, err)
	embedded, err := bus.StartEmbedded(t.Context(), bus.EmbeddedConfig{Dir: t.TempDir(), Trust: trust, Listen: o.listen, Log: o.log})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, embedded.Close()) })
	s := open(t, o, bus.ControlConfig{Server: embedded, Trust: trust})
	s.Embedded, s.URL = embedded, embedded.URL()
	return s
}

// open connects the API server and starts the callout.
func open(t testing.TB, o options, cfg bus.ControlConfig) *Server {
	t.Helper()
	cfg.Name, cfg.Version, cfg.Log = "bustest", "test", o.log
	control, err := bus.OpenControl(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	s := &Server{Trust: cfg.Trust, Control: control, URL: cfg.URL, tokens: map[bus.TokenID]grant{}, nonces: map[string]bus.Grant{}}
	if !o.noCallout {
		require.NoError(t, control.ServeCallout(t.Context(), s.Authorize))
	}
	return s
}

// Authorize is the callout's decision from the table of grants.
func (s *Server) Authorize(_ context.Context, cred bus.Credential) (bus.Grant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cred.NonceHash != "" {
		g, ok := s.nonces[cred.NonceHash]
		if !ok {
			return bus.Grant{}, bus.ErrBadToken
		}
		return g, nil
	}
	g, ok := s.tokens[cred.TokenID]
	switch {
	case !ok || g.hash != cred.TokenHash:
		return bus.Grant{}, bus.ErrBadToken
	case g.revoked:
		return bus.Grant{}, bus.ErrRevokedToken
	}
	return g.grant, nil
}

// Organization makes an organization with its account.
func (s *Server) Organization(t testing.TB) Organization {
	t.Helper()
	o := Organization{ID: bus.NewOrganizationID(), Account: newAccount(t)}
	require.NoError(t, s.Control.EnsureAccount(t.Context(), bus.ScopeOrganization, o.Account, string(o.ID)))
	return o
}

// Connection makes a connection with its account and its agent's token.
func (s *Server) Connection(t testing.TB, organization bus.OrganizationID) Connection {
	t.Helper()
	c := Connection{ID: bus.NewConnectionID(), Organization: organization, Account: newAccount(t)}
	require.NoError(t, s.Control.EnsureAccount(t.Context(), bus.ScopeConnection, c.Account, string(c.ID)))
	c.Token = s.Admit(bus.Grant{Role: bus.RoleAgent, Account: c.Account, Organization: organization, Connection: c.ID})
	return c
}

func newAccount(t testing.TB) string {
	t.Helper()
	account, err := bus.NewAccount()
	require.NoError(t, err)
	return account
}

// Admit makes a token for the grant, whose Token field it fills in.
func (s *Server) Admit(g bus.Grant) bus.Token {
	token := bus.NewToken()
	g.Token = token.ID
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token.ID] = grant{hash: token.Hash(), grant: g}
	return token
}

// AdmitNonce lets a machine in with its launch nonce, to register.
func (s *Server) AdmitNonce(c Connection, nonce bus.Nonce) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nonces[nonce.Hash()] = bus.Grant{
		Role: bus.RoleNewMachine, Account: c.Account, Organization: c.Organization, Connection: c.ID, Machine: nonce.Machine, Attempt: nonce.Attempt,
	}
}

// Revoke makes the callout refuse the token from now on. It cuts nothing: that is Control.RevokeSessions.
func (s *Server) Revoke(id bus.TokenID) { s.change(id, func(g *grant) { g.revoked = true }) }

// Expire ends the token's grant at the time.
func (s *Server) Expire(id bus.TokenID, at time.Time) {
	s.change(id, func(g *grant) { g.grant.ExpiresAt = at })
}

func (s *Server) change(id bus.TokenID, change func(*grant)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.tokens[id]
	change(&g)
	s.tokens[id] = g
}

// Default returns the organization and the connection that User, CI, Agent and Machine belong to.
func (s *Server) Default(t testing.TB) (Organization, Connection) {
	t.Helper()
	s.once.Do(func() {
		s.organization = s.Organization(t)
		s.connection = s.Connection(t, s.organization.ID)
	})
	return s.organization, s.connection
}

// ByTCP makes all later clients connect through the listener.
func (s *Server) ByTCP() { s.tcp = true }

// Config returns how a client reaches this bus; the credential is still to be set.
func (s *Server) Config() bus.Config {
	cfg := bus.Config{Server: s.Embedded, URL: s.URL, Name: "bustest", Version: "test"}
	if s.tcp {
		cfg.Server = nil
	}
	return cfg
}

// Connect connects with the configuration; the connection ends with the test.
func (s *Server) Connect(t testing.TB, cfg bus.Config) *bus.Conn {
	t.Helper()
	c, err := bus.Connect(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// WithToken connects with a token.
func (s *Server) WithToken(t testing.TB, token bus.Token) *bus.Conn {
	t.Helper()
	cfg := s.Config()
	cfg.Token = token
	return s.Connect(t, cfg)
}

// User connects a user of the default organization, with a new token.
func (s *Server) User(t testing.TB) *bus.Conn {
	t.Helper()
	o, _ := s.Default(t)
	return s.WithToken(t, s.Admit(bus.Grant{Role: bus.RoleUser, Account: o.Account, Organization: o.ID}))
}

// CI connects a CI job of a project of the default organization, with a new token.
func (s *Server) CI(t testing.TB, project bus.ProjectID) *bus.Conn {
	t.Helper()
	o, _ := s.Default(t)
	return s.WithToken(t, s.Admit(bus.Grant{Role: bus.RoleCI, Account: o.Account, Organization: o.ID, Project: project}))
}

// Agent connects the cloud-agent of the default connection.
func (s *Server) Agent(t testing.TB) *bus.Conn {
	t.Helper()
	_, c := s.Default(t)
	return s.WithToken(t, c.Token)
}

// NewMachine connects a machine of the default connection that has not registered, with its launch nonce.
func (s *Server) NewMachine(t testing.TB, machine bus.MachineID) *bus.Conn {
	t.Helper()
	_, c := s.Default(t)
	nonce := bus.LaunchNonce(c.Token, machine, 1)
	s.AdmitNonce(c, nonce)
	cfg := s.Config()
	cfg.Nonce = nonce
	return s.Connect(t, cfg)
}

// Machine connects a registered machine of the default connection.
func (s *Server) Machine(t testing.TB, machine bus.MachineID) *bus.Conn {
	t.Helper()
	_, c := s.Default(t)
	cfg := s.Config()
	cfg.User = s.Credential(t, c, machine, time.Hour)
	return s.Connect(t, cfg)
}

// Credential mints what a machine gets when it has registered.
func (s *Server) Credential(t testing.TB, c Connection, machine bus.MachineID, life time.Duration) *bus.UserCredential {
	t.Helper()
	key, err := bus.NewUserKey()
	require.NoError(t, err)
	minted, err := s.Control.MintMachine(bus.Grant{
		Role: bus.RoleMachine, Account: c.Account, Organization: c.Organization, Connection: c.ID, Machine: machine, Attempt: 1,
	}, key.Public(), life)
	require.NoError(t, err)
	return &bus.UserCredential{Machine: machine, JWT: minted.JWT, Sign: key.Sign}
}
