package bus

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/nats-io/nats.go"
)

// The errors of the bus itself. What a peer answers is a *Fault.
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

// refusals are the reasons why a client is let in no further than to be told one, by their names on the wire.
var refusals = map[string]error{
	"unknown":  ErrBadToken,
	"expired":  ErrExpiredToken,
	"revoked":  ErrRevokedToken,
	"protocol": ErrProtocol,
}

// refusalOf returns the wire name of a refusal, or "" when err is something else.
func refusalOf(err error) string {
	for name, reason := range refusals {
		if errors.Is(err, reason) {
			return name
		}
	}
	return ""
}

// protocolMismatch says, to the client, which of the two sides must be upgraded.
func protocolMismatch(client, server int) string {
	side := "this program"
	if server < client {
		side = "the API server"
	}
	return fmt.Sprintf("this program speaks %d and the API server %d; upgrade %s", client, server, side)
}

var violation = regexp.MustCompile(`Permissions Violation for (?:Publish|Subscription) to "([^"]+)"`)

// deniedSubject returns the subject of a permission violation, which the server reports apart from the operation that
// caused it.
func deniedSubject(err error) (string, bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	m := violation.FindStringSubmatch(err.Error())
	if m == nil {
		return "", false
	}
	return m[1], true
}
