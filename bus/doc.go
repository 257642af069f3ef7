// Package bus is the contract between the components of depot, and the only package that speaks NATS: who may send
// what to whom, what is stored, and how everybody proves who they are. Components meet here and nowhere else; to read
// the table below is to read the architecture.
//
// A build takes six steps. (1) A client asks for builders. (2) An API server decides, in records that only
// compare-and-set can change. (3) The cloud-agent of the connection launches a machine, and (4) the machine registers
// and is told what to serve. (5) The client is told where its builders are and gets its certificates. (6) It builds,
// straight over mutual TLS: no build data crosses the bus.
//
// # The table
//
// Subjects are as a tenant sees them. {self} is the tenant's own id; the server puts the tenant's account in front of
// each, as the position that only this account can fill. Streams, exports, imports, permissions and the access matrix
// of the tests are derived from these rows.
//
// table:begin
//
// Everybody:
//
//	api.hello                          service        everybody → api
//	    Hello → Welcome
//	    first request of every connection
//
// The account of an organization:
//
//	api.build.create                   service        user, ci → api
//	    BuildCreate → BuildView
//	    1: a client asks for builders
//	api.build.get                      service        user, ci → api
//	    BuildRef → BuildView
//	    5: a client that was woken up asks for the truth, and for its certificates
//	ev.{project}.{build}               events EVENTS  api → user, ci
//	    BuildEvent
//	    5: what happens to a build, as it happens
//	api.build.events                   service        user, ci → api
//	    BuildRef → BuildEvents
//	    what has happened to a build so far
//	api.build.finish                   service        user, ci → api
//	    BuildFinish → BuildView
//	    6: a client reports how its build ended
//	api.build.cancel                   service        user, ci → api
//	    BuildRef → BuildView
//	    anybody who may build in the project ends a build
//	api.build.live                     signal         user, ci → api
//	    BuildLive
//	    6: a client says that it still waits or builds
//	api.project.create                 service        user → api
//	    ProjectCreate → ProjectView
//	    make a project
//	api.project.get                    service        user, ci → api
//	    ProjectRef → ProjectView
//	    find a project
//	api.project.list                   service        user → api
//	    Empty → ProjectList
//	    list projects
//	api.token.create                   service        user → api
//	    TokenCreate → TokenView
//	    make a token
//	api.token.list                     service        user → api
//	    Empty → TokenList
//	    list tokens
//	api.token.revoke                   service        user → api
//	    TokenRef → Empty
//	    revoke a token
//	api.build.list                     service        user, ci → api
//	    ListBuilds → BuildList
//	    list builds
//	api.machine.list                   service        user → api
//	    Empty → MachineList
//	    list machines
//
// The account of a connection:
//
//	act.{account}.{resource}           queue ACTIONS  api → agent
//	    Action
//	    3: what a cloud-agent shall do
//	api.agent.intent                   service        agent → api
//	    LaunchIntent → Empty
//	    3: a cloud-agent is about to launch a machine
//	api.agent.result                   service        agent → api
//	    ActionResult → Empty
//	    3: how an action ended
//	api.agent.inventory                service        agent → api
//	    Inventory → Empty
//	    3: all tagged machines and volumes
//	api.agent.reject                   service        agent → api
//	    Rejection → Empty
//	    3: a cloud-agent will never carry out a message of its queue
//	ctl.agent                          hint           api → agent
//	    Empty
//	    an API server wants a fresh inventory
//	api.machine.{self}.challenge       service        newmachine, machine → api
//	    Empty → MachineChallenge
//	    4: a machine asks for bytes to sign
//	api.machine.{self}.register        service        newmachine, machine → api
//	    MachineRegister → MachineCredential
//	    4: a machine proves who it is
//	api.machine.{self}.renew           service        machine → api
//	    Empty → MachineCredential
//	    a registered machine renews its credential
//	api.machine.{self}.instruct        service        machine → api
//	    Instruct → Instruction
//	    4, 5: a machine says what it does and asks what to do
//	api.machine.{self}.live            signal         machine → api
//	    MachineReport
//	    6: disk, cache and live leases of a machine
//	api.machine.{self}.goodbye         service        machine → api
//	    MachineGoodbye → Empty
//	    a machine has shut down
//	ctl.machine.{self}                 hint           api → machine
//	    MachineHint
//	    4: an API server has something new for a machine
//
// Among API servers:
//
//	queue.build.{build}                queue BUILDS   api → api
//	    BuildRef
//	    2: an API server decides on a build again if nobody has finished deciding
//
// table:end
//
// # Safety comes from
//
//   - Accounts: one for each organization and each connection, walled off by the server. What a tenant may reach of
//     CONTROL is a handful of exports whose subject carries the tenant's own account, so naming another's is impossible.
//     The seeds of accounts are thrown away at birth.
//   - The guard: requests are answered in one place, which drops those whose reply subject the server did not write and
//     authorizes from what the server says about the sender, never from what the sender says.
//   - Tenants never publish into a stream. They ask, and the API server stores, under an id of its own.
//   - Hints and events are wake-ups. An instruction is believed only as the answer to one's own request.
//   - Validate: no message leaves or enters a program unchecked.
//
// # Liveness comes from
//
//   - Every call is repeated until its deadline, because every service is idempotent; then it fails with a code that
//     says that repeating it later is safe.
//   - Every connection comes back for ever, with jitter, unless the API server has refused its credential: then Done is
//     closed and Err says why.
//   - Every queue delivers again until a handler has succeeded, or has rejected the message for good.
//   - A hint that is lost costs a poll interval and nothing more.
//
// # What it does not promise
//
// Messages may be lost, late, twice or out of order; ids and compare-and-set make that harmless. Members of one account
// can wake each other up. Deleting an account or revoking a token is complete two seconds after it returns, when the
// second push has caught whoever was being admitted meanwhile. A server older than 2.14.0 is refused.
//
//go:generate go test -count=1 -run TestTheDocumentationHasTheTable -update .
package bus
