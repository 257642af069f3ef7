// Command depotd is the whole control plane in one process: bus, API server, cloud-agent, and machines on this host.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/depotctl/depot/cloudagent/local"
	"github.com/depotctl/depot/deploy/stack"
	"github.com/depotctl/depot/depotctl/config"
)

var version = "devel" // set by the linker

type flags struct {
	Dir              string           `env:"DEPOT_DIR" default:"/var/lib/depot" help:"State directory."`
	Listen           string           `env:"DEPOT_LISTEN" default:"127.0.0.1:4250" help:"Address of the bus, for depotctl."`
	AllowHostNetwork bool             `env:"DEPOT_ALLOW_HOST_NETWORK" help:"Start machines even without BuildKit's bridge network."`
	StopMachines     bool             `env:"DEPOT_STOP_MACHINES" help:"Stop all machines at the end; otherwise they go on, and the next depotd finds them."`
	MaxMachines      int              `env:"DEPOT_MAX_MACHINES" help:"How many machines may exist at a time; 0 means the default."`
	HTTPRegistry     []string         `env:"DEPOT_HTTP_REGISTRIES" placeholder:"HOST:PORT" help:"Registries that speak plain HTTP."`
	LogLevel         slog.Level       `env:"DEPOT_LOG_LEVEL" default:"warn" help:"debug, info, warn or error."`
	Version          kong.VersionFlag `help:"Print the version."`
}

func main() {
	local.MaybeInit() // this executable is also the first process of each machine
	var f flags
	kong.Parse(&f, kong.Description("depot's control plane in one process."), kong.Vars{"version": version})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := run(ctx, f); err != nil {
		fmt.Fprintln(os.Stderr, "depotd:", stack.Explain(err))
		os.Exit(1)
	}
}

func run(ctx context.Context, f flags) error {
	user, err := config.Invoker()
	if err != nil {
		return err
	}
	s, err := stack.New(stack.Config{
		Dir: f.Dir, Listen: f.Listen, Tools: local.FindTools(), AllowHostNetwork: f.AllowHostNetwork, StopMachines: f.StopMachines,
		Registries: f.HTTPRegistry, MaxMachines: f.MaxMachines, User: user, Version: version,
		Say: func(line string) { fmt.Println("depotd:", line) },
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: f.LogLevel})),
	})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
