package apiserver

import (
	"slices"
	"time"

	"github.com/depotctl/depot/bus"
)

// Connection is one cloud account, region and zone set in which an organization's machines run.
type Connection struct {
	ID            bus.ConnectionID   `json:"id"`
	Organization  bus.OrganizationID `json:"organization"`
	Name          string             `json:"name"`
	Account       string             `json:"account"` // its account on the bus: a public key
	CreatedAt     time.Time          `json:"created_at"`
	Architectures []bus.Arch         `json:"architectures"` // that its cloud-agent can launch, the preferred one first; empty until it has said so
	MaxMachines   int                `json:"max_machines"`
	AgentVersion  string             `json:"agent_version"`
	Attestor      string             `json:"attestor"` // that its machines must satisfy; empty means AttestorNonce
}

// described returns the connection as its agent's latest inventory describes it.
func (c Connection) described(inv bus.Inventory) Connection {
	c.Architectures, c.MaxMachines, c.AgentVersion = slices.Clone(inv.Architectures), inv.MaxMachines, inv.Version
	return c
}
