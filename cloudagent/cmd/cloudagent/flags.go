package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/alecthomas/kong"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
	"github.com/depotctl/depot/cloudagent/local"
)

type flags struct {
	Server        string     `env:"DEPOT_SERVER" default:"nats://127.0.0.1:4250" help:"Address of the bus: nats://host:port or tls://host:port."`
	CAFile        string     `env:"DEPOT_CA_FILE" placeholder:"FILE" help:"PEM roots for tls://; default: the system's."`
	Token         string     `env:"DEPOT_TOKEN" required:"" placeholder:"FILE" help:"File with the connection's token; - reads standard input."`
	Provider      string     `env:"DEPOT_PROVIDER" enum:"local" default:"local" help:"The cloud: local."`
	MaxMachines   int        `env:"DEPOT_MAX_MACHINES" default:"${max_machines}" help:"How many machines may exist at a time."`
	MaxVolumeGB   int        `env:"DEPOT_MAX_VOLUME_GB" name:"max-volume-gb" default:"${max_volume_gb}" help:"How large a volume may be."`
	Architectures []bus.Arch `env:"DEPOT_ARCHITECTURES" placeholder:"ARCH" help:"What may be launched; default: this host's."`
	LogLevel      slog.Level `env:"DEPOT_LOG_LEVEL" default:"info" help:"debug, info, warn or error."`

	Local   localFlags       `embed:"" group:"Provider local:"`
	Version kong.VersionFlag `help:"Print the version."`
}

type localFlags struct {
	State            string       `env:"DEPOT_STATE" default:"/var/lib/depot/local" help:"State directory."`
	AllowHostNetwork bool         `env:"DEPOT_ALLOW_HOST_NETWORK" help:"Start machines even without BuildKit's bridge network."`
	Subnet           netip.Prefix `env:"DEPOT_SUBNET" default:"${subnet}" help:"Private range of the machines' addresses."`
	Nameserver       []string     `env:"DEPOT_NAMESERVERS" placeholder:"ADDRESS" help:"Nameservers of machines; default: the host's."`
	HTTPRegistry     []string     `env:"DEPOT_HTTP_REGISTRIES" placeholder:"HOST:PORT" help:"Registries that speak plain HTTP."`
	Machineagent     string       `env:"DEPOT_MACHINEAGENT" placeholder:"PATH" help:"Default: beside this program, in $$DEPOT_TOOLS or in PATH; so for the next three."`
	Buildkitd        string       `env:"DEPOT_BUILDKITD" placeholder:"PATH"`
	Runc             string       `env:"DEPOT_RUNC" placeholder:"PATH"`
	CNIDir           string       `env:"DEPOT_CNI_DIR" name:"cni-dir" placeholder:"DIR" help:"Directory of buildkit-cni-bridge and its companions."`
}

// defaults are kong's variables.
var defaults = kong.Vars{
	"version": version, "subnet": local.DefaultSubnet,
	"max_machines": fmt.Sprint(cloudagent.DefaultMaxMachines), "max_volume_gb": fmt.Sprint(cloudagent.DefaultMaxVolumeGB),
}

func (f flags) config(ctx context.Context) (cloudagent.Config, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: f.LogLevel}))
	token, err := cloudagent.ReadToken(f.Token, os.Stdin)
	if err != nil {
		return cloudagent.Config{}, err
	}
	var roots []byte
	if f.CAFile != "" {
		if roots, err = os.ReadFile(f.CAFile); err != nil {
			return cloudagent.Config{}, fmt.Errorf("read --ca-file: %w", err)
		}
	}
	provider, err := f.Local.provider(ctx, f.Server, log)
	if err != nil {
		return cloudagent.Config{}, err
	}
	if len(f.Architectures) == 0 {
		f.Architectures = provider.Architectures()
	}
	return cloudagent.Config{
		Bus:      bus.Config{URL: f.Server, CAFile: f.CAFile, Token: token, Log: log},
		BusCA:    string(roots),
		Provider: provider,
		Limits:   cloudagent.Limits{MaxMachines: f.MaxMachines, MaxVolumeGB: f.MaxVolumeGB, Architectures: f.Architectures},
		Version:  version,
		Log:      log,
	}, nil
}

func (f localFlags) provider(ctx context.Context, server string, log *slog.Logger) (*local.Provider, error) {
	dial, err := local.DialURL(server)
	if err != nil {
		return nil, err
	}
	tools := local.FindTools()
	for _, override := range []struct {
		path *string
		by   string
	}{{&tools.Machineagent, f.Machineagent}, {&tools.Buildkitd, f.Buildkitd}, {&tools.Runc, f.Runc}, {&tools.CNIDir, f.CNIDir}} {
		if override.by == "" {
			continue
		}
		if *override.path, err = filepath.Abs(override.by); err != nil {
			return nil, err
		}
	}
	if err := tools.Check(f.AllowHostNetwork); err != nil {
		log.WarnContext(ctx, "machines cannot be started until this is mended", slog.Any("err", err))
	}
	return local.New(local.Config{
		Dir: f.State, Tools: tools, DialBus: dial, AllowHostNetwork: f.AllowHostNetwork, Subnet: f.Subnet,
		Nameservers: f.Nameserver, Registries: f.HTTPRegistry, Log: log,
	})
}
