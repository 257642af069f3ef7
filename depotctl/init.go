package depotctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/depotctl/depot/bus"
)

// initCommand ties a directory to a project.
type initCommand struct {
	Project string `arg:"" optional:"" help:"Id or name of the project (default: DEPOT_PROJECT_ID, else the organization's default)." env:"DEPOT_PROJECT_ID"`
	Force   bool   `help:"Replace a depot.json that is there."`
}

// Run asks the server for the project, so that a misspelt name is noticed now.
func (c *initCommand) Run(a *app) error {
	if _, err := os.Lstat(projectFile); err == nil && !c.Force {
		return failf(ExitUsage, "%s exists already", projectFile).hint("replace it with --force")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	project, err := ask(a, "find project", bus.GetProject, bus.ProjectRef{Project: c.Project})
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(projectReference{ID: string(project.Project)}, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(projectFile, append(text, '\n')); err != nil {
		return fmt.Errorf("write %s: %w", projectFile, err)
	}
	if err := os.Chmod(projectFile, 0o644); err != nil { //nolint:gosec // it holds no secret and belongs in version control
		return fmt.Errorf("write %s: %w", projectFile, err)
	}
	fmt.Fprintf(a.stdout, "%s: project %s (%s)\n", projectFile, project.Name, project.Project)
	return nil
}
