package depotctl

import (
	"fmt"

	"github.com/depotctl/depot/bus"
)

// projectsCommand groups the commands about projects.
type projectsCommand struct {
	Create createProject `cmd:"" help:"Make a project."`
	List   listProjects  `cmd:"" help:"List the organization's projects."`
}

type createProject struct {
	output
	Name       string     `arg:"" help:"Name: 1 to 63 of a-z, 0-9 and -."`
	Connection string     `help:"Connection that its machines run in (default: the organization's only one)." placeholder:"NAME"`
	Arch       []bus.Arch `help:"Architectures, the default first (default: those of the connection)." enum:"amd64,arm64" placeholder:"ARCH"`
}

// Run makes the project.
func (c *createProject) Run(a *app) error {
	p, err := ask(a, "create project", bus.CreateProject, bus.ProjectCreate{Name: c.Name, Connection: c.Connection, Architectures: c.Arch})
	if err != nil {
		return err
	}
	return c.print(a.stdout, p, func(t *table) {
		fmt.Fprintf(a.stdout, "created project %s (%s)\n", p.Name, p.Project)
	})
}

type listProjects struct{ output }

// Run lists the projects.
func (c *listProjects) Run(a *app) error {
	list, err := ask(a, "list projects", bus.ListProjects, bus.Empty{})
	if err != nil {
		return err
	}
	return c.print(a.stdout, list.Projects, func(t *table) {
		t.row("NAME", "ID", "ARCHITECTURES", "CONNECTION", "CREATED", "")
		for _, p := range list.Projects {
			t.row(p.Name, p.Project, join(p.Architectures), p.Connection, ago(p.CreatedAt), mark(p.Default, "default"))
		}
	})
}
