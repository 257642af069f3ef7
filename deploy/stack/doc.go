// Package stack is the whole control plane in one process: the bus server, an API server, and a cloud-agent with the local
// provider. Its binary is depotd.
//
// It adds nothing to its parts but their wiring: the same packages run as separate programs around an external
// nats-server. What it owns is the state directory:
//
//	lock          held for life, and names the process
//	trust/        the key material of the installation
//	bus/          streams, buckets and accounts
//	local/        machines and volumes of the local provider
//	user-token    of the organization's first user
//	agent-token   of the cloud-agent
//
// Safety comes from the lock, which the kernel drops with the process, and from the bus, which has on disk what it has
// acknowledged. Tokens are written before their hashes are stored, so that a crash in between leaves no token that nobody
// holds; what was made at the first start is not made again, so a token that was revoked stays revoked.
//
// Liveness comes from the parts. If one of them ends, all end, and with them the process: a supervisor starts it again,
// and machines and builds do not notice, because machines outlive the control plane.
//
// It does not promise to survive its host: that is what several API servers and a cluster of bus servers are for.
package stack
