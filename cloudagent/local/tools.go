package local

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/depotctl/depot/bus"
)

// ToolsVariable names the environment variable with a directory in which FindTools looks.
const ToolsVariable = "DEPOT_TOOLS"

// cniPlugins are what BuildKit's bridge network consists of, under the names by which BuildKit finds them.
var cniPlugins = []string{"buildkit-cni-bridge", "buildkit-cni-loopback", "buildkit-cni-host-local", "buildkit-cni-firewall"}

// Tools are the programs that a machine runs, as absolute paths. An empty one is missing.
type Tools struct {
	Machineagent string
	Buildkitd    string
	Runc         string
	CNIDir       string // directory that holds all of BuildKit's CNI plugins
}

// FindTools looks for the programs in dirs, then beside the running executable, then in $DEPOT_TOOLS, then in PATH (and
// in the sbin directories, which Debian leaves out of the PATH of users). Check names what was not found.
func FindTools(dirs ...string) Tools {
	if executable, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(executable))
	}
	if dir := os.Getenv(ToolsVariable); dir != "" {
		dirs = append(dirs, dir)
	}
	dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
	dirs = append(dirs, "/usr/local/sbin", "/usr/sbin", "/sbin")
	return Tools{
		Machineagent: find(dirs, "machineagent"),
		Buildkitd:    find(dirs, "buildkitd"),
		Runc:         find(dirs, "runc"),
		CNIDir:       findAll(dirs, cniPlugins),
	}
}

// Check returns a MissingToolsError that names all that is missing, or nil. With allowHostNetwork the CNI plugins may be.
func (t Tools) Check(allowHostNetwork bool) error {
	missing := &MissingToolsError{}
	for _, tool := range []struct{ name, path string }{{"machineagent", t.Machineagent}, {"buildkitd", t.Buildkitd}, {"runc", t.Runc}} {
		if !executable(tool.path) {
			missing.Programs = append(missing.Programs, tool.name)
		}
	}
	if !allowHostNetwork {
		for _, plugin := range cniPlugins {
			if t.CNIDir == "" || !executable(filepath.Join(t.CNIDir, plugin)) {
				missing.Plugins = append(missing.Plugins, plugin)
			}
		}
	}
	if len(missing.Programs)+len(missing.Plugins) == 0 {
		return nil
	}
	return missing
}

// MissingToolsError says that machines cannot be started on this host, and why.
type MissingToolsError struct {
	Programs []string
	Plugins  []string // of BuildKit's bridge network
}

// Error names everything that is missing.
func (e *MissingToolsError) Error() string {
	return "this host lacks " + strings.Join(append(append([]string{}, e.Programs...), e.Plugins...), ", ")
}

// Hint says what to do about it.
func (e *MissingToolsError) Hint() string {
	hint := fmt.Sprintf("put them beside depot's own programs, into a directory that %s names, or into PATH", ToolsVariable)
	if len(e.Plugins) > 0 {
		hint += "; without the CNI plugins RUN steps can only use the machine's own network: allow that with --allow-host-network"
	}
	return hint
}

// Unwrap makes the error a Fault for whoever asked for a machine.
func (e *MissingToolsError) Unwrap() error {
	return bus.Faultf(bus.CodeUnavailable, "%s", e.Error()).WithHint("%s", e.Hint())
}

func find(dirs []string, name string) string {
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		path, err := filepath.Abs(filepath.Join(dir, name))
		if err == nil && executable(path) {
			return path
		}
	}
	return ""
}

func executable(path string) bool {
	_, err := exec.LookPath(path)
	return filepath.IsAbs(path) && err == nil
}

func findAll(dirs, names []string) string {
	for _, dir := range dirs {
		all := true
		for _, name := range names {
			all = all && find([]string{dir}, name) != ""
		}
		if abs, err := filepath.Abs(dir); all && err == nil {
			return abs
		}
	}
	return ""
}
