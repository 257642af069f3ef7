package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"text/template"
)

// Config of a Daemon. All paths are absolute.
type Config struct {
	Buildkitd string // the daemon's program; required
	Runc      string // the OCI runtime; empty means runc from PATH
	CNIDir    string // holds buildkit-cni-bridge, -loopback, -host-local and -firewall; required unless HostNetwork
	StateDir  string // socket, configuration and log; required
	CacheDir  string // BuildKit's root: the cache volume; required

	HostNetwork  bool     // RUN steps use the machine's own network
	Bridge       string   // name of the bridge for RUN steps, at most 15 characters; default depot0
	BridgeSubnet string   // CIDR of that bridge; default 10.10.0.0/16
	Nameservers  []string // for RUN steps; empty means the machine's own
	Registries   []string // host:port of registries that speak plain HTTP
	Platforms    []string // to be claimed beside the processor's own
	CgroupParent string   // one name, of this machine alone; default depot

	Log *slog.Logger // default: nowhere
}

const (
	socketName = "buildkitd.sock"
	configName = "buildkitd.toml"
	logName    = "buildkitd.log"

	// maxSocketPath is the room that Linux has for a unix socket's path.
	maxSocketPath = 107
)

// oneName keeps the cleaning up within one directory: what it matches is killed.
var oneName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

func (c Config) withDefaults() Config {
	if c.Runc == "" {
		c.Runc = "runc"
	}
	if c.Bridge == "" {
		c.Bridge = "depot0"
	}
	if c.BridgeSubnet == "" {
		c.BridgeSubnet = "10.10.0.0/16"
	}
	if c.CgroupParent == "" {
		c.CgroupParent = "depot"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate names everything that is wrong.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	for _, p := range []struct{ name, path string }{{"Buildkitd", c.Buildkitd}, {"StateDir", c.StateDir}, {"CacheDir", c.CacheDir}} {
		if !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s %q is not an absolute path", p.name, p.path))
		}
	}
	if !c.HostNetwork && !filepath.IsAbs(c.CNIDir) {
		errs = append(errs, fmt.Errorf("CNIDir %q is not an absolute path (needed unless RUN steps may use the host's network)", c.CNIDir))
	}
	if n := len(c.socket()); n > maxSocketPath {
		errs = append(errs, fmt.Errorf("StateDir: the path of its socket has %d characters, at most %d are possible: %s", n, maxSocketPath, c.socket()))
	}
	if len(c.Bridge) > 15 {
		errs = append(errs, fmt.Errorf("bridge name %q has more than 15 characters", c.Bridge))
	}
	if !oneName.MatchString(c.CgroupParent) {
		errs = append(errs, fmt.Errorf("CgroupParent %q is not one name of a-z, 0-9 and -", c.CgroupParent))
	}
	return errors.Join(errs...)
}

func (c Config) socket() string { return filepath.Join(c.StateDir, socketName) }

// toml is buildkitd's configuration. Strings and lists of TOML are those of JSON.
var toml = template.Must(template.New("").Funcs(template.FuncMap{"q": quote}).Parse(`# Written by machine-agent at each launch.
root = {{q .CacheDir}}
insecure-entitlements = []
provenanceEnvDir = {{q (print .StateDir "/provenance.d")}}

[log]
  format = "text"
  level = "info"

[grpc]
  address = [{{q (print "unix://" .Socket)}}]

[otel]
  socketPath = {{q (print .StateDir "/otel.sock")}}

[cdi]
  disabled = true

[worker.containerd]
  enabled = false

[worker.oci]
  enabled = true
  binary = {{q .Runc}}
{{- if .Platforms}}
  platforms = {{q .Platforms}}
{{- end}}
  defaultCgroupParent = {{q .CgroupParent}}
{{- if .HostNetwork}}
  networkMode = "host"
{{- else}}
  networkMode = "bridge"
  bridgeName = {{q .Bridge}}
  bridgeSubnet = {{q .BridgeSubnet}}
  cniBinaryPath = {{q .CNIDir}}
  cniPoolSize = 2
{{- end}}
  # The volume is the cache's alone: most of it may be used, a tenth stays free, and a tenth is always worth keeping.
  gc = true
  reservedSpace = "10%"
  maxUsedSpace = "85%"
  minFreeSpace = "10%"
{{- if .Nameservers}}

[dns]
  nameservers = {{q .Nameservers}}
{{- end}}
{{- range .Registries}}

[registry.{{q .}}]
  http = true
{{- end}}
`))

func quote(v any) (string, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return string(bytes.TrimSpace(out.Bytes())), err
}

// render returns the content of buildkitd.toml.
func (c Config) render() ([]byte, error) {
	var out bytes.Buffer
	if err := toml.Execute(&out, struct {
		Config
		Socket string
	}{c, c.socket()}); err != nil {
		return nil, fmt.Errorf("write %s: %w", configName, err)
	}
	return out.Bytes(), nil
}

// environment is all that the daemon and its children inherit. CNI plugins are found in PATH, as is what they call.
func (c Config) environment() []string {
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if c.CNIDir != "" {
		path = c.CNIDir + ":" + path
	}
	return []string{"PATH=" + path, "HOME=" + c.StateDir}
}
