package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/depotctl/depot/bus"
)

// Name is what makes a name unique within its owner: the key is <owner>.<kind>.<name>, the value the id that has it. It
// is written before the record that it names, so a crash in between leaves a name that the next try completes.
type Name struct {
	ID string `json:"id"`
}

func nameKey(owner bus.OrganizationID, kind, name string) string {
	if owner == "" {
		return kind + "." + name
	}
	return string(owner) + "." + kind + "." + name
}

// reserve gives a name to the id, or returns the id that has it already.
func reserve[ID ~string](ctx context.Context, s *store, owner bus.OrganizationID, kind, name string, id ID) (ID, error) {
	n, err := ensure(ctx, s.names, nameKey(owner, kind, name), func() Name { return Name{string(id)} })
	if err != nil {
		return "", fmt.Errorf("reserve %s %s: %w", kind, name, err)
	}
	return ID(n.ID), nil
}

// resolve returns the id that has the name; ErrNotFound if none.
func resolve[ID ~string](ctx context.Context, s *store, owner bus.OrganizationID, kind, name string) (ID, error) {
	n, _, err := s.names.Get(ctx, nameKey(owner, kind, name))
	if err != nil {
		return "", fmt.Errorf("find %s %s: %w", kind, name, err)
	}
	return ID(n.ID), nil
}

// project finds a project of an organization by id or by name; empty means the default one.
func (s *Server) project(ctx context.Context, owner bus.OrganizationID, ref string) (Project, error) {
	id := bus.ProjectID(ref)
	if ref == "" {
		o, err := recall(ctx, s.mirrors.organizations, s.store.organizations, string(owner))
		if err != nil {
			return Project{}, fmt.Errorf("read organization: %w", err)
		}
		if id = o.DefaultProject; id == "" {
			return Project{}, bus.Faultf(bus.CodeInvalid, "no project was named and the organization has no default").
				WithHint("name one with --project, DEPOT_PROJECT_ID or depot.json")
		}
	} else if id.Validate() != nil {
		var err error
		if bus.ValidateName(ref) != nil {
			return Project{}, noProject(ref)
		}
		if id, err = resolve[bus.ProjectID](ctx, s.store, owner, "project", ref); err != nil {
			return Project{}, orNoProject(err, ref)
		}
	}
	p, err := recall(ctx, s.mirrors.projects, s.store.projects, string(id))
	if err != nil {
		return Project{}, orNoProject(err, ref)
	}
	if p.Organization != owner {
		return Project{}, noProject(ref)
	}
	return p, nil
}

func orNoProject(err error, ref string) error {
	if errors.Is(err, bus.ErrNotFound) {
		return noProject(ref)
	}
	return err
}

// noProject says the same of a project that does not exist and of one that is somebody else's.
func noProject(ref string) error {
	return bus.Faultf(bus.CodeNotFound, "project %s does not exist", ref).WithHint("list those that you may use with: depotctl projects list")
}

// connection finds a connection of an organization by id or by name; empty means its only one.
func (s *Server) connection(ctx context.Context, owner bus.OrganizationID, ref string) (Connection, error) {
	none := bus.Faultf(bus.CodeNotFound, "connection %s does not exist", ref)
	if ref == "" {
		var own []Connection
		for c := range s.mirrors.connections.all() {
			if c.Organization == owner {
				own = append(own, c)
			}
		}
		if len(own) != 1 {
			return Connection{}, bus.Faultf(bus.CodeInvalid, "the organization has %d connections: name one", len(own))
		}
		return own[0], nil
	}
	id := bus.ConnectionID(ref)
	if id.Validate() != nil {
		if bus.ValidateName(ref) != nil {
			return Connection{}, none
		}
		var err error
		if id, err = resolve[bus.ConnectionID](ctx, s.store, owner, "connection", ref); err != nil {
			if errors.Is(err, bus.ErrNotFound) {
				return Connection{}, none
			}
			return Connection{}, err
		}
	}
	c, _, err := s.store.connections.Get(ctx, string(id))
	if errors.Is(err, bus.ErrNotFound) || err == nil && c.Organization != owner {
		return Connection{}, none
	}
	return c, err
}

// moment is now, in the form in which it is stored.
func (s *Server) moment() moment {
	return moment{s.timeouts, s.now().UTC().Round(0).Truncate(time.Microsecond)}
}
