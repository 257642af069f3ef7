package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

const (
	calloutSubject = "$SYS.REQ.USER.AUTH"
	calloutLimit   = 64
	// serverKey is the key to which the answer is sealed. A request without it was not encrypted, and is dropped.
	serverKey = "Nats-Server-Xkey"

	// serverPatience is how long a server waits for the answer.
	serverPatience = time.Duration(authTimeout * float64(time.Second))
	// sessionLife is how long a client stays before its token is checked again.
	sessionLife = time.Hour
	// refusedLife is how long a refused client may ask why.
	refusedLife = 10 * time.Second
	// clockSkew is how far the clocks of API servers and bus servers may differ.
	clockSkew = 5 * time.Second
)

// Grant is the callout's decision: who the client is, and until when.
type Grant struct {
	Role         Role
	Account      string // public key
	Token        TokenID
	Organization OrganizationID
	Connection   ConnectionID
	Project      ProjectID // RoleCI
	Machine      MachineID // RoleNewMachine, RoleMachine
	Attempt      int
	ExpiresAt    time.Time // zero means never
}

// Credential is what a connecting client presented: a token or a launch nonce, as id and hash.
type Credential struct {
	TokenID   TokenID
	TokenHash string

	NonceMachine MachineID
	NonceAttempt int
	NonceHash    string
}

// Authorizer decides on a credential. ErrBadToken, ErrExpiredToken and ErrRevokedToken refuse with that reason; with
// any other error nobody answers, and the client tries again.
type Authorizer func(ctx context.Context, cred Credential) (Grant, error)

// ServeCallout admits clients until ctx ends, and welcomes them: every connection's first request is SayHello, which is
// answered here from the grant alone. It returns as soon as the server has the subscriptions.
func (c *Control) ServeCallout(ctx context.Context, authorize func(ctx context.Context, cred Credential) (Grant, error)) error {
	if err := SayHello.Serve(ctx, c, c.hello); err != nil {
		return err
	}
	slots := make(chan struct{}, calloutLimit)
	sub, err := c.auth.QueueSubscribe(calloutSubject, serveGroup, func(m *nats.Msg) {
		c.goWork(func() { c.admitInTime(m, authorize, slots, time.Now()) })
	})
	if err != nil {
		return fmt.Errorf("serve callout: %w", err)
	}
	c.untilEnd(ctx, sub)
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := c.auth.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("serve callout: %w", err)
	}
	return nil
}

// admitInTime answers a request when it is its turn, unless the server has stopped waiting by then. When thousands of
// clients come back at once, answering those who have given up would make everybody else give up too.
func (c *Control) admitInTime(m *nats.Msg, authorize Authorizer, slots chan struct{}, came time.Time) {
	slots <- struct{}{} // each holder is bounded in time, so this is too
	defer func() { <-slots }()
	if waited := time.Since(came); waited > serverPatience {
		c.log.Warn("callout request dropped: the server has stopped waiting", "dur", waited)
		return
	}
	if err := c.admit(m, authorize); err != nil {
		c.log.Warn("client not admitted", "err", err)
	}
}

// hello compares versions and tells the caller who it is, or why it is refused.
func (c *Control) hello(_ context.Context, from Caller, req Hello) (Welcome, error) {
	if from.Role == RoleRefused {
		reason := refusals[from.refusal]
		return Welcome{}, errors.Join(reason, Faultf(CodeForbidden, "%v", reason))
	}
	if req.Protocol != c.protocol {
		return Welcome{}, errors.Join(ErrProtocol, Faultf(CodeInvalid, "%s", protocolMismatch(req.Protocol, c.protocol)))
	}
	return Welcome{
		Protocol: c.protocol, Version: c.version, Role: from.Role,
		Organization: from.Organization, Connection: from.Connection, Project: from.Project,
	}, nil
}

// admit answers one callout request. Without an answer the server refuses the client after its timeout.
func (c *Control) admit(m *nats.Msg, authorize Authorizer) error {
	sealedTo := m.Header.Get(serverKey)
	if sealedTo == "" {
		return errors.New("callout request was not encrypted")
	}
	data, err := c.trust.curve.Open(m.Data, sealedTo)
	if err != nil {
		return fmt.Errorf("open callout request: %w", err)
	}
	req, err := jwt.DecodeAuthorizationRequestClaims(string(data))
	if err != nil {
		return fmt.Errorf("read callout request: %w", err)
	}
	if time.Now().After(time.Unix(req.Expires, 0).Add(clockSkew)) {
		return errors.New("callout request is older than the server waits")
	}
	ctx, cancel := context.WithTimeout(c.handling, 2*time.Second)
	defer cancel()
	resp := jwt.NewAuthorizationResponseClaims(req.UserNkey)
	resp.Audience = req.Server.ID
	resp.IssuerAccount = c.trust.accounts[accountAUTH].public
	if resp.Jwt, err = c.decide(ctx, req, authorize); errors.Is(err, errNoCredential) {
		resp.Error = err.Error()
	} else if err != nil {
		return err
	}
	signed, err := resp.Encode(c.trust.accounts[accountAUTH].signer)
	if err != nil {
		return fmt.Errorf("sign callout answer: %w", err)
	}
	sealed, err := c.trust.curve.Seal([]byte(signed), sealedTo)
	if err != nil {
		return fmt.Errorf("seal callout answer: %w", err)
	}
	return m.Respond(sealed)
}

// errNoCredential is for clients that present nothing which depot ever issued.
var errNoCredential = errors.New("no depot token was presented")

// decide returns the user JWT of the client: as what it is, or as refused.
func (c *Control) decide(ctx context.Context, req *jwt.AuthorizationRequestClaims, authorize Authorizer) (string, error) {
	cred, damaged := readCredential(req.ConnectOptions.Token)
	if damaged != nil {
		return "", fmt.Errorf("%w: %w", errNoCredential, damaged)
	}
	grant, err := authorize(ctx, cred)
	if err == nil && !grant.ExpiresAt.IsZero() && !grant.ExpiresAt.After(time.Now()) {
		err = ErrExpiredToken
	}
	if reason := refusalOf(err); reason != "" {
		return c.mintRefused(cred, req.UserNkey, reason)
	}
	if err != nil {
		return "", fmt.Errorf("authorize: %w", err)
	}
	if scope, _ := scopeOf(grant.Role); scope == scopeRefused || grant.Role == RoleMachine {
		return "", fmt.Errorf("authorize: role %q is not given to a token", grant.Role)
	}
	text, _, err := c.mint(grant, req.UserNkey, sessionLife, "")
	return text, err
}

// readCredential checks the checksum of a token first, so that garbage costs nothing.
func readCredential(text string) (Credential, error) {
	if nonce, err := ParseNonce(text); err == nil {
		return Credential{NonceMachine: nonce.Machine, NonceAttempt: nonce.Attempt, NonceHash: nonce.Hash()}, nil
	}
	token, err := ParseToken(text)
	if err != nil {
		return Credential{}, err
	}
	return Credential{TokenID: token.ID, TokenHash: token.Hash()}, nil
}

func (c *Control) mintRefused(cred Credential, userKey, reason string) (string, error) {
	g := Grant{Role: RoleRefused, Account: c.trust.accounts[accountREFUSED].public, Token: cred.TokenID}
	if cred.NonceMachine != "" {
		g.Token = TokenID(cred.NonceMachine) // names the inbox; it is not read from anywhere else
	}
	text, _, err := c.mint(g, userKey, refusedLife, reason)
	return text, err
}

// mint signs a user in the grant's account with the permissions of its role. No grant, whatever decided it, reaches an
// infrastructure account.
func (c *Control) mint(g Grant, userKey string, life time.Duration, refusal string) (string, time.Time, error) {
	scope, err := scopeOf(g.Role)
	if err != nil {
		return "", time.Time{}, err
	}
	if !nkeys.IsValidPublicAccountKey(g.Account) {
		return "", time.Time{}, fmt.Errorf("%q is no account", g.Account)
	}
	if c.trust.isInfrastructure(g.Account) && scope != scopeRefused {
		return "", time.Time{}, fmt.Errorf("%w: account %s belongs to the installation itself", ErrForbidden, g.Account)
	}
	signer, err := c.trust.userSigner(scope)
	if err != nil {
		return "", time.Time{}, err
	}
	expires := time.Now().Add(life)
	if !g.ExpiresAt.IsZero() && g.ExpiresAt.Before(expires) {
		expires = g.ExpiresAt
	}
	claims := jwt.NewUserClaims(userKey)
	claims.Name = userName(g, refusal)
	claims.IssuerAccount = g.Account
	claims.Expires = expires.Unix()
	claims.Permissions = permissions(g)
	claims.AllowedConnectionTypes.Add(jwt.ConnectionTypeStandard, jwt.ConnectionTypeWebsocket, jwt.ConnectionTypeInProcess)
	text, err := claims.Encode(signer)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign user: %w", err)
	}
	return text, time.Unix(claims.Expires, 0), nil
}

// MintMachine signs a user JWT for a registered machine's own NATS key. It lives for ttl, or until the grant ends.
func (c *Control) MintMachine(g Grant, userKey string, ttl time.Duration) (MachineCredential, error) {
	if g.Role != RoleMachine || !nkeys.IsValidPublicUserKey(userKey) {
		return MachineCredential{}, fmt.Errorf("mint machine: role %q, user key %q", g.Role, userKey)
	}
	text, expires, err := c.mint(g, userKey, ttl, "")
	if err != nil {
		return MachineCredential{}, fmt.Errorf("mint machine: %w", err)
	}
	return MachineCredential{JWT: text, ExpiresAt: expires}, nil
}
