package bus

import (
	"fmt"
	"iter"
	"slices"
)

// Role is what a connection to the bus may do; the callout gives it, by the kind of credential presented.
type Role string

// The roles.
const (
	// RoleAPI is the API server, in the account CONTROL.
	RoleAPI Role = "api"
	// RoleAgent is the cloud-agent of one connection.
	RoleAgent Role = "agent"
	// RoleNewMachine is a machine that has only its launch nonce: it may register, and nothing else.
	RoleNewMachine Role = "newmachine"
	// RoleMachine is a registered machine.
	RoleMachine Role = "machine"
	// RoleUser is a person of an organization: all its projects, tokens and lists.
	RoleUser Role = "user"
	// RoleCI is a job that may build in one project.
	RoleCI Role = "ci"
	// RoleRefused is whoever presented a bad credential: it may ask why, for a few seconds.
	RoleRefused Role = "refused"
)

// Roles are all roles of tenants: everybody but the API server.
var Roles = []Role{RoleAgent, RoleNewMachine, RoleMachine, RoleUser, RoleCI, RoleRefused}

// Scope is the kind of account that a row belongs to.
type Scope string

// The scopes.
const (
	// ScopeOrganization rows are seen by the users of one organization.
	ScopeOrganization Scope = "org"
	// ScopeConnection rows are seen by the cloud-agent and the machines of one connection.
	ScopeConnection Scope = "conn"
	// ScopeControl rows stay among API servers.
	ScopeControl Scope = "control"
	// ScopeAny is for Hello, which every account may ask.
	ScopeAny Scope = "any"
)

// Kind is the mechanism of a row.
type Kind string

// The kinds.
const (
	// KindService is a request with one typed reply, answered by any API server.
	KindService Kind = "service"
	// KindSignal is a core message to the API servers that nobody answers and nothing stores.
	KindSignal Kind = "signal"
	// KindQueue is a work-queue stream: each message is carried out at least once, then gone.
	KindQueue Kind = "queue"
	// KindEvents is a limits stream that can be replayed, and is seen live as it is written.
	KindEvents Kind = "events"
	// KindHint is a core message from the API server that wakes somebody up. It is never believed.
	KindHint Kind = "hint"
)

// Row is one line of the contract: who may send what to whom. Streams, exports, imports, permissions, the table in
// the package documentation and the access matrix are all derived from the rows.
type Row struct {
	Name    string // of the payload on the wire: the header Depot-Type is <Name>.v1
	Subject string // as the sender or receiver of a tenant sees it; {self} is its own id, other {…} are parameters
	Scope   Scope
	Kind    Kind
	Stream  string // queue and events
	Roles   []Role // of tenants: those who send a service or signal, those who receive the other kinds
	Why     string
	Payload string // Go type, and of services the reply's
}

var table []*Row

// Table yields every row, in the order of the six steps of a build.
func Table() iter.Seq[Row] {
	return func(yield func(Row) bool) {
		for _, r := range table {
			if !yield(*r) {
				return
			}
		}
	}
}

func addRow(r Row) *Row {
	if slices.ContainsFunc(table, func(o *Row) bool { return o.Name == r.Name }) {
		panic("two rows are called " + r.Name)
	}
	table = append(table, &r)
	return &r
}

func typeName[T any]() string { return fmt.Sprintf("%T", *new(T)) }

// Service is a row whose sender waits for one typed reply.
type Service[Req, Resp Message] struct{ row *Row }

// Signal is a row whose message is not answered and not stored.
type Signal[M Message] struct{ row *Row }

// Queue is a row whose messages are stored until a handler has carried them out.
type Queue[M Message] struct{ row *Row }

// Events is a row whose messages are stored for a time and can be replayed.
type Events[M Message] struct{ row *Row }

// Hint is a row from the API server whose message wakes somebody up.
type Hint[M Message] struct{ row *Row }

// Row returns the line of the table.
func (s Service[Req, Resp]) Row() Row { return *s.row }

// Row returns the line of the table.
func (s Signal[M]) Row() Row { return *s.row }

// Row returns the line of the table.
func (q Queue[M]) Row() Row { return *q.row }

// Row returns the line of the table.
func (e Events[M]) Row() Row { return *e.row }

// Row returns the line of the table.
func (h Hint[M]) Row() Row { return *h.row }

func service[Req, Resp Message](name, subject string, scope Scope, why string, roles ...Role) Service[Req, Resp] {
	return Service[Req, Resp]{addRow(Row{Name: name, Subject: subject, Scope: scope, Kind: KindService, Roles: roles, Why: why, Payload: typeName[Req]() + " → " + typeName[Resp]()})}
}

func signal[M Message](name, subject string, scope Scope, why string, roles ...Role) Signal[M] {
	return Signal[M]{addRow(Row{Name: name, Subject: subject, Scope: scope, Kind: KindSignal, Roles: roles, Why: why, Payload: typeName[M]()})}
}

func queue[M Message](name, subject string, scope Scope, stream, why string, roles ...Role) Queue[M] {
	return Queue[M]{addRow(Row{Name: name, Subject: subject, Scope: scope, Kind: KindQueue, Stream: stream, Roles: roles, Why: why, Payload: typeName[M]()})}
}

func events[M Message](name, subject string, scope Scope, stream, why string, roles ...Role) Events[M] {
	return Events[M]{addRow(Row{Name: name, Subject: subject, Scope: scope, Kind: KindEvents, Stream: stream, Roles: roles, Why: why, Payload: typeName[M]()})}
}

func hint[M Message](name, subject string, scope Scope, why string, roles ...Role) Hint[M] {
	return Hint[M]{addRow(Row{Name: name, Subject: subject, Scope: scope, Kind: KindHint, Roles: roles, Why: why, Payload: typeName[M]()})}
}
