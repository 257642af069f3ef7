package apiserver

import (
	"slices"
	"strings"
	"time"

	"github.com/depotctl/depot/bus"
)

// Project is what a build belongs to: the trust boundary of machines and caches.
type Project struct {
	ID            bus.ProjectID      `json:"id"`
	Organization  bus.OrganizationID `json:"organization"`
	Name          string             `json:"name"`
	Connection    bus.ConnectionID   `json:"connection"`    // empty: it cannot build
	Architectures []bus.Arch         `json:"architectures"` // the default first; empty means the connection's own
	CreatedAt     time.Time          `json:"created_at"`
}

// choose returns the architectures that a build gets: those it asked for, else the default one.
func (p Project) choose(asked []bus.Arch, c Connection) ([]bus.Arch, error) {
	offered := p.offered(c)
	if len(offered) == 0 {
		return nil, bus.Faultf(bus.CodeUnavailable, "connection %s has not said yet which architectures it offers", c.Name).
			WithHint("start the cloud-agent of connection %s, or wait until it has connected", c.Name)
	}
	if len(asked) == 0 {
		return offered[:1], nil
	}
	var chosen []bus.Arch
	for _, a := range asked {
		if !slices.Contains(offered, a) {
			return nil, bus.Faultf(bus.CodeInvalid, "project %s has no %s builders", p.Name, a).
				WithHint("connection %s offers %s", c.Name, joinArchs(offered))
		}
		if !slices.Contains(chosen, a) {
			chosen = append(chosen, a)
		}
	}
	return chosen, nil
}

// offered returns the architectures that both the project allows and the connection can launch, the default first. A
// connection that has not spoken yet is taken at the project's word.
func (p Project) offered(c Connection) []bus.Arch {
	switch {
	case len(p.Architectures) == 0:
		return c.Architectures
	case len(c.Architectures) == 0:
		return p.Architectures
	}
	return slices.DeleteFunc(slices.Clone(p.Architectures), func(a bus.Arch) bool { return !slices.Contains(c.Architectures, a) })
}

func joinArchs(all []bus.Arch) string {
	text := make([]string, len(all))
	for i, a := range all {
		text[i] = string(a)
	}
	return strings.Join(text, ", ")
}
