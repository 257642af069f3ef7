package apiserver

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/depotctl/depot/bus"
)

// authorize decides who may enter the bus, and as what.
func (s *Server) authorize(ctx context.Context, cred bus.Credential) (bus.Grant, error) {
	if cred.NonceMachine != "" {
		return s.authorizeNonce(ctx, cred)
	}
	t, _, err := s.store.tokens.Get(ctx, string(cred.TokenID))
	if errors.Is(err, bus.ErrNotFound) {
		return bus.Grant{}, bus.ErrBadToken
	}
	if err != nil {
		return bus.Grant{}, fmt.Errorf("read token %s: %w", cred.TokenID, err)
	}
	if err := t.admit(cred.TokenHash, s.moment().now); err != nil {
		return bus.Grant{}, err
	}
	return t.grant(), nil
}

// authorizeNonce lets a machine in that was launched just now, to register; or one that restarts, which will have to
// prove the key that the nonce was used for.
func (s *Server) authorizeNonce(ctx context.Context, cred bus.Credential) (bus.Grant, error) {
	m, _, err := s.store.machines.Get(ctx, string(cred.NonceMachine))
	if errors.Is(err, bus.ErrNotFound) {
		return bus.Grant{}, bus.ErrBadToken
	}
	if err != nil {
		return bus.Grant{}, fmt.Errorf("read machine %s: %w", cred.NonceMachine, err)
	}
	if m.NonceHash == "" || subtle.ConstantTimeCompare([]byte(m.NonceHash), []byte(cred.NonceHash)) != 1 {
		return bus.Grant{}, bus.ErrBadToken
	}
	if m.mayRegister(cred.NonceAttempt) != nil {
		return bus.Grant{}, bus.ErrRevokedToken
	}
	account, err := s.accountOf(ctx, m.Connection)
	if err != nil {
		return bus.Grant{}, err
	}
	return bus.Grant{
		Role: bus.RoleNewMachine, Account: account, Organization: m.Organization, Connection: m.Connection, Machine: m.ID, Attempt: m.Attempt,
	}, nil
}
