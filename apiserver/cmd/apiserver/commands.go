package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/depotctl/depot/apiserver"
	"github.com/depotctl/depot/bus"
)

// keys is where the installation's keys are.
type keys struct {
	Trust string `env:"DEPOT_TRUST" default:"/etc/depot/trust" help:"Directory of the installation's keys."`
}

// server is how the bus is reached.
type server struct {
	keys     `embed:""`
	Server   string     `env:"DEPOT_SERVER" default:"nats://127.0.0.1:4250" help:"Address of the bus: nats://host:port or tls://host:port."`
	CAFile   string     `env:"DEPOT_CA_FILE" placeholder:"FILE" help:"PEM roots for tls://; default: the system's."`
	Replicas int        `env:"DEPOT_REPLICAS" enum:"1,3" default:"1" help:"Copies that a cluster of nats-servers keeps of everything: 1 or 3."`
	LogLevel slog.Level `env:"DEPOT_LOG_LEVEL" default:"info" help:"debug, info, warn or error."`
}

func (f server) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: f.LogLevel}))
}

func (f server) open(ctx context.Context) (*bus.Control, error) {
	trust, err := bus.LoadTrust(f.Trust)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w\nhint: make the keys with: apiserver init --trust %s", err, f.Trust)
	}
	if err != nil {
		return nil, err
	}
	return bus.OpenControl(ctx, bus.ControlConfig{
		URL: f.Server, CAFile: f.CAFile, Trust: trust, Replicas: f.Replicas, Name: "apiserver", Version: version, Log: f.log(),
	})
}

type runCommand struct {
	server  `embed:""`
	Acquire time.Duration `env:"DEPOT_ACQUIRE_TIMEOUT" default:"5m" help:"How long a build waits for its builders, unless its client says otherwise."`
	Build   time.Duration `env:"DEPOT_BUILD_TIMEOUT" default:"6h" help:"How long a build may take, unless its client says otherwise."`
	Volume  int           `env:"DEPOT_VOLUME_GB" name:"volume-gb" default:"50" help:"Size of a new cache volume."`
}

// Run serves until the signal.
func (f runCommand) Run(ctx context.Context) (err error) {
	control, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	s, err := apiserver.New(apiserver.Config{
		Control: control, Version: version, VolumeGB: f.Volume, Log: f.log(),
		Timeouts: apiserver.Timeouts{Acquire: f.Acquire, Build: f.Build},
	})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

type initCommand struct {
	keys   `embed:""`
	Config string `env:"DEPOT_NATS_CONFIG" default:"/etc/depot/nats-server.conf" help:"Configuration file to write."`
	Name   string `env:"DEPOT_NATS_NAME" default:"depot" help:"Name of the nats-server."`
	Listen string `env:"DEPOT_LISTEN" default:"127.0.0.1:4250" help:"Address for clients. Give it TLS before it leaves loopback."`
	State  string `env:"DEPOT_NATS_STATE" default:"/var/lib/depot/nats" help:"State directory of the nats-server."`
	Cert   string `env:"DEPOT_NATS_CERT" placeholder:"FILE" help:"PEM certificate for tls://, with --key."`
	Key    string `env:"DEPOT_NATS_KEY" placeholder:"FILE" help:"PEM key of the certificate."`
}

// Run keeps keys that exist, so that it may be run again to write another configuration.
func (f initCommand) Run() error {
	trust, err := bus.LoadTrust(f.Trust)
	if errors.Is(err, fs.ErrNotExist) {
		if trust, err = bus.NewTrust(); err == nil {
			err = trust.Save(f.Trust)
		}
	}
	if err != nil {
		return err
	}
	config, err := trust.ServerConfig(bus.ServerOptions{Name: f.Name, Listen: f.Listen, Dir: f.State, CertFile: f.Cert, KeyFile: f.Key})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.Config), 0o755); err != nil { //nolint:gosec // a configuration without secrets
		return err
	}
	if err := os.WriteFile(f.Config, []byte(config), 0o644); err != nil { //nolint:gosec // as above
		return err
	}
	_, err = fmt.Fprintf(os.Stdout, "keys:           %s\nconfiguration:  %s\nnext:           nats-server -c %s\n                apiserver bootstrap --trust %s\n", f.Trust, f.Config, f.Config, f.Trust)
	return err
}

type bootstrapCommand struct {
	server       `embed:""`
	Organization string `env:"DEPOT_ORGANIZATION" default:"default" help:"Name of the organization."`
	Connection   string `env:"DEPOT_CONNECTION" default:"local" help:"Name of its first connection."`
	Project      string `env:"DEPOT_PROJECT" default:"default" help:"Name of its default project."`
	UserToken    string `env:"DEPOT_USER_TOKEN_FILE" default:"user.token" placeholder:"FILE" help:"File for the first user's token; one that exists is kept."`
	AgentToken   string `env:"DEPOT_AGENT_TOKEN_FILE" default:"agent.token" placeholder:"FILE" help:"File for the cloud-agent's token; one that exists is kept."`
}

// Run may be repeated: what exists is kept.
func (f bootstrapCommand) Run(ctx context.Context) (err error) {
	user, err := keepToken(f.UserToken)
	if err != nil {
		return err
	}
	agent, err := keepToken(f.AgentToken)
	if err != nil {
		return err
	}
	control, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	made, err := apiserver.Bootstrap(ctx, control, apiserver.BootstrapConfig{
		Organization: f.Organization, Connection: f.Connection, Project: f.Project, UserToken: user, AgentToken: agent,
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(os.Stdout, "organization:   %s\nconnection:     %s\nproject:        %s\nnext:           cloudagent --token %s\n                depotctl login --token - < %s\n",
		made.Organization, made.Connection, made.Project, f.AgentToken, f.UserToken)
	return err
}

// keepToken returns the token in a file, which is made, for its owner only, if it is not there.
func keepToken(path string) (bus.Token, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		token, err := bus.ParseToken(string(text))
		if err != nil {
			return bus.Token{}, fmt.Errorf("%s: %w", path, err)
		}
		return token, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return bus.Token{}, err
	}
	token := bus.NewToken()
	return token, os.WriteFile(path, []byte(token.Reveal()+"\n"), 0o600)
}
