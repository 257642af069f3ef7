package apiserver

import (
	"time"

	"github.com/depotctl/depot/bus"
)

// Organization is the owner of projects, connections and users.
type Organization struct {
	ID             bus.OrganizationID `json:"id"`
	Name           string             `json:"name"`
	Account        string             `json:"account"` // its account on the bus: a public key
	DefaultProject bus.ProjectID      `json:"default_project"`
	CreatedAt      time.Time          `json:"created_at"`
}
