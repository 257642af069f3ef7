package local

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

// echo listens on the host and answers with the address that it sees. The result is the port.
func echo(t *testing.T, host string) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", host+":0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go answer(listener)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	return port
}

func answer(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = conn.Read(make([]byte, 1))
			_, _ = conn.Write([]byte(conn.RemoteAddr().String()))
		}()
	}
}

// dial makes the machine dial. It reports the answer, and whether there was one.
func dial(t *testing.T, p *Provider, ref cloudagent.MachineRef, address string) (string, bool) {
	t.Helper()
	code, body := ask(t, p, ref, "/dial", "network", "tcp", "address", address, "say", "x")
	return body, code == http.StatusOK
}

func gateway(t *testing.T, p *Provider, ref cloudagent.MachineRef) string {
	t.Helper()
	addr := netip.MustParseAddr(machine(t, p, ref).Addresses[0])
	return addr.Prev().String()
}

func TestMachine_DoesNotReachTheHostsLoopback(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	create(t, p, spec)
	private, public := echo(t, "127.0.0.1"), echo(t, "0.0.0.0")
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "localhost", gateway(t, p, spec.MachineRef)} {
		_, reached := dial(t, p, spec.MachineRef, net.JoinHostPort(host, private))
		require.False(t, reached, "loopback through %s", host)
	}
	_, reached := dial(t, p, spec.MachineRef, net.JoinHostPort(gateway(t, p, spec.MachineRef), public))
	require.True(t, reached, "a service for everybody, which shows that the test can tell")
}

func TestMachine_ReachesTheNetworkAsItsHostDoesAndNobodyReachesIt(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec, other := newSpec(), newSpec()
	create(t, p, spec)
	create(t, p, other)
	away := goOutside(t)

	seen, reached := dial(t, p, spec.MachineRef, away.address+":80")
	require.True(t, reached, seen)
	require.True(t, strings.HasPrefix(seen, away.host+":"), "masqueraded as the host: %s", seen)

	listen := machine(t, p, other.MachineRef).Addresses[0] + ":8443"
	shell(t, p, other.MachineRef, "true") // it is up
	_, reached = dial(t, p, spec.MachineRef, listen)
	require.False(t, reached, "machines do not reach each other")
	response, err := http.Get("http://" + away.address + ":81/?address=" + listen)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusBadGateway, response.StatusCode, "nobody but the host reaches a machine")
}

// TestMachine_ReachesTheNetworkInABareNamespaceUnderDockersPolicy runs the test above where there is nothing but loopback,
// forwarding is off, and what no rule accepts is dropped.
func TestMachine_ReachesTheNetworkInABareNamespaceUnderDockersPolicy(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-ec", `
		ip link set lo up
		iptables -P FORWARD DROP
		echo 0 >/proc/sys/net/ipv4/ip_forward
		exec "$0" -test.v -test.run '^TestMachine_ReachesTheNetworkAsItsHostDoesAndNobodyReachesIt$'`, cfg.Tools.Machineagent)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "--- PASS", string(out))
}

const roleOutside = "outside"

// elsewhere is a host in a network namespace of its own, beside this one. It knows no way to machines but through us.
type elsewhere struct{ host, address string }

func goOutside(t *testing.T) elsewhere {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	third := strconv.Itoa(os.Getpid() % 250)
	away := elsewhere{host: "198.51." + third + ".1", address: "198.51." + third + ".2"} // RFC 5737, and some more of it
	cmd := exec.CommandContext(t.Context(), self, roleOutside, away.host)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	cmd.Stderr = t.Output()
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out-" + strconv.Itoa(cmd.Process.Pid)}, PeerName: machineLink, PeerNamespace: netlink.NsPid(cmd.Process.Pid)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		require.NoError(t, removeLink(link.Name))
	})
	require.NoError(t, netlink.LinkAdd(link))
	require.NoError(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(away.host + "/30"))}))
	require.NoError(t, netlink.LinkSetUp(link))
	_, err = stdin.Write([]byte("\n"))
	require.NoError(t, err)
	_, err = stdout.Read(make([]byte, 1)) // it listens
	require.NoError(t, err)
	return away
}

// outside answers on port 80 with the address that it sees, and dials for whoever asks on port 81. It returns when it cannot.
func outside(host string) {
	_, _ = os.Stdin.Read(make([]byte, 1)) // there is a link
	gateway := netip.MustParseAddr(host)
	err := configureLink(linkSpec{Address: netip.PrefixFrom(gateway.Next(), subnetBits), Gateway: gateway})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	listener, err := net.Listen("tcp", ":80")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	go answer(listener)
	asked, err := net.Listen("tcp", ":81")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	fmt.Fprintln(os.Stdout)
	err = http.Serve(asked, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := net.DialTimeout("tcp", r.FormValue("address"), time.Second)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_ = conn.Close()
	}))
	fmt.Fprintln(os.Stderr, err)
}

func TestMachine_FindsNamesAsItsHostDoes(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Nameservers = []string{"192.0.2.53", "192.0.2.54"}
	p := newProvider(t, cfg)
	spec := newSpec()
	create(t, p, spec)
	resolv := shell(t, p, spec.MachineRef, "cat /etc/resolv.conf")
	require.True(t, strings.HasPrefix(resolv, "nameserver 192.0.2.53\nnameserver 192.0.2.54\n"), resolv)
	host, err := os.ReadFile("/etc/resolv.conf")
	require.NoError(t, err)
	require.NotContains(t, string(host), "192.0.2.53")
}

func TestFindResolver_LeavesOutWhatAMachineCannotReach(t *testing.T) {
	t.Parallel()
	write := func(text string) string {
		file := t.TempDir() + "/resolv.conf"
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	stub := write("# by systemd-resolved\nnameserver 127.0.0.53\nnameserver ::1\noptions edns0 trust-ad\nsearch example.com example.org\n")
	upstream := write("nameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver 0.0.0.0\nnameserver 192.0.2.2\nsearch other\n")
	require.Equal(t, resolver{
		Nameservers: []string{"192.0.2.1", "192.0.2.2"}, Options: []string{"options edns0 trust-ad", "search example.com example.org"},
	}, findResolver([]string{stub, upstream}))
	require.Equal(t, []string{"192.0.2.1", "192.0.2.2"}, findResolver([]string{upstream, stub}).Nameservers)
	require.Empty(t, findResolver([]string{stub, stub + ".missing"}).Nameservers)
}

func TestConnectMachine_SharesARangeWithoutCollisionAndSaysWhenItIsFull(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Subnet = netip.MustParsePrefix("10.87.255.240/28") // four machines
	p := newProvider(t, cfg)
	cfg.Dir = t.TempDir()
	q := newProvider(t, cfg)
	addresses := map[string]bool{}
	var full error
	for i := range 5 {
		spec := newSpec()
		provider := []*Provider{p, q}[i%2]
		if err := provider.CreateMachine(t.Context(), spec, announced); err != nil {
			full = err
			break
		}
		addresses[machine(t, provider, spec.MachineRef).Addresses[0]] = true
	}
	require.ErrorIs(t, full, bus.CodeNoCapacity)
	require.Len(t, addresses, 4)
}

func TestCandidates_AreAllOfTheRangeThePreferredOneFirst(t *testing.T) {
	t.Parallel()
	within := netip.MustParsePrefix("10.1.2.0/27")
	preferred := netip.MustParsePrefix("10.1.2.12/30")
	seen := map[netip.Prefix]int{}
	var first netip.Prefix
	for subnet := range candidates(bus.NewMachineID(), within, preferred) {
		if !first.IsValid() {
			first = subnet
		}
		require.True(t, within.Overlaps(subnet))
		require.Equal(t, subnet, subnet.Masked())
		seen[subnet]++
	}
	require.Equal(t, preferred, first)
	require.Len(t, seen, 8)
	require.Equal(t, "10.1.2.13/30", hostPrefix(preferred).String())
	require.Equal(t, "10.1.2.14/30", machinePrefix(preferred).String())
}

func TestHostLink_FitsTheKernel(t *testing.T) {
	t.Parallel()
	require.Len(t, hostLink(bus.NewMachineID()), 15)
}

func TestRuleLink_FindsOnlyOurRules(t *testing.T) {
	t.Parallel()
	require.Equal(t, "dp-abc", ruleLink(`-A FORWARD -i dp-abc -m comment --comment "depot:dp-abc" -j ACCEPT`))
	require.Equal(t, "dp-abc", ruleLink(`-A FORWARD -i dp-abc -m comment --comment depot:dp-abc -j ACCEPT`))
	require.Empty(t, ruleLink(`-A FORWARD -i dp-abc -j ACCEPT`))
	require.Empty(t, ruleLink(`-A FORWARD -m comment --comment "others:dp-abc" -j ACCEPT`))
	require.Empty(t, ruleLink(`-A FORWARD -m comment --comment`))
}
