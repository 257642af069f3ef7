// Package certs is the trust between one client and one machine for one lease, and nothing beyond it.
//
// Both ends make a [Key] and send a certificate request. An [Authority], made for that lease alone, signs exactly one
// server leaf and one client leaf; then its key is gone. Each end turns what it got into a TLS configuration with
// [ClientConfig] or [ServerConfig], which accept that one peer and nobody else.
//
//	client                      API server                       machine
//	NewKey, Key.CSR ──────────▶ NewAuthority ◀────────────────── NewKey, Key.CSR
//	                            SignServer, SignClient
//	ClientConfig  ◀── CA, leaf ─ key cleared ─── CA, leaf, pin ─▶ ServerConfig
//	     ▲                                                             ▲
//	     └───────────────── TLS 1.3, both sides proved ────────────────┘
//
// Safety comes from four things. A private key cannot travel, because [Key] offers no way out of the process.
// Nothing that is stored later can mint another certificate for a lease, because the authority forgets its key when
// both leaves are signed. A certificate of another lease opens nothing, because every lease has its own root and the
// leaf must carry this lease's name in the right place, for the right role, with no other power. And a request can
// ask for nothing: of a CSR only the public key is used.
//
// Liveness comes from having nothing to wait for: all of it is arithmetic, about a millisecond per lease.
//
// What it does not promise: TLS never looks again at a connection that is open, so whoever owns the listener must cut
// connections when a lease ends or its certificates expire. Clearing a key is as good as Go allows: no copy is
// reachable, but the garbage collector may leave bytes in memory that is not yet reused.
package certs
