package bus

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"
)

var errStub = errors.New("not yet")

var (
	ErrNotFound     = errors.New("not found")
	ErrConflict     = errors.New("changed by another writer")
	ErrForbidden    = errors.New("not allowed for this role")
	ErrBadToken     = errors.New("unknown token")
	ErrExpiredToken = errors.New("token has expired")
	ErrRevokedToken = errors.New("token was revoked")
	ErrNoAPIServer  = errors.New("no API server answered")
	ErrUnreachable  = errors.New("no bus server at this address")
	ErrProtocol     = errors.New("other protocol version")
	ErrFull         = errors.New("the stream is full")
)

// Config of a tenant's connection.
type Config struct {
	URL    string                                                               // nats://host:4222, tls://… ; ignored with Server
	Server *Embedded                                                            // in process
	Dial   func(ctx context.Context, network, address string) (net.Conn, error) // e.g. through a unix socket; name look-up is then skipped
	CAFile string
	// exactly one of:
	Token          Token
	Nonce          Nonce
	User           *UserCredential // registered machine
	Name           string          // of program, for operators
	Version        string
	ConnectTimeout time.Duration // deadline of the whole Connect incl. retries; default 10 s
	Log            *slog.Logger
}

type UserCredential struct {
	Machine MachineID
	JWT     string
	Sign    func(nonce []byte) ([]byte, error)
}

func Connect(ctx context.Context, cfg Config) (*Conn, error) { return nil, errStub }
func (c *Conn) Welcome() Welcome                             { return Welcome{} }
func (c *Conn) Close() error                                 { return nil }

// Done is closed when the connection has ended for good (revoked, refused, closed); Err says why.
func (c *Conn) Done() <-chan struct{} { return nil }
func (c *Conn) Err() error            { return nil }
func (c *Conn) Connected() bool       { return false }

// Call sends req and waits for the reply; ctx must have a deadline, else 10 s. Faults come back as *Fault.
func (s Service[Req, Resp]) Call(ctx context.Context, c *Conn, req Req) (Resp, error) {
	var r Resp
	return r, errStub
}
func (s Signal[M]) Send(ctx context.Context, c *Conn, msg M) error { return errStub }

// Subscribe calls handle for each message, serially, until ctx ends; returns when the subscription is live at the server.
func (h Hint[M]) Subscribe(ctx context.Context, c *Conn, handle func(M)) error { return errStub }
func (e Events[M]) Subscribe(ctx context.Context, c *Conn, handle func(M), params ...string) error {
	return errStub
}

// Consume runs an agent's queue until ctx ends.
func (q Queue[M]) Consume(ctx context.Context, c *Conn, h Handler[M]) error { return errStub }

type Delivery[M Message] struct {
	Message M
	Attempt int // 1 = first delivery
	Subject string
}
type Handler[M Message] func(ctx context.Context, d Delivery[M]) error

func Reject(err error) error         { return err }
func Postpone(d time.Duration) error { return nil }

// Caller is who sent a request, as the server itself wrote it.
type Caller struct {
	Role         Role
	Account      string
	Token        TokenID
	Organization OrganizationID
	Connection   ConnectionID
	Project      ProjectID // RoleCI
	Machine      MachineID
	Attempt      int
}

// Control is the API server's connection: accounts CONTROL, AUTH and SYS.
type ControlConfig struct {
	URL           string
	Server        *Embedded
	Trust         *Trust
	Replicas      int // 1 or 3
	Log           *slog.Logger
	Name, Version string
}

func OpenControl(ctx context.Context, cfg ControlConfig) (*Control, error) { return nil, errStub }
func (c *Control) Close() error                                            { return nil }

// Serve returns as soon as the server has the subscription, and answers until ctx ends. (Receive and ServeCallout too.)
func (s Service[Req, Resp]) Serve(ctx context.Context, c *Control, h func(ctx context.Context, from Caller, req Req) (Resp, error)) error {
	return errStub
}
func (s Signal[M]) Receive(ctx context.Context, c *Control, h func(ctx context.Context, from Caller, msg M)) error {
	return errStub
}

// Publish: account "" for ScopeControl rows; id = dedup id
func (q Queue[M]) Publish(ctx context.Context, c *Control, account string, msg M, id string, params ...string) error {
	return errStub
}
func (q Queue[M]) Work(ctx context.Context, c *Control, h Handler[M]) error { return errStub } // ScopeControl rows: shared durable
func (e Events[M]) Publish(ctx context.Context, c *Control, account string, msg M, id string, params ...string) error {
	return errStub
}
func (e Events[M]) Replay(ctx context.Context, c *Control, account string, params ...string) ([]M, error) {
	return nil, errStub
}
func (h Hint[M]) Send(ctx context.Context, c *Control, account string, self string, msg M) error {
	return errStub
}

// Grant is the callout's decision.
type Grant struct {
	Role         Role
	Account      string // public key
	Token        TokenID
	Organization OrganizationID
	Connection   ConnectionID
	Project      ProjectID
	Machine      MachineID
	Attempt      int
	ExpiresAt    time.Time
}

// Credential is what a connecting client presented: exactly one is set.
type Credential struct {
	TokenID      TokenID
	TokenHash    string
	NonceMachine MachineID
	NonceAttempt int
	NonceHash    string
}

// ServeCallout admits clients. authorize returns ErrBadToken, ErrExpiredToken, ErrRevokedToken to refuse with a reason.
func (c *Control) ServeCallout(ctx context.Context, authorize func(ctx context.Context, cred Credential) (Grant, error)) error {
	return errStub
}

// MintMachine signs a user JWT for a machine's own NATS key.
func (c *Control) MintMachine(g Grant, userKey string, ttl time.Duration) (MachineCredential, error) {
	return MachineCredential{}, errStub
}

// EnsureAccount makes (or re-pushes) the account of an organization or connection; NewAccount makes a fresh public key (seed thrown away).
func NewAccount() (string, error) { return "", errStub }
func (c *Control) EnsureAccount(ctx context.Context, scope Scope, account, name string) error {
	return errStub
}
func (c *Control) DeleteAccount(ctx context.Context, account string) error { return errStub }

// RevokeToken cuts every session opened by the token in this account (and pushes again after 2 s); the KV record must be gone already.
func (c *Control) RevokeSessions(ctx context.Context, scope Scope, account, name string) error {
	return errStub
}

// Bucket is a typed JetStream KV bucket.
type Bucket[T any] struct{}
type Revision uint64
type Entry[T any] struct {
	Key      string
	Value    T
	Revision Revision
	Deleted  bool
}

func OpenBucket[T any](ctx context.Context, c *Control, name string) (*Bucket[T], error) {
	return nil, errStub
}
func (b *Bucket[T]) Get(ctx context.Context, key string) (T, Revision, error) {
	var t T
	return t, 0, errStub
}
func (b *Bucket[T]) Create(ctx context.Context, key string, v T) (Revision, error) { return 0, errStub }
func (b *Bucket[T]) Update(ctx context.Context, key string, v T, at Revision) (Revision, error) {
	return 0, errStub
}
func (b *Bucket[T]) Delete(ctx context.Context, key string, at Revision) error { return errStub }

// List returns every entry.
func (b *Bucket[T]) List(ctx context.Context) ([]Entry[T], error) { return nil, errStub }

// Watch calls handle for every entry that exists, then once with synced=true, then for each change, until ctx ends.
func (b *Bucket[T]) Watch(ctx context.Context, handle func(e Entry[T], synced bool)) error {
	return errStub
}

// Trust is the key material of an installation.
type Trust struct{}

func NewTrust() (*Trust, error)            { return nil, errStub }
func LoadTrust(dir string) (*Trust, error) { return nil, errStub }
func (t *Trust) Save(dir string) error     { return errStub }

// ServerConfig renders the configuration of an external nats-server.
func (t *Trust) ServerConfig(o ServerOptions) (string, error) { return "", errStub }

type ServerOptions struct{ Name, Listen, Dir string }

type Embedded struct{}
type EmbeddedConfig struct {
	Dir    string // state
	Trust  *Trust
	Listen string // "" = in process only; host:port
	Log    *slog.Logger
}

func StartEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Embedded, error) { return nil, errStub }
func (e *Embedded) URL() string                                                { return "" } // "" without a listener
func (e *Embedded) Close() error                                               { return nil }

// BytesIn counts payload + protocol bytes received from all clients... used by tests
func (e *Embedded) Traffic() (in, out int64) { return 0, 0 }
