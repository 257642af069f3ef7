package depotctl

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/docker/buildx/commands"
	"github.com/docker/buildx/driver"
	"github.com/docker/cli/cli/command"
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto" // the vtproto codec, as docker-buildx itself imports it
	"github.com/spf13/cobra"

	"github.com/depotctl/depot/bus"
)

// How long buildx has to come back once its build must end. A BuildKit that hangs cannot hold the user.
const (
	endGrace     = 1500 * time.Millisecond // after the builder was lost
	cancelGrace  = 5 * time.Second         // after Ctrl-C: BuildKit cancels its steps
	lastWordTime = time.Second             // to ask the server why the builder was lost
)

// build is one run of `depotctl build`: buildx's command with our flags, our driver and our ends.
type build struct {
	app            *app
	options        options
	project        string
	acquireTimeout time.Duration

	reservation *reservation
	wanted      order

	mu    sync.Mutex
	links []*link
	lost  chan error      // capacity 1: why the build must end
	ctx   context.Context //nolint:containedctx // of the watchers: from run to its end
	tasks sync.WaitGroup
}

// runBuild hands args to buildx's own command tree.
func (a *app) runBuild(args []string) error {
	b := &build{app: a, options: a.options, lost: make(chan error, 1)}
	state, err := openState(a.stderr)
	if err != nil {
		return err
	}
	defer state.close()
	defer driver.Register(&factory{build: b})()
	root, cli, err := buildxCommands(state)
	if err != nil {
		return err
	}
	cmd, err := b.extend(root, cli)
	if err != nil {
		return err
	}
	root.SetArgs(append([]string{cmd.Name()}, args...))
	return translate(cli.Err(), root.Execute())
}

// buildxCommands returns buildx's command tree on our state directory.
func buildxCommands(state *stateDir) (*cobra.Command, *command.DockerCli, error) {
	for name, value := range map[string]string{"BUILDX_CONFIG": state.path, "BUILDX_BUILDER": builderName} {
		if err := os.Setenv(name, value); err != nil {
			return nil, nil, err
		}
	}
	cli, err := command.NewDockerCli()
	if err != nil {
		return nil, nil, fmt.Errorf("start buildx: %w", err)
	}
	root := commands.NewRootCmd("depotctl", false, cli)
	if err := root.PersistentFlags().MarkHidden("builder"); err != nil {
		return nil, nil, fmt.Errorf("start buildx: %w", err)
	}
	return root, cli, nil
}

// extend gives buildx's build command our flags and wraps what it does.
func (b *build) extend(root *cobra.Command, cli command.Cli) (*cobra.Command, error) {
	cmd, _, err := root.Find([]string{"build"})
	if err != nil {
		return nil, fmt.Errorf("start buildx: %w", err)
	}
	flags := cmd.Flags()
	flags.StringVar(&b.project, "project", "", `Project, by id or name (default: DEPOT_PROJECT_ID, then depot.json, then the organization's default)`)
	flags.StringVar(&b.options.Token, "token", b.options.Token, `Token; "-" reads it from standard input (default: DEPOT_TOKEN, then the configuration file)`)
	flags.StringVar(&b.options.Server, "server", b.options.Server, `Address of the depot server (default: DEPOT_SERVER, then the configuration file)`)
	flags.DurationVar(&b.acquireTimeout, "acquire-timeout", defaultAcquireTimeout, "How long to wait for a builder")
	inner := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := b.check(cmd, cli, args); err != nil {
			return err
		}
		return b.run(cmd, args, inner)
	}
	return cmd, nil
}

// check settles everything that can be wrong before a builder is asked for.
func (b *build) check(cmd *cobra.Command, cli command.Cli, args []string) error {
	flags, contextPath := cmd.Flags(), args[0]
	if flags.Changed("builder") {
		return failf(ExitUsage, "--builder has no meaning here: the project decides on the builder").hint("choose the project with --project")
	}
	if b.acquireTimeout < time.Second {
		return failf(ExitUsage, "--acquire-timeout is %s, want at least 1s", b.acquireTimeout)
	}
	if b.options.Token == stdinToken && readsStdin(flags, contextPath) {
		return failf(ExitUsage, "--token - and the build both read standard input").hint("set DEPOT_TOKEN instead")
	}
	b.options.warnVisibleToken(b.app.stderr)
	t, err := b.options.resolve(b.app.stdin)
	if err == nil {
		err = t.require()
	}
	if err != nil {
		return err
	}
	b.reservation = b.app.claim(t)
	project, err := projectFor(b.project, contextPath)
	if err != nil {
		return err
	}
	specs, err := flags.GetStringArray("platform")
	if err != nil {
		return err
	}
	archs, err := architectures(specs)
	if err != nil {
		return err
	}
	b.wanted = order{project: project, architectures: archs, acquireTimeout: b.acquireTimeout}
	return preflight(cmd.Context(), cli, flags, contextPath)
}

// order is called by the driver's factory, for each node: buildx has understood its flags.
func (b *build) order() { b.reservation.place(b.wanted) }

// run runs buildx until it ends by itself, or must.
func (b *build) run(cmd *cobra.Command, args []string, inner func(*cobra.Command, []string) error) error {
	interrupted := cmd.Context()
	ctx, cancel := context.WithCancelCause(interrupted)
	defer cancel(nil)
	b.ctx = ctx
	cmd.SetContext(ctx)
	b.tasks.Go(b.listen)

	done := make(chan error, 1)
	go func() { done <- inner(cmd, args) }() // outlives run only if buildx ignores its end for the grace; the process then exits
	err := b.await(interrupted, done, cancel)

	cancel(nil)
	b.tasks.Wait()
	b.report(err, interrupted.Err() != nil)
	if interrupted.Err() != nil && err != nil {
		return failf(ExitCanceled, "canceled").because(err)
	}
	return err
}

// await returns buildx's own error, or the reason why it had to end.
func (b *build) await(interrupted context.Context, done <-chan error, cancel context.CancelCauseFunc) error {
	select {
	case err := <-done:
		return b.judge(err)
	case lost := <-b.lost:
		cancel(lost)
		b.closeLinks()
		if err := wait(done, endGrace); err == nil {
			return nil // it had ended well at the same moment
		}
		return b.why(lost)
	case <-interrupted.Done():
		return wait(done, cancelGrace)
	}
}

// wait gives buildx a last chance to end by itself.
func wait(done <-chan error, grace time.Duration) error {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return context.Canceled
	}
}

// judge finds the cause behind an error of buildx: when the builder is gone, gRPC's words do not say so.
func (b *build) judge(err error) error {
	if err == nil {
		return nil
	}
	select {
	case lost := <-b.lost:
		return b.why(lost)
	default:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.links {
		if broken := l.pulse.broken(); broken != nil {
			return b.why(lostError(fmt.Sprintf("the connection to the %s ended: %v", l.name(), broken)))
		}
	}
	return err
}

// why asks the server once: it may know that the build was canceled, or what became of the machine.
func (b *build) why(lost error) error {
	ctx, cancel := context.WithTimeout(context.Background(), lastWordTime)
	defer cancel()
	view, err := b.reservation.lastWord(ctx)
	switch {
	case err != nil || !view.State.Ended() && view.State != bus.BuildWaiting:
		return lost
	case view.State == bus.BuildCanceled:
		return endError(view)
	case view.Reason != "":
		return lostError(view.Reason)
	}
	return lost
}

// guard watches a builder that was connected to until the build ends.
func (b *build) guard(l *link) {
	b.mu.Lock()
	b.links = append(b.links, l)
	b.mu.Unlock()
	b.tasks.Go(func() {
		if err := l.watch(b.ctx); err != nil {
			b.lose(lostError(err.Error()))
		}
	})
}

// listen waits for the server's word that a builder is no longer ours.
func (b *build) listen() {
	for {
		n := b.reservation.status.look("")
		if n.taken != nil {
			b.lose(n.taken)
			return
		}
		select {
		case <-n.changed:
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *build) lose(err error) {
	select {
	case b.lost <- err:
	default: // the first reason counts
	}
}

func (b *build) closeLinks() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.links {
		l.close()
	}
}

// report gives the server the client's word on the end.
func (b *build) report(err error, interrupted bool) {
	state, reason := bus.BuildSucceeded, ""
	switch {
	case err != nil && interrupted:
		state, reason = bus.BuildCanceled, "canceled by the client"
	case err != nil:
		state, reason = bus.BuildFailed, failureReason(err)
	}
	if err := b.reservation.finish(state, reason); err != nil {
		fmt.Fprintf(b.app.stderr, "depotctl: warning: the server could not be told that the build has %s; it will find out by itself\n", strings.ToLower(string(state)))
	}
}
