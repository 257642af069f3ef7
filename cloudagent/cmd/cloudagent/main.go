// Command cloudagent carries out the actions of one connection in its cloud account.
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
	"github.com/depotctl/depot/cloudagent"
	"github.com/depotctl/depot/cloudagent/local"
)

var version = "devel" // set by the linker

func main() {
	local.MaybeInit() // this executable is also the first process of each machine
	var f flags
	kong.Parse(&f, kong.Description("Carries out the actions of one connection in its cloud account."), defaults)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	err := run(ctx, f)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "cloudagent:", err)
	if fault, ok := errors.AsType[*bus.Fault](err); ok && fault.Hint != "" {
		fmt.Fprintln(os.Stderr, "hint:", fault.Hint)
	}
	os.Exit(1)
}

func run(ctx context.Context, f flags) error {
	cfg, err := f.config(ctx)
	if err != nil {
		return err
	}
	agent, err := cloudagent.New(cfg)
	if err != nil {
		return err
	}
	return agent.Run(ctx)
}
