package bus

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
)

// UserData is what a cloud-agent gives a machine at its launch, as a JSON file that only root can read (EC2 user data,
// or a file of the local provider). It never crosses the bus: it holds the launch nonce.
type UserData struct {
	Machine      MachineID `json:"machine"`
	Attempt      int       `json:"attempt"`
	Architecture Arch      `json:"architecture"`
	Nonce        string    `json:"nonce"`           // Nonce.Reveal
	BusURL       string    `json:"bus_url"`         // nats:// or tls://
	BusSocket    string    `json:"bus_socket"`      // unix socket to dial instead of the URL's host; may be empty
	BusCA        string    `json:"bus_ca"`          // PEM roots for tls://; empty means the system's
	StateDir     string    `json:"state_dir"`       // root disk: identity keys
	CacheDir     string    `json:"cache_dir"`       // cache volume: BuildKit's root
	Listen       string    `json:"listen"`          // host:port of the front
	Addresses    []string  `json:"addresses"`       // host:port to advertise, in order; empty means Listen
	Attestor     string    `json:"attestor"`        // "nonce" or "aws"
	Buildkitd    string    `json:"buildkitd"`       // path of the daemon
	Runc         string    `json:"runc"`            // path of the OCI runtime
	CNIDir       string    `json:"cni_dir"`         // directory of buildkit-cni-bridge, -loopback, -host-local, -firewall
	HostNetwork  bool      `json:"host_network"`    // RUN steps use the machine's own network: no CNI
	BuildSubnet  string    `json:"build_subnet"`    // CIDR of the bridge for RUN steps
	Nameservers  []string  `json:"nameservers"`     // for RUN steps, where the host's own cannot be reached; may be empty
	Registries   []string  `json:"http_registries"` // host:port of registries that speak plain HTTP
}

// Validate checks what every machine needs.
func (u UserData) Validate() error {
	errs := []error{
		u.Machine.Validate(), u.Architecture.Validate(), validateAttempt(u.Attempt),
		required("nonce", u.Nonce), required("bus_url", u.BusURL), required("state_dir", u.StateDir), required("cache_dir", u.CacheDir),
		required("listen", u.Listen), required("attestor", u.Attestor), required("buildkitd", u.Buildkitd),
	}
	if _, _, err := net.SplitHostPort(u.Listen); u.Listen != "" && err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// String names the machine and no secret.
func (u UserData) String() string { return fmt.Sprintf("user data of %s.%d", u.Machine, u.Attempt) }

// Format prints String for every verb: the nonce is in the JSON, and nowhere else.
func (u UserData) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(u.String())) }

// LogValue logs String.
func (u UserData) LogValue() slog.Value { return slog.StringValue(u.String()) }
