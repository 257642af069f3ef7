package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/depotctl/depot/bus"
)

// BootstrapConfig names what an installation has from its first start on. Empty names are not made; a zero token is
// not made either.
type BootstrapConfig struct {
	Organization string           // required
	Connection   string           // its first connection
	Project      string           // its default project, on that connection
	UserToken    bus.Token        // of the organization's first user
	AgentToken   bus.Token        // of the connection's cloud-agent
	Now          func() time.Time // the default is time.Now
}

// Bootstrapped is what Bootstrap has made or found.
type Bootstrapped struct {
	Organization bus.OrganizationID
	Connection   bus.ConnectionID
	Project      bus.ProjectID
}

// Bootstrap makes an organization with its connection, its default project and their tokens, of which it stores the
// hashes. What exists is left as it is, so it may be called at every start, and again after a crash at any point.
func Bootstrap(ctx context.Context, control *bus.Control, cfg BootstrapConfig) (Bootstrapped, error) {
	b := bootstrap{cfg: cfg, control: control, now: time.Now}
	if cfg.Now != nil {
		b.now = cfg.Now
	}
	var err error
	if err = cfg.validate(); err == nil {
		b.store, err = openStore(ctx, control)
	}
	for _, step := range []func(context.Context) error{b.organization, b.connection, b.project, b.tokens} {
		if err == nil {
			err = step(ctx)
		}
	}
	if err != nil {
		return Bootstrapped{}, fmt.Errorf("bootstrap: %w", err)
	}
	return b.made, nil
}

func (c BootstrapConfig) validate() error {
	errs := []error{bus.ValidateName(c.Organization)}
	for _, name := range []string{c.Connection, c.Project} {
		if name != "" {
			errs = append(errs, bus.ValidateName(name))
		}
	}
	if c.Connection == "" && (c.Project != "" || !c.AgentToken.IsZero()) {
		errs = append(errs, errors.New("a project and a cloud-agent's token need a connection"))
	}
	return errors.Join(errs...)
}

type bootstrap struct {
	cfg     BootstrapConfig
	control *bus.Control
	store   *store
	now     func() time.Time
	made    Bootstrapped

	organizationAccount, connectionAccount string
}

func (b *bootstrap) stamp() time.Time { return b.now().UTC().Truncate(time.Microsecond) }

func (b *bootstrap) organization(ctx context.Context) error {
	id, err := reserve(ctx, b.store, "", "organization", b.cfg.Organization, bus.NewOrganizationID())
	if err != nil {
		return err
	}
	account, err := bus.NewAccount()
	if err != nil {
		return fmt.Errorf("make account: %w", err)
	}
	o, err := ensure(ctx, b.store.organizations, string(id), func() Organization {
		return Organization{ID: id, Name: b.cfg.Organization, Account: account, CreatedAt: b.stamp()}
	})
	if err != nil {
		return fmt.Errorf("make organization %s: %w", b.cfg.Organization, err)
	}
	b.made.Organization, b.organizationAccount = o.ID, o.Account
	return b.control.EnsureAccount(ctx, bus.ScopeOrganization, o.Account, string(o.ID))
}

func (b *bootstrap) connection(ctx context.Context) error {
	if b.cfg.Connection == "" {
		return nil
	}
	id, err := reserve(ctx, b.store, b.made.Organization, "connection", b.cfg.Connection, bus.NewConnectionID())
	if err != nil {
		return err
	}
	account, err := bus.NewAccount()
	if err != nil {
		return fmt.Errorf("make account: %w", err)
	}
	c, err := ensure(ctx, b.store.connections, string(id), func() Connection {
		return Connection{ID: id, Organization: b.made.Organization, Name: b.cfg.Connection, Account: account, Attestor: AttestorNonce, CreatedAt: b.stamp()}
	})
	if err != nil {
		return fmt.Errorf("make connection %s: %w", b.cfg.Connection, err)
	}
	b.made.Connection, b.connectionAccount = c.ID, c.Account
	return b.control.EnsureAccount(ctx, bus.ScopeConnection, c.Account, string(c.ID))
}

func (b *bootstrap) project(ctx context.Context) error {
	if b.cfg.Project == "" {
		return nil
	}
	id, err := reserve(ctx, b.store, b.made.Organization, "project", b.cfg.Project, bus.NewProjectID())
	if err != nil {
		return err
	}
	if _, err := ensure(ctx, b.store.projects, string(id), func() Project {
		return Project{ID: id, Organization: b.made.Organization, Name: b.cfg.Project, Connection: b.made.Connection, CreatedAt: b.stamp()}
	}); err != nil {
		return fmt.Errorf("make project %s: %w", b.cfg.Project, err)
	}
	b.made.Project = id
	_, _, err = change(ctx, b.store.organizations, string(b.made.Organization), func(o Organization) (Organization, error) {
		if o.DefaultProject == "" {
			o.DefaultProject = id
		}
		return o, nil
	})
	return err
}

func (b *bootstrap) tokens(ctx context.Context) error {
	user := Token{Name: "first-user", Role: bus.RoleUser, Account: b.organizationAccount}
	agent := Token{Name: "cloud-agent", Role: bus.RoleAgent, Account: b.connectionAccount, Connection: b.made.Connection}
	return errors.Join(b.token(ctx, b.cfg.UserToken, user), b.token(ctx, b.cfg.AgentToken, agent))
}

func (b *bootstrap) token(ctx context.Context, secret bus.Token, t Token) error {
	if secret.IsZero() {
		return nil
	}
	t.ID, t.Hash, t.Organization, t.CreatedAt = secret.ID, secret.Hash(), b.made.Organization, b.stamp()
	have, err := ensure(ctx, b.store.tokens, string(t.ID), func() Token { return t })
	if err != nil {
		return fmt.Errorf("make token %s: %w", t.Name, err)
	}
	if have.Hash != t.Hash || have.Organization != t.Organization {
		return fmt.Errorf("make token %s: %s belongs to somebody else", t.Name, t.ID)
	}
	return nil
}
