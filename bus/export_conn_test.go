package bus

import (
	"context"
	"maps"
	"slices"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
)

// What attacks and probes need, and nothing else may have.

// ConnectSpeaking connects as a program with another protocol version.
func ConnectSpeaking(ctx context.Context, cfg Config, protocol int) (*Conn, error) {
	return connect(ctx, cfg, protocol)
}

// Speak makes an API server that speaks another protocol version.
func (c *Control) Speak(protocol int) { c.protocol = protocol }

// NATS is the connection below, for attacks.
func (c *Conn) NATS() *nats.Conn    { return c.nc }
func (c *Control) NATS() *nats.Conn { return c.nc }
func (c *Control) AUTH() *nats.Conn { return c.auth }

// Guarded counts what the guard has dropped and refused.
func (c *Control) Guarded() int64 { return c.guarded.Load() }

// TryPublish and TrySubscribe return ErrForbidden if the server denies it.
func (c *Conn) TryPublish(ctx context.Context, m *nats.Msg) error {
	return c.confirm(ctx, m.Subject, func() error { return c.nc.PublishMsg(m) })
}

func (c *Conn) TrySubscribe(ctx context.Context, subject string, handle nats.MsgHandler) error {
	return c.confirm(ctx, subject, func() error { _, err := c.nc.Subscribe(subject, handle); return err })
}

// ReceiveRaw hears a row's requests or signals after the guard has passed them, without reading the payload.
func (c *Control) ReceiveRaw(ctx context.Context, row Row, handle func(from Caller, m *nats.Msg)) error {
	return c.receive(ctx, row, func(_ context.Context, from Caller, m *nats.Msg) (Message, error) {
		handle(from, m)
		return Empty{}, nil
	})
}

// LocalSubject is a row's subject as a holder of the grant may use it; RemoteSubject is where CONTROL sees it.
func LocalSubject(row Row, g Grant) string { return localSubject(row, g.self(), g.Project) }

func RemoteSubject(row Row, account string, params map[string]string) string {
	scope := row.Scope
	if scope == ScopeAny {
		scope = ScopeConnection
	}
	return remoteSubject(row, scope, account, params)
}

func RemoteRefused(row Row, account string) string {
	return remoteSubject(row, scopeRefused, account, nil)
}

// AccountKeys are the infrastructure accounts, by name.
func (t *Trust) AccountKeys() map[string]string {
	keys := map[string]string{}
	for name := range maps.Keys(t.accounts) {
		keys[name] = t.accounts[name].public
	}
	return keys
}

// StealConnSign mints a user of a connection account with no limits at all: what a thief of that key can do.
func (t *Trust) StealConnSign(account, userKey, name string) (string, error) {
	claims := jwt.NewUserClaims(userKey)
	claims.Name = name
	claims.IssuerAccount = account
	return claims.Encode(t.connSign)
}

// PushForged pushes operator-signed claims of a connection account whose imports name another account.
func (c *Control) PushForged(ctx context.Context, account, victim string) error {
	signer, err := c.trust.signerPublic(ScopeConnection)
	if err != nil {
		return err
	}
	control := c.trust.accounts[accountCONTROL].public
	claims := tenantClaims(ScopeConnection, account, "forged", control, signer)
	claims.Imports = nil
	for _, p := range passages(ScopeConnection) {
		claims.Imports = append(claims.Imports, p.importInto(victim, control))
	}
	return c.push(ctx, claims)
}

// Claims returns what the server has of an account.
func (c *Control) Claims(ctx context.Context, account string) (*jwt.AccountClaims, error) {
	return c.lookUp(ctx, account)
}

// Exports lists CONTROL's exports as text: subject, kind, position.
func Exports() jwt.Exports { return slices.Clone(controlExports()) }

// CheckServerVersion is the check of external servers.
func CheckServerVersion(version string) error { return checkServerVersion(version) }

// Admit answers a callout request by hand.
func (c *Control) Admit(m *nats.Msg, authorize Authorizer) error { return c.admit(m, authorize) }

// ServeLimit bounds the handlers of one service.
const ServeLimit = serveLimit

// CalloutKey is the key to which servers encrypt callout requests.
func (t *Trust) CalloutKey() string {
	key, err := t.curve.PublicKey()
	if err != nil {
		panic(err)
	}
	return key
}
