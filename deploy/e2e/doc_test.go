// Package e2e builds real Dockerfiles through the whole product: depotd as a process, a machine that it starts,
// depotctl as a process, BuildKit behind mutual TLS. It holds tests only.
//
// The programs come from the directory DEPOT_TOOLS, else from PATH: `make test` builds them first.
package e2e
