package bus

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/jwt/v2"
)

// jsPrefix renames the JetStream API for tenants. Every account has an implicit import of $JS.API.> from SYS; under
// that name both would answer.
const jsPrefix = "depot.js"

// ownConsumer is what a cloud-agent calls its consumer, whose real name is the public key of its account.
const ownConsumer = "me"

const accountParam = "{account}"

// scopeRefused is the account of clients that are let in only to be told why they are refused.
const scopeRefused Scope = "refused"

// passage is one opening in the wall between CONTROL and the accounts of a scope. One export and, in each account, one
// import are made from it.
type passage struct {
	remote   string // the subject in CONTROL; {account} is where the server demands the importing account's own key
	local    string // the same as a tenant sees it
	kind     jwt.ExportType
	response jwt.ResponseType
	share    bool // the server writes who asks into each request
}

// passages derives a scope's openings from the table. All services of a scope share ONE passage: the server's cycle
// check, which keeps a member from making an answer enter the API again, works within one export.
func passages(scope Scope) []passage {
	var all []passage
	add := func(p passage) {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	for row := range rowsOf(scope) {
		family, _, _ := strings.Cut(row.Subject, ".")
		local := family + ".>"
		remote := string(scope) + "." + accountParam + "." + local
		switch row.Kind {
		case KindService, KindSignal:
			add(passage{remote: remote, local: local, kind: jwt.Service, response: jwt.ResponseTypeSingleton, share: true})
		case KindHint, KindEvents:
			add(passage{remote: remote, local: local, kind: jwt.Stream})
		case KindQueue:
			for _, p := range consumerPassages(row.Stream) {
				add(p)
			}
		}
	}
	return all
}

// consumerPassages let an account pull from its own durable consumer and acknowledge, and do nothing else with
// JetStream. Acknowledgements cannot be renamed, and have two formats.
func consumerPassages(stream string) []passage {
	api := func(verb string) (remote, local string) {
		return "$JS.API." + verb + "." + stream + "." + accountParam, jsPrefix + "." + verb + "." + stream + "." + ownConsumer
	}
	next, localNext := api("CONSUMER.MSG.NEXT")
	info, localInfo := api("CONSUMER.INFO")
	ack := "$JS.ACK." + stream + "." + accountParam + ".>"
	ack2 := "$JS.ACK.*.*." + stream + "." + accountParam + ".>"
	return []passage{
		{remote: next, local: localNext, kind: jwt.Service, response: jwt.ResponseTypeStream},
		{remote: info, local: localInfo, kind: jwt.Service, response: jwt.ResponseTypeSingleton},
		{remote: ack, local: ack, kind: jwt.Service, response: jwt.ResponseTypeSingleton},
		{remote: ack2, local: ack2, kind: jwt.Service, response: jwt.ResponseTypeSingleton},
	}
}

// rowsOf yields the rows that an account of the scope takes part in.
func rowsOf(scope Scope) func(yield func(Row) bool) {
	return func(yield func(Row) bool) {
		for row := range Table() {
			in := row.Scope == scope
			if row.Scope == ScopeAny {
				in = scope != ScopeControl && (scope != scopeRefused || slices.Contains(row.Roles, RoleRefused))
			}
			if in && !yield(row) {
				return
			}
		}
	}
}

// position returns the place of the account's key in the remote subject, counted from 1 as the server does.
func (p passage) position() uint {
	return uint(slices.Index(strings.Split(p.remote, "."), accountParam) + 1)
}

func (p passage) export() *jwt.Export {
	return &jwt.Export{
		Name:                 p.remote,
		Subject:              jwt.Subject(strings.ReplaceAll(p.remote, accountParam, "*")),
		Type:                 p.kind,
		ResponseType:         p.response,
		AccountTokenPosition: p.position(),
	}
}

func (p passage) importInto(account, control string) *jwt.Import {
	return &jwt.Import{
		Name:         p.local,
		Subject:      jwt.Subject(strings.ReplaceAll(p.remote, accountParam, account)),
		Account:      control,
		LocalSubject: jwt.RenamingSubject(strings.ReplaceAll(p.local, accountParam, account)),
		Type:         p.kind,
		Share:        p.share,
	}
}

// tenantScopes are the scopes that have accounts of their own.
var tenantScopes = []Scope{ScopeOrganization, ScopeConnection, scopeRefused}

func controlExports() jwt.Exports {
	var exports jwt.Exports
	for _, scope := range tenantScopes {
		for _, p := range passages(scope) {
			exports = append(exports, p.export())
		}
	}
	return exports
}

// tenantClaims are the claims of an account of the scope, all of whose users are signed by the one key of that scope.
func tenantClaims(scope Scope, account, name, control, signer string) *jwt.AccountClaims {
	claims := jwt.NewAccountClaims(account)
	claims.Name = name
	claims.SigningKeys.Add(signer)
	for _, p := range passages(scope) {
		claims.Imports = append(claims.Imports, p.importInto(account, control))
	}
	claims.Limits.Conn = 600
	claims.Limits.Subs = 20_000
	claims.Limits.Payload = maxPayload
	claims.Limits.LeafNodeConn = 0
	claims.Limits.Exports = 0
	claims.Limits.DisallowBearer = true
	return claims
}

// scopeOf returns the kind of account that a role lives in.
func scopeOf(role Role) (Scope, error) {
	switch role {
	case RoleUser, RoleCI:
		return ScopeOrganization, nil
	case RoleAgent, RoleNewMachine, RoleMachine:
		return ScopeConnection, nil
	case RoleRefused:
		return scopeRefused, nil
	case RoleAPI:
	}
	return "", fmt.Errorf("role %q has no account of tenants", role)
}

// self is the identifier that stands for {self} in subjects and names the private inbox.
func (g Grant) self() string {
	if g.Role == RoleMachine || g.Role == RoleNewMachine {
		return string(g.Machine)
	}
	return string(g.Token)
}

func inboxPrefix(self string) string { return "_INBOX_" + self }

// permissions derives from the table what a grant's holder may send and hear inside its account.
func permissions(g Grant) jwt.Permissions {
	var p jwt.Permissions
	p.Sub.Allow.Add(inboxPrefix(g.self()) + ".>")
	for row := range Table() {
		if !slices.Contains(row.Roles, g.Role) {
			continue
		}
		switch row.Kind {
		case KindService, KindSignal:
			p.Pub.Allow.Add(localSubject(row, g.self(), g.Project))
		case KindHint, KindEvents:
			p.Sub.Allow.Add(localSubject(row, g.self(), g.Project))
		case KindQueue:
			for _, c := range consumerPassages(row.Stream) {
				p.Pub.Allow.Add(strings.ReplaceAll(c.local, accountParam, g.Account))
			}
		}
	}
	if len(p.Pub.Allow) == 0 {
		p.Pub.Deny.Add(">")
	}
	return p
}

// localSubject is a row's subject inside an account. Parameters that are not fixed become wildcards.
func localSubject(row Row, self string, project ProjectID) string {
	tokens := strings.Split(row.Subject, ".")
	for i, token := range tokens {
		switch {
		case token == "{self}":
			tokens[i] = self
		case token == "{project}" && project != "":
			tokens[i] = string(project)
		case strings.HasPrefix(token, "{"):
			tokens[i] = "*"
		}
	}
	return strings.Join(tokens, ".")
}
