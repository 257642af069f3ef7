package apiserver

import (
	"crypto/subtle"
	"time"

	"github.com/depotctl/depot/bus"
)

// Token is what is kept of a token: whose it is and the hash of its text, never the text.
type Token struct {
	ID           bus.TokenID        `json:"id"`
	Hash         string             `json:"hash"`
	Name         string             `json:"name"`
	Role         bus.Role           `json:"role"`
	Organization bus.OrganizationID `json:"organization"`
	Connection   bus.ConnectionID   `json:"connection"` // RoleAgent only
	Project      bus.ProjectID      `json:"project"`    // RoleCI only
	Account      string             `json:"account"`    // on the bus, of the organization or the connection
	CreatedAt    time.Time          `json:"created_at"`
	ExpiresAt    time.Time          `json:"expires_at"` // zero means never
	RevokedAt    time.Time          `json:"revoked_at"` // zero means not
	CutAt        time.Time          `json:"cut_at"`     // when all its sessions were known to be cut
}

// admit says whether whoever presents this hash may enter. That a token has expired or was revoked is told only to
// who holds it.
func (t Token) admit(hash string, now time.Time) error {
	switch {
	case subtle.ConstantTimeCompare([]byte(t.Hash), []byte(hash)) != 1:
		return bus.ErrBadToken
	case !t.RevokedAt.IsZero():
		return bus.ErrRevokedToken
	case !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt):
		return bus.ErrExpiredToken
	}
	return nil
}

// scope is the kind of account that the token's holder lives in.
func (t Token) scope() bus.Scope {
	if t.Role == bus.RoleAgent {
		return bus.ScopeConnection
	}
	return bus.ScopeOrganization
}

func (t Token) grant() bus.Grant {
	return bus.Grant{
		Role: t.Role, Account: t.Account, Token: t.ID, Organization: t.Organization, Connection: t.Connection, Project: t.Project, ExpiresAt: t.ExpiresAt,
	}
}

func (t Token) view() bus.TokenView {
	return bus.TokenView{
		Token: t.ID, Name: t.Name, Role: t.Role, Project: t.Project, Connection: t.Connection, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt,
	}
}
