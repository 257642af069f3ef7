package depotctl

import (
	"bytes"
	"slices"
	"testing"

	"github.com/docker/buildx/commands"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// ours are the flags that docker buildx build does not have.
var ours = []string{"acquire-timeout", "project", "server", "token"}

func buildCommands(t *testing.T) (buildx, depotctl *cobra.Command) {
	t.Helper()
	cli, err := command.NewDockerCli()
	require.NoError(t, err)
	buildx, _, err = commands.NewRootCmd("depotctl", false, cli).Find([]string{"build"})
	require.NoError(t, err)
	root := commands.NewRootCmd("depotctl", false, cli)
	require.NoError(t, root.PersistentFlags().MarkHidden("builder"))
	depotctl, err = new(build).extend(root, cli)
	require.NoError(t, err)
	return buildx, depotctl
}

func TestBuild_HasEveryFlagOfBuildxAndOurs(t *testing.T) {
	t.Parallel()
	buildx, depotctl := buildCommands(t)
	var extra []string
	depotctl.Flags().VisitAll(func(f *pflag.Flag) {
		theirs := buildx.Flags().Lookup(f.Name)
		if theirs == nil {
			extra = append(extra, f.Name)
			return
		}
		require.Equal(t, theirs.Shorthand, f.Shorthand, f.Name)
		require.Equal(t, theirs.Usage, f.Usage, f.Name)
		require.Equal(t, theirs.DefValue, f.DefValue, f.Name)
		require.Equal(t, theirs.NoOptDefVal, f.NoOptDefVal, f.Name)
		require.Equal(t, theirs.Hidden, f.Hidden, f.Name)
		require.Equal(t, theirs.Value.Type(), f.Value.Type(), f.Name)
	})
	require.Equal(t, ours, extra)
	count := 0
	buildx.Flags().VisitAll(func(f *pflag.Flag) {
		count++
		require.NotNil(t, depotctl.Flags().Lookup(f.Name), f.Name)
	})
	require.Greater(t, count, 45, "buildx v0.37 has 36 visible flags and 14 hidden ones")
}

func TestBuild_HelpIsThatOfBuildx(t *testing.T) {
	t.Parallel()
	buildx, depotctl := buildCommands(t)
	help := func(c *cobra.Command) []string {
		var out bytes.Buffer
		c.SetOut(&out)
		require.NoError(t, c.Help())
		var lines []string
		for line := range bytes.SplitSeq(out.Bytes(), []byte("\n")) {
			lines = append(lines, string(bytes.Join(bytes.Fields(line), []byte(" "))))
		}
		return lines
	}
	theirs := help(buildx)
	for _, line := range help(depotctl) {
		if !slices.Contains(theirs, line) {
			require.Regexp(t, `^--(acquire-timeout|project|server|token) `, line)
		}
	}
	for _, line := range theirs {
		if !slices.Contains(help(depotctl), line) {
			require.Regexp(t, `^--builder `, line, "the one flag that has no meaning here is hidden")
		}
	}
}
