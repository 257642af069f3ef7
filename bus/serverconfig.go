package bus

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ServerOptions describe one external nats-server.
type ServerOptions struct {
	Name     string // of the server, unique in a cluster
	Listen   string // host:port for clients; no host means loopback
	Dir      string // state: accounts and streams
	CertFile string // PEM, with KeyFile: clients connect with tls://
	KeyFile  string
	Cluster  *ClusterOptions // nil for a single server
}

// ClusterOptions describe a server's part in a cluster. Servers authenticate each other with certificates of one CA.
type ClusterOptions struct {
	Listen   string   // host:port for the other servers
	Routes   []string // host:port of the other servers
	CAFile   string
	CertFile string
	KeyFile  string
}

// ServerConfig renders the configuration file of an external nats-server that trusts this installation. It holds no
// secret: JWTs in it are public, and the sentinel that bare tokens come in with may do nothing.
func (t *Trust) ServerConfig(o ServerOptions) (string, error) {
	if o.Name == "" || o.Dir == "" || o.Listen == "" {
		return "", errors.New("render server configuration: Name, Listen and Dir are required")
	}
	host, port, err := splitListen(o.Listen)
	if err != nil {
		return "", fmt.Errorf("render server configuration: %w", err)
	}
	jwts, err := t.infrastructureJWTs()
	if err != nil {
		return "", fmt.Errorf("render server configuration: %w", err)
	}
	var b confWriter
	b.line("# nats-server configuration of depot; made by depot, with nothing secret in it.")
	b.text("server_name", o.Name)
	b.text("listen", net.JoinHostPort(host, strconv.Itoa(port)))
	b.line("max_payload: %d", maxPayload)
	if o.CertFile != "" {
		b.line("tls {")
		b.text("  cert_file", o.CertFile)
		b.text("  key_file", o.KeyFile)
		b.line("}")
	}
	b.text("operator", t.operator)
	b.text("system_account", t.accounts[accountSYS].public)
	b.text("default_sentinel", t.sentinel)
	b.line("authorization { timeout: %g }", authTimeout)
	b.line("resolver {")
	b.text("  type", "full")
	b.text("  dir", filepath.Join(o.Dir, "jwt"))
	b.line("  allow_delete: true")
	b.text("  interval", "2m")
	b.line("}")
	b.line("resolver_preload {")
	for _, account := range slices.Sorted(maps.Keys(jwts)) {
		b.text("  "+account, jwts[account])
	}
	b.line("}")
	b.line("jetstream {")
	b.text("  store_dir", filepath.Join(o.Dir, "js"))
	b.line("  sync_interval: always")
	b.line("  max_file_store: %d", int64(maxStore))
	b.line("}")
	if o.Cluster != nil {
		if err := b.cluster(*o.Cluster); err != nil {
			return "", fmt.Errorf("render server configuration: %w", err)
		}
	}
	return b.String(), nil
}

type confWriter struct{ strings.Builder }

func (b *confWriter) line(format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }

func (b *confWriter) text(key, value string) { b.line("%s: %s", key, strconv.Quote(value)) }

func (b *confWriter) cluster(o ClusterOptions) error {
	host, _, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return fmt.Errorf("cluster listen address: %w", err)
	}
	secured := o.CAFile != "" && o.CertFile != "" && o.KeyFile != ""
	if ip := net.ParseIP(host); !secured && (ip == nil || !ip.IsLoopback()) {
		return errors.New("a cluster beyond loopback needs CAFile, CertFile and KeyFile: whoever joins it reads everything")
	}
	b.line("cluster {")
	b.text("  name", "depot")
	b.text("  listen", o.Listen)
	if secured {
		b.line("  tls {")
		b.text("    ca_file", o.CAFile)
		b.text("    cert_file", o.CertFile)
		b.text("    key_file", o.KeyFile)
		b.line("    verify: true")
		b.line("  }")
	}
	b.line("  routes: [")
	for _, r := range o.Routes {
		b.line("    %s", strconv.Quote("nats-route://"+r))
	}
	b.line("  ]")
	b.line("}")
	return nil
}
