package local

import (
	"net/netip"
	"os"
	"strings"
)

// resolvers are the files that may name the host's nameservers. The second is where systemd-resolved, whose own address is
// one of loopback, keeps those that it asks.
var resolvers = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// resolver is what a machine's resolv.conf is made from.
type resolver struct {
	Nameservers []string
	Options     []string // the lines search, domain and options
}

// findResolver reads the host's configuration and leaves out what a machine cannot reach: the host's loopback. It has no
// nameservers when the host names no others.
func findResolver(files []string) resolver {
	var found resolver
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		r := parseResolver(string(data))
		if len(found.Options) == 0 {
			found.Options = r.Options
		}
		if len(r.Nameservers) > 0 {
			found.Nameservers = r.Nameservers
			break
		}
	}
	return found
}

func parseResolver(text string) resolver {
	var r resolver
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			// IPv6 is left out because machines have none.
			if addr, err := netip.ParseAddr(fields[1]); err == nil && addr.Is4() && !addr.IsLoopback() && !addr.IsUnspecified() {
				r.Nameservers = append(r.Nameservers, addr.String())
			}
		case "search", "domain", "options":
			r.Options = append(r.Options, strings.Join(fields, " "))
		}
	}
	return r
}

func (r resolver) render() string {
	var b strings.Builder
	for _, ns := range r.Nameservers {
		b.WriteString("nameserver " + ns + "\n")
	}
	for _, line := range r.Options {
		b.WriteString(line + "\n")
	}
	return b.String()
}
