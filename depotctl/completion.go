package depotctl

import (
	"fmt"
	"io"

	"github.com/alecthomas/kong"
	"github.com/docker/buildx/commands"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// completionCommand prints a completion script.
type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Run prints the script. It calls depotctl back with __complete for every word.
func (c *completionCommand) Run(a *app) error {
	root, err := completionTree()
	if err != nil {
		return err
	}
	switch c.Shell {
	case "bash":
		return root.GenBashCompletionV2(a.stdout, true)
	case "zsh":
		return root.GenZshCompletion(a.stdout)
	default:
		return root.GenFishCompletion(a.stdout, true)
	}
}

// complete answers the script.
func (a *app) complete(args []string) error {
	root, err := completionTree()
	if err != nil {
		return err
	}
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(io.Discard)
	return root.Execute()
}

// completionTree is the whole grammar in cobra's form: build is buildx's own command, the others mirror ours.
func completionTree() (*cobra.Command, error) {
	var line commandLine
	parser, err := newParser(&line, io.Discard, io.Discard, func(int) {})
	if err != nil {
		return nil, err
	}
	cli, err := command.NewDockerCli()
	if err != nil {
		return nil, fmt.Errorf("complete: %w", err)
	}
	build, err := new(build).extend(commands.NewRootCmd("depotctl", false, cli), cli)
	if err != nil {
		return nil, err
	}
	root := &cobra.Command{Use: "depotctl", CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true}}
	root.SetHelpCommand(&cobra.Command{Hidden: true})
	for _, child := range parser.Model.Children {
		if child.Name == build.Name() {
			root.AddCommand(build)
			continue
		}
		root.AddCommand(mirror(child))
	}
	return root, nil
}

// mirror turns one of our commands into a cobra command that only knows its names, flags and fixed values.
func mirror(n *kong.Node) *cobra.Command {
	cmd := &cobra.Command{Use: n.Name, Short: n.Help, Run: func(*cobra.Command, []string) {}, ValidArgsFunction: cobra.NoFileCompletions}
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			mirrorFlag(cmd, f)
		}
	}
	if len(n.Positional) > 0 {
		if values := n.Positional[0].EnumSlice(); len(values) > 0 {
			cmd.ValidArgsFunction = cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
		}
	}
	for _, child := range n.Children {
		cmd.AddCommand(mirror(child))
	}
	return cmd
}

func mirrorFlag(cmd *cobra.Command, f *kong.Flag) {
	if f.Name == "help" {
		return // cobra has its own
	}
	short := ""
	if f.Short != 0 {
		short = string(f.Short)
	}
	if f.IsBool() {
		cmd.Flags().BoolP(f.Name, short, false, f.Help)
		return
	}
	cmd.Flags().StringP(f.Name, short, "", f.Help)
	if values := f.EnumSlice(); len(values) > 0 {
		_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // the flag was added just above
	}
}
