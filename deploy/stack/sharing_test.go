package stack_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// counted is a build that says in its result how often its step has run on the cache of its machine.
func counted(t testing.TB) string {
	t.Helper()
	return source(t, append(image,
		"ARG ROUND", `RUN --mount=type=cache,target=/cache ["/step", "count", "/cache/n", "/n"]`,
		"FROM scratch", "COPY --from=image /n /n")...)
}

// again makes the step run again: with --no-cache, BuildKit would give it an empty cache mount too.
func again(round int) string { return fmt.Sprintf("--build-arg=ROUND=%d", round) }

// count runs the counted build and returns what it counted.
func (in *installation) count(t testing.TB, context string, args ...string) string {
	t.Helper()
	out := t.TempDir()
	p := in.build(t, append(args, "-o", "type=local,dest="+out, context)...)
	require.Zero(t, p.exitCode(t), "%s", p.out)
	n, err := os.ReadFile(filepath.Join(out, "n"))
	require.NoError(t, err)
	return string(n)
}

func (in *installation) createProject(t testing.TB, name string) bus.ProjectView {
	t.Helper()
	p, err := bus.CreateProject.Call(t.Context(), in.user(t), bus.ProjectCreate{Name: name})
	require.NoError(t, err)
	return p
}

func TestBuilds_OfOneProjectShareItsMachineAndItsCache(t *testing.T) {
	in := newInstallation(t)
	in.depotd(t)
	context := counted(t)
	require.Equal(t, "1", in.count(t, context))
	require.Equal(t, "1", in.count(t, context), "the step ran again: its layer was not in the cache")
	require.Equal(t, "2", in.count(t, context, again(2)), "the cache mount was not kept")

	both := []*process{in.build(t, again(3), context), in.build(t, again(4), context)}
	for _, p := range both {
		require.Zero(t, p.exitCode(t), "%s", p.out)
	}
	require.Len(t, in.machines(t), 1)
	for _, b := range in.builds(t) {
		require.Equal(t, in.machines(t)[0].Machine, b.Leases[0].Machine)
		require.Equal(t, bus.BuildSucceeded, b.State)
	}
}

func TestBuilds_OfTwoProjectsShareNothing(t *testing.T) {
	in := newInstallation(t)
	in.depotd(t)
	in.createProject(t, "other")
	context := counted(t)
	require.Equal(t, "1", in.count(t, context))
	require.Equal(t, "1", in.count(t, context, "--project", "other"), "it found the other project's cache mount")
	require.Equal(t, "2", in.count(t, context, "--project", "other", again(2)))
	require.Equal(t, "2", in.count(t, context, again(2)))

	machines := in.machines(t)
	require.Len(t, machines, 2)
	require.NotEqual(t, machines[0].Project, machines[1].Project)
	require.NotEqual(t, machines[0].Volume, machines[1].Volume)
	of := map[bus.MachineID]bus.ProjectID{machines[0].Machine: machines[0].Project, machines[1].Machine: machines[1].Project}
	for _, b := range in.builds(t) {
		require.Equal(t, b.Project, of[b.Leases[0].Machine])
	}
}

func TestBuilds_TwentyOfTenProjectsFinishAtOnce(t *testing.T) {
	in := newInstallation(t)
	in.depotd(t)
	context := counted(t)
	var running []*process
	for i := range 10 {
		project := in.createProject(t, fmt.Sprintf("project-%d", i))
		for range 2 {
			running = append(running, in.build(t, "--project", string(project.Project), context))
		}
	}
	for _, p := range running {
		require.Zero(t, p.exitCode(t), "%s", p.out)
	}
	require.Len(t, in.machines(t), 10)
	builds := in.builds(t)
	require.Len(t, builds, 20)
	projects := map[bus.ProjectID][]bus.MachineID{}
	for _, b := range builds {
		require.Equal(t, bus.BuildSucceeded, b.State)
		projects[b.Project] = append(projects[b.Project], b.Leases[0].Machine)
	}
	require.Len(t, projects, 10)
	for _, machines := range projects {
		require.Len(t, slices.Compact(machines), 1, "two builds of a project were on two machines")
	}
}
