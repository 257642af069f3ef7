package depotctl

import (
	"fmt"
	"slices"

	"github.com/depotctl/depot/bus"
)

// listCommand groups what shows the present state.
type listCommand struct {
	Builds   listBuilds   `cmd:"" help:"List the newest builds."`
	Machines listMachines `cmd:"" help:"List the machines that exist."`
}

type listBuilds struct {
	output
	Project string `help:"Only of this project, by id or name." placeholder:"NAME"`
	Limit   int    `help:"How many, at most 500." default:"50" short:"n"`
}

// Run lists builds.
func (c *listBuilds) Run(a *app) error {
	list, err := ask(a, "list builds", bus.ListRecentBuilds, bus.ListBuilds{Project: c.Project, Limit: c.Limit})
	if err != nil {
		return err
	}
	return c.print(a.stdout, list.Builds, func(t *table) {
		t.row("BUILD", "PROJECT", "STATE", "BUILDERS", "CREATED", "TOOK", "REASON")
		for _, b := range list.Builds {
			var archs []bus.Arch
			for _, l := range b.Leases {
				if !slices.Contains(archs, l.Architecture) {
					archs = append(archs, l.Architecture)
				}
			}
			t.row(b.Build, b.ProjectName, b.State, join(archs), ago(b.CreatedAt), took(b.CreatedAt, b.EndedAt), oneLine(b.Reason))
		}
	})
}

type listMachines struct{ output }

// Run lists machines.
func (c *listMachines) Run(a *app) error {
	list, err := ask(a, "list machines", bus.ListLiveMachines, bus.Empty{})
	if err != nil {
		return err
	}
	return c.print(a.stdout, list.Machines, func(t *table) {
		t.row("MACHINE", "PROJECT", "ARCH", "STATE", "FOR", "BUILDS", "CACHE", "FREE", "REASON")
		for _, m := range list.Machines {
			t.row(m.Machine, m.ProjectName, m.Architecture, m.State, since(m.Since), m.Builds, size(m.CacheBytes), size(m.DiskFreeBytes), oneLine(m.Reason))
		}
	})
}

// cancelCommand ends a build.
type cancelCommand struct {
	Build bus.BuildID `arg:"" help:"Id of the build (bld-…), as in list builds."`
}

// Run cancels the build; one that has ended already stays as it is.
func (c *cancelCommand) Run(a *app) error {
	view, err := ask(a, "cancel build", bus.CancelBuild, bus.BuildRef{Build: c.Build})
	if err != nil {
		return err
	}
	if view.State != bus.BuildCanceled {
		fmt.Fprintf(a.stdout, "build %s had already ended: %s\n", view.Build, view.State)
		return nil
	}
	fmt.Fprintf(a.stdout, "canceled build %s\n", view.Build)
	return nil
}
