package depotctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/depotctl/config"
)

// commandLine is the grammar of depotctl. What comes after build belongs to buildx, flags and help included.
type commandLine struct {
	options

	Build      buildCommand      `cmd:"" passthrough:"" aliases:"b" help:"Build an image: takes every flag of docker buildx build."`
	Init       initCommand       `cmd:"" help:"Write depot.json, which ties this directory to a project."`
	Login      loginCommand      `cmd:"" help:"Check a token and store it."`
	Logout     logoutCommand     `cmd:"" help:"Forget the stored token."`
	Projects   projectsCommand   `cmd:"" help:"Make and list projects."`
	Tokens     tokensCommand     `cmd:"" help:"Make, list and revoke tokens."`
	List       listCommand       `cmd:"" help:"List builds and machines."`
	Cancel     cancelCommand     `cmd:"" help:"Cancel a build, wherever it was started."`
	Completion completionCommand `cmd:"" help:"Print a completion script for a shell."`
	Version    versionCommand    `cmd:"" help:"Show the versions of client and server."`
	Help       helpCommand       `cmd:"" help:"Show help about a command, or about exit-codes."`
}

// buildCommand passes everything on.
type buildCommand struct {
	Args []string `arg:"" optional:""`
}

// Run runs buildx.
func (c *buildCommand) Run(a *app) error { return a.runBuild(c.Args) }

// app is one run of the program.
type app struct {
	options options
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	ctx     context.Context //nolint:containedctx // the life of the program: ends at the first signal
	early   *reservation    // made on a guess, while the command line is still being read; may be nil
}

// Main runs depotctl with its arguments and returns the exit code. The first Ctrl-C ends what runs in good order, the
// second at once.
func Main(args []string) int {
	// Nothing of ours writes to the standard logger. The HTTP/2 server inside BuildKit's session does, when a build's last
	// connection ends while it still has something to say; that is nobody's news, and spoils --quiet.
	log.SetOutput(io.Discard)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, ctx: ctx}
	done := make(chan ExitCode, 1)
	go func() { done <- a.main(args) }() // ends with the process
	for n := 0; ; n++ {
		select {
		case code := <-done:
			return int(code)
		case <-signals:
			if n > 0 {
				return int(ExitCanceled)
			}
			cancel()
		}
	}
}

// main is Main without signals.
func (a *app) main(args []string) ExitCode {
	a.early = a.guess(args)
	err := a.run(args)
	if a.early != nil {
		a.early.close()
	}
	if quiet, ok := errors.AsType[said](err); ok {
		return quiet.code
	}
	return report(a.stderr, err)
}

func (a *app) run(args []string) error {
	if len(args) > 0 && strings.HasPrefix(args[0], "__complete") {
		return a.complete(args)
	}
	var line commandLine
	helped := false
	parser, err := newParser(&line, a.stdout, a.stderr, func(int) { helped = true })
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if helped {
		return nil
	}
	if err != nil {
		return failf(ExitUsage, "%v", err).hint("see `depotctl --help`").because(err)
	}
	a.options = line.options
	return parsed.Run(a)
}

// newParser makes the parser. exit is called instead of os.Exit once help is printed.
func newParser(line *commandLine, stdout, stderr io.Writer, exit func(int)) (*kong.Kong, error) {
	return kong.New(line,
		kong.Name("depotctl"),
		kong.Description("Builds container images on warm BuildKit builders in your own cloud account."),
		kong.Vars{"default_server": config.DefaultServer},
		kong.Writers(stdout, stderr),
		kong.Exit(exit),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
}

// guess begins to prepare a build before the command line is understood: server and token are nearly always where they
// were last time. A guess that turns out wrong is thrown away by claim.
func (a *app) guess(args []string) *reservation {
	if len(args) < 2 || args[0] != "build" && args[0] != "b" {
		return nil
	}
	var o options
	for i, arg := range args[1:] {
		name, value, joined := strings.Cut(arg, "=")
		if !joined && i+2 < len(args) {
			value = args[i+2]
		}
		switch name {
		case "--help", "-h":
			return nil
		case "--server":
			o.Server = value
		case "--token":
			o.Token = value
		}
	}
	if o.Token == stdinToken {
		return nil // read once, and only when it is certain that it is one
	}
	t, err := o.resolve(a.stdin)
	if err != nil || t.token.IsZero() {
		return nil // said by whoever needs it
	}
	return newReservation(t)
}

// claim returns a reservation at t: the early one, if it was made for t.
func (a *app) claim(t target) *reservation {
	early := a.early
	a.early = nil
	if early != nil && early.target == t {
		return early
	}
	if early != nil {
		early.close()
	}
	return newReservation(t)
}

// connect opens a connection for one request or two.
func (a *app) connect() (*bus.Conn, target, error) {
	a.options.warnVisibleToken(a.stderr)
	t, err := a.options.resolve(a.stdin)
	if err != nil {
		return nil, t, err
	}
	conn, err := t.connect(a.ctx)
	return conn, t, err
}

// ask sends one request on a connection of its own.
func ask[Req, Resp bus.Message](a *app, doing string, s bus.Service[Req, Resp], request Req) (Resp, error) {
	var none Resp
	if err := request.Validate(); err != nil {
		return none, failf(ExitUsage, "%s: %s", doing, oneLine(err.Error())).because(err)
	}
	conn, t, err := a.connect()
	if err != nil {
		return none, err
	}
	defer conn.Close() // the answer is here, nothing is in flight
	reply, err := call(a.ctx, s, conn, request)
	return reply, explain(doing, t.server, err)
}

// helpCommand shows help.
type helpCommand struct {
	Topic []string `arg:"" optional:"" help:"A command, or exit-codes."`
}

// Run prints the exit codes, or what --help prints.
func (c *helpCommand) Run(a *app) error {
	if len(c.Topic) == 1 && c.Topic[0] == "exit-codes" {
		return printExitCodes(a.stdout)
	}
	return a.run(append(c.Topic, "--help"))
}

// versionCommand shows versions.
type versionCommand struct{}

// Run prints the client's version, and the server's if it can be asked.
func (c *versionCommand) Run(a *app) error {
	fmt.Fprintf(a.stdout, "depotctl %s (protocol %d)\n", Version(), bus.ProtocolVersion)
	conn, t, err := a.connect()
	if err != nil {
		fmt.Fprintf(a.stdout, "server   %s: %v\n", t.server, err)
		return nil
	}
	defer conn.Close() // nothing is in flight
	welcome := conn.Welcome()
	fmt.Fprintf(a.stdout, "server   %s (protocol %d) at %s\n", welcome.Version, welcome.Protocol, t.server)
	return nil
}
