// Package machineagent serves builds on one machine: it proves to the API server who the machine is, runs BuildKit for
// it, and opens BuildKit to exactly the clients whose leases it was told of.
//
//	          register, instruct, report                    mTLS, one root per lease
//	[bus] ◀───────────────────────────── Agent            Front ◀═════════════════════ client
//	                                       │  leases, keys   ▲ │
//	                                       └────────────────┘ └──unix socket──▶ buildkitd
//
// The parts are front (the mTLS server), daemon (buildkitd and what it leaves behind), and here: the identity, the
// connection to the bus, the conversation with the API server, the probe, the reports and the shutdown.
//
// The conversation is level-triggered. The agent says what it does and is told everything that it shall do, after each
// change of its own, at each hint, and every few seconds. A hint is never believed; what is believed is the answer to
// its own question, and only if the record behind that answer is not older than one seen before.
//
// Safety comes from keys that are made here and never leave: the identity key and the key for the bus are files of the
// root disk that only root can read, the keys of leases are in memory alone. It comes from the daemon having no other
// way in than the front; from a lease being served only with certificates for a key that this process holds; and from
// a lease that is not in the answer being cut before the next question is asked.
//
// Liveness comes from needing nobody in between. While the API server or the bus is away, leases go on to their
// deadlines and the daemon is restarted if it dies. An agent that is restarted finds its identity again, and for each
// of its leases asks for a new set of certificates, because the keys of the old ones are gone.
//
// It does not promise that a build survives the death of the daemon or of the agent, and it keeps no record of builds.
package machineagent
