package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
)

const (
	claimsUpdate = "$SYS.REQ.CLAIMS.UPDATE"
	claimsDelete = "$SYS.REQ.CLAIMS.DELETE"
	claimsList   = "$SYS.REQ.CLAIMS.LIST"
	claimsLookup = "$SYS.REQ.ACCOUNT.%s.CLAIMS.LOOKUP"
)

// revokeAgain is when a revocation is pushed for the second time: after every callout that had read the token before
// it was gone has come to its end.
const revokeAgain = 2 * time.Second

// EnsureAccount makes the account of an organization or a connection, or brings it to the form that this program's
// table wants. An account that has that form already is left alone, because each push may cut a session.
func (c *Control) EnsureAccount(ctx context.Context, scope Scope, account, name string) error {
	claims, err := c.tenantClaims(ctx, scope, account, name)
	if err == nil {
		err = c.pushIfChanged(ctx, claims)
	}
	if err == nil && scope == ScopeConnection {
		err = c.ensureConsumer(ctx, account)
	}
	if err != nil {
		return fmt.Errorf("ensure account of %s %s: %w", scope, name, err)
	}
	return nil
}

// tenantClaims are the wanted claims of a tenant's account, with the revocations that it has already.
func (c *Control) tenantClaims(ctx context.Context, scope Scope, account, name string) (*jwt.AccountClaims, error) {
	if scope != ScopeOrganization && scope != ScopeConnection {
		return nil, fmt.Errorf("scope %q has no accounts of tenants", scope)
	}
	if c.trust.isInfrastructure(account) {
		return nil, fmt.Errorf("%w: account %s belongs to the installation itself", ErrForbidden, account)
	}
	signer, err := c.trust.signerPublic(scope)
	if err != nil {
		return nil, err
	}
	claims := tenantClaims(scope, account, name, c.trust.accounts[accountCONTROL].public, signer)
	old, err := c.lookUp(ctx, account)
	if err != nil {
		return nil, err
	}
	if old != nil {
		claims.Revocations = old.Revocations
	}
	return claims, nil
}

// RevokeSessions cuts every session that the account has, and those that are admitted just now; holders of tokens that
// are still good come back by themselves. The token that is meant must be gone from the records already. The second
// push, after 2 s, happens in the background, until it succeeds or Close; after an error, which may mean no more than
// that the server was slow, it is the one that counts.
func (c *Control) RevokeSessions(ctx context.Context, scope Scope, account, name string) error {
	err := c.revoke(ctx, scope, account, name)
	c.goWork(func() {
		if sleep(c.life, revokeAgain) != nil {
			return
		}
		for attempt := 0; ; attempt++ {
			ctx, cancel := context.WithTimeout(c.life, defaultCall)
			err := c.revoke(ctx, scope, account, name)
			cancel()
			if err == nil {
				return
			}
			c.log.Warn("revocation not repeated yet", "scope", scope, "name", name, "err", err)
			if sleep(c.life, backoff(attempt, time.Second, 10*time.Second)) != nil {
				return
			}
		}
	})
	if err != nil {
		return fmt.Errorf("revoke sessions of %s %s: %w", scope, name, err)
	}
	return nil
}

func (c *Control) revoke(ctx context.Context, scope Scope, account, name string) error {
	claims, err := c.tenantClaims(ctx, scope, account, name)
	if err != nil {
		return err
	}
	claims.RevokeAt(jwt.All, time.Now().Add(clockSkew))
	return c.push(ctx, claims)
}

// DeleteAccount ends an account and every session in it. Its tokens must be gone from the records already.
func (c *Control) DeleteAccount(ctx context.Context, account string) error {
	if err := c.deleteAccount(ctx, account); err != nil {
		return fmt.Errorf("delete account %s: %w", account, err)
	}
	return nil
}

func (c *Control) deleteAccount(ctx context.Context, account string) error {
	if c.trust.isInfrastructure(account) {
		return fmt.Errorf("%w: it belongs to the installation itself", ErrForbidden)
	}
	operator, err := publicKey(c.trust.signer)
	if err != nil {
		return err
	}
	order := jwt.NewGenericClaims(operator)
	order.Data["accounts"] = []string{account}
	signed, err := order.Encode(c.trust.signer)
	if err != nil {
		return fmt.Errorf("sign deletion: %w", err)
	}
	if err := c.order(ctx, claimsDelete, signed); err != nil {
		return err
	}
	return c.deleteConsumer(ctx, account)
}

// pushInfrastructure brings the installation's own accounts to the form that this program's table wants. A running
// server does not read them from its configuration again.
func (c *Control) pushInfrastructure(ctx context.Context) error {
	for _, name := range infrastructureNames {
		claims, err := c.trust.infrastructureClaims(name)
		if err == nil {
			err = c.pushIfChanged(ctx, claims)
		}
		if err != nil {
			return fmt.Errorf("account %s: %w", name, err)
		}
	}
	return nil
}

func (c *Control) pushIfChanged(ctx context.Context, claims *jwt.AccountClaims) error {
	old, err := c.lookUp(ctx, claims.Subject)
	if err != nil {
		return err
	}
	if old != nil && sameAccount(old, claims) {
		return nil
	}
	return c.push(ctx, claims)
}

// sameAccount compares what the claims say and not when and with which key they were signed.
func sameAccount(old, want *jwt.AccountClaims) bool {
	for _, claims := range []*jwt.AccountClaims{old, want} { // as signing does: the order says nothing
		sort.Sort(claims.Exports)
		sort.Sort(claims.Imports)
	}
	a, errA := json.Marshal(old.Account)
	b, errB := json.Marshal(want.Account)
	if errA != nil || errB != nil || old.Name != want.Name {
		return false
	}
	var x, y map[string]any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	delete(x, "type")
	delete(y, "type")
	delete(x, "version")
	delete(y, "version")
	return reflect.DeepEqual(x, y)
}

func (c *Control) push(ctx context.Context, claims *jwt.AccountClaims) error {
	signed, err := claims.Encode(c.trust.signer)
	if err != nil {
		return fmt.Errorf("sign claims: %w", err)
	}
	return c.order(ctx, claimsUpdate, signed)
}

// order sends a signed order to the server. Its answer may be a failure.
func (c *Control) order(ctx context.Context, subject, signed string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	m, err := c.sys.RequestWithContext(ctx, subject, []byte(signed))
	if err != nil {
		return fmt.Errorf("ask the bus server: %w", err)
	}
	var answer struct {
		Error *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return fmt.Errorf("answer of the bus server: %w", err)
	}
	if answer.Error != nil {
		return fmt.Errorf("the bus server refused: %s", answer.Error.Description)
	}
	return nil
}

// lookUp returns the claims that the server has of an account, or nil.
func (c *Control) lookUp(ctx context.Context, account string) (*jwt.AccountClaims, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	m, err := c.sys.RequestWithContext(ctx, fmt.Sprintf(claimsLookup, account), nil)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, errors.New("the bus server has no full account resolver; use the configuration that depot makes")
	}
	if err != nil {
		return nil, fmt.Errorf("look up account: %w", err)
	}
	if len(m.Data) == 0 {
		return nil, nil
	}
	claims, err := jwt.DecodeAccountClaims(string(m.Data))
	if err != nil {
		return nil, fmt.Errorf("look up account: %w", err)
	}
	return claims, nil
}
