package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/depotctl/depot/bus"
)

// ruleComment begins the comment of every rule, which ends with the name of the host's veth end: so rules are found again.
const ruleComment = "depot:"

// addRules lets a machine reach the network as its host does, and nobody else reach the machine. The rules stand first, so
// that a policy such as Docker's, which drops whatever it does not know, does not apply; and machines of different projects
// do not reach each other.
func addRules(ctx context.Context, link string, subnet netip.Prefix) error {
	comment := "-m comment --comment " + ruleComment + link
	return restoreRules(ctx, fmt.Sprintf(`*nat
-A POSTROUTING -s %[2]s ! -o %[1]s %[3]s -j MASQUERADE
COMMIT
*filter
-I FORWARD -o %[1]s %[3]s -j DROP
-I FORWARD -i %[1]s %[3]s -j ACCEPT
-I FORWARD -o %[1]s -m conntrack --ctstate RELATED,ESTABLISHED %[3]s -j ACCEPT
-I FORWARD -i %[1]s -o %[4]s+ %[3]s -j DROP
COMMIT
`, link, subnet, comment, linkPrefix))
}

// removeRules removes the rules of all veth ends for which match says so.
func removeRules(ctx context.Context, match func(link string) bool) error {
	for tries := 0; ; tries++ {
		script, err := removalScript(ctx, match)
		if err != nil || script == "" {
			return err
		}
		err = restoreRules(ctx, script)
		if err == nil || tries == 20 {
			return err
		}
		// Somebody else has removed one of them meanwhile, and so none of ours was.
		if err := pause(ctx, lockPause); err != nil {
			return err
		}
	}
}

func removalScript(ctx context.Context, match func(link string) bool) (string, error) {
	saved, err := run(ctx, "iptables-save", "")
	if err != nil {
		return "", err
	}
	var script, table strings.Builder
	for line := range strings.Lines(saved) {
		switch {
		case strings.HasPrefix(line, "*"):
			table.Reset()
			table.WriteString(line)
		case strings.HasPrefix(line, "COMMIT"):
			if strings.Count(table.String(), "\n") > 1 {
				script.WriteString(table.String() + line)
			}
		case strings.HasPrefix(line, "-A "):
			if link := ruleLink(line); link != "" && match(link) {
				table.WriteString("-D " + strings.TrimPrefix(line, "-A "))
			}
		}
	}
	return script.String(), nil
}

// ruleLink returns the veth end that a rule belongs to, or "".
func ruleLink(rule string) string {
	fields := strings.Fields(rule)
	i := slices.Index(fields, "--comment")
	if i < 0 || i+1 == len(fields) {
		return ""
	}
	link, ok := strings.CutPrefix(strings.Trim(fields[i+1], `"`), ruleComment)
	if !ok {
		return ""
	}
	return link
}

// removeStaleRules removes the rules of veth ends that are gone, whoever made them.
func removeStaleRules(ctx context.Context) error {
	return removeRules(ctx, func(link string) bool {
		_, err := netlink.LinkByName(link)
		return errors.As(err, new(netlink.LinkNotFoundError))
	})
}

func restoreRules(ctx context.Context, script string) error {
	_, err := run(ctx, "iptables-restore", script, "--noflush", "--wait", "5")
	return err
}

// run executes one of the programs of iptables, wherever Debian keeps it.
func run(ctx context.Context, name, stdin string, args ...string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		path = find([]string{"/usr/sbin", "/sbin"}, name)
	}
	if path == "" {
		return "", bus.Faultf(bus.CodeUnavailable, "this host lacks %s, which connects machines to the network", name).WithHint("install iptables")
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
