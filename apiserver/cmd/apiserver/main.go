// Command apiserver decides: which machine a build gets, who may enter the bus, what a cloud-agent shall do. It also
// prepares an installation around a nats-server of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/depotctl/depot/bus"
)

var version = "devel" // set by the linker

// commands are those of an operator, in the order in which an installation needs them.
type commands struct {
	Init      initCommand      `cmd:"" help:"Make the installation's keys, and the configuration of its nats-server."`
	Bootstrap bootstrapCommand `cmd:"" help:"Make the first organization with its connection, default project and tokens."`
	Run       runCommand       `cmd:"" default:"withargs" help:"Serve (the default)."`
	Version   kong.VersionFlag `help:"Print the version."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	var c commands
	parsed := kong.Parse(&c, kong.Name("apiserver"), kong.Description("The API server of depot."), kong.Vars{"version": version},
		kong.BindTo(ctx, (*context.Context)(nil)))
	err := parsed.Run()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "apiserver:", err)
	if fault, ok := errors.AsType[*bus.Fault](err); ok && fault.Hint != "" {
		fmt.Fprintln(os.Stderr, "hint:", fault.Hint)
	}
	os.Exit(1)
}
