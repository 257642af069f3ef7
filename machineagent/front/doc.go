// Package front is the mTLS server before a machine's BuildKit daemon, which itself listens on a unix socket only.
//
//	client ══ TLS 1.3, the lease's root and pin ══▶ Front ── plaintext, unix socket ──▶ daemon
//
// A [Lease] is installed and ended while the front runs. The client names the lease as its SNI; that alone selects the
// root it must chain to, the certificate it is shown and the pin its key must have.
//
// Safety comes from asking on every handshake whether the lease lives (there is no resumption, so every handshake is a
// full one), from asking again under the lock under which leases end when the connection is admitted, and from
// resetting every connection of a lease at the moment it ends, whether its owner ended it, a newer generation replaced
// it, or its deadline passed. What is still in the socket's buffer then is dropped, not delivered.
//
// Liveness comes from bounds: on the time of a handshake, on handshakes at once, on connections per lease, and from
// keepalive, which finds a client that vanished. A lease needs nobody to go on until its deadline.
//
// It does not promise fairness between the leases of one machine, and it does not look into what passes.
package front
