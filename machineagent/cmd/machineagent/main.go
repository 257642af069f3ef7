// Command machineagent serves builds on one machine. See package machineagent.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/machineagent"
)

var version = "devel" // set by the linker

type flags struct {
	UserData string           `name:"user-data" env:"DEPOT_USER_DATA" required:"" placeholder:"FILE" help:"JSON file with what the machine was launched with."`
	LogLevel slog.Level       `env:"DEPOT_LOG_LEVEL" default:"info" help:"Least level of what is logged: debug, info, warn or error."`
	Version  kong.VersionFlag `help:"Print the version and exit."`
}

func main() {
	var f flags
	kong.Parse(&f, kong.Description("Serves builds on one machine."), kong.Vars{"version": version})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := run(ctx, f); err != nil {
		fmt.Fprintln(os.Stderr, "machineagent:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, f flags) error {
	if info, err := os.Stat(f.UserData); err == nil && info.Mode().Perm()&0o077 != 0 {
		return errors.New(f.UserData + " holds a secret and can be read by others; run chmod 600 on it")
	}
	text, err := os.ReadFile(f.UserData)
	if err != nil {
		return err
	}
	var data bus.UserData
	if err := json.Unmarshal(text, &data); err != nil {
		return fmt.Errorf("read %s: %w", f.UserData, err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: f.LogLevel}))
	a, err := machineagent.New(machineagent.Config{UserData: data, Version: version, Log: log})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}
