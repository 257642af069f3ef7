package local

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/depotctl/depot/bus"
)

// linkPrefix begins the names of all veth ends that machines have on a host.
const linkPrefix = "dp-"

// hostLink is the name of a machine's veth end on the host: with 60 of the id's 80 random bits it fits the kernel's 15
// characters.
func hostLink(machine bus.MachineID) string {
	return linkPrefix + string(machine[max(0, len(machine)-12):])
}

// connectMachine makes the veth pair of a machine, whose first process is pid, with an unused /30 of the range: the
// preferred one if it can be had. Everything of an earlier boot is removed first.
func connectMachine(ctx context.Context, machine bus.MachineID, pid int, within, preferred netip.Prefix) (netip.Prefix, error) {
	name := hostLink(machine)
	if err := removeLink(name); err != nil {
		return netip.Prefix{}, err
	}
	link := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name, MTU: routeMTU()},
		PeerName:      machineLink,
		PeerNamespace: netlink.NsPid(pid), // made there: a crash cannot leave it here
	}
	if err := netlink.LinkAdd(link); err != nil {
		return netip.Prefix{}, fmt.Errorf("make veth pair %s: %w", name, err)
	}
	subnet, err := bringUp(link, machine, within, preferred)
	if err == nil {
		err = errors.Join(enableForwarding(), addRules(ctx, name, subnet))
	}
	if err != nil {
		return netip.Prefix{}, errors.Join(err, removeLink(name))
	}
	return subnet, nil
}

// disconnectMachine removes what connectMachine made. The rules go first: those without a link are everybody's to remove.
func disconnectMachine(ctx context.Context, machine bus.MachineID) error {
	name := hostLink(machine)
	return errors.Join(removeRules(ctx, func(link string) bool { return link == name }), removeLink(name))
}

// bringUp gives the host's end its address. The route to the /30 is the claim on it: the kernel admits only one, so that
// any number of providers may choose at once without knowing of each other.
func bringUp(link netlink.Link, machine bus.MachineID, within, preferred netip.Prefix) (netip.Prefix, error) {
	name := link.Attrs().Name
	disableIPv6(name)
	if err := netlink.LinkSetUp(link); err != nil {
		return netip.Prefix{}, fmt.Errorf("bring up %s: %w", name, err)
	}
	taken, err := takenSubnets(within)
	if err != nil {
		return netip.Prefix{}, err
	}
	for subnet := range candidates(machine, within, preferred) {
		if overlapsAny(taken, subnet) {
			continue
		}
		err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(subnet), Scope: netlink.SCOPE_LINK})
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("add route to %s: %w", subnet, err)
		}
		addr := &netlink.Addr{IPNet: ipNet(hostPrefix(subnet)), Flags: unix.IFA_F_NOPREFIXROUTE}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return netip.Prefix{}, fmt.Errorf("set address of %s: %w", name, err)
		}
		return subnet, nil
	}
	return netip.Prefix{}, bus.Faultf(bus.CodeNoCapacity, "all addresses of %s are taken", within).
		WithHint("delete machines, or give depot another private range with --subnet")
}

// hostPrefix is the host's address in a /30, machinePrefix the machine's.
func hostPrefix(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
}

func machinePrefix(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(hostPrefix(subnet).Addr().Next(), subnet.Bits())
}

const subnetBits = 30

// candidates yields the preferred /30, then all of the range, from a place that depends on the machine.
func candidates(machine bus.MachineID, within, preferred netip.Prefix) func(yield func(netip.Prefix) bool) {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(machine))
	count := uint32(1) << (subnetBits - within.Bits())
	base := binary.BigEndian.Uint32(within.Masked().Addr().AsSlice())
	return func(yield func(netip.Prefix) bool) {
		if preferred.IsValid() && within.Overlaps(preferred) && !yield(preferred) {
			return
		}
		for i := range count {
			var addr [4]byte
			binary.BigEndian.PutUint32(addr[:], base+4*((hash.Sum32()+i)%count))
			if !yield(netip.PrefixFrom(netip.AddrFrom4(addr), subnetBits)) {
				return
			}
		}
	}
}

// takenSubnets returns what the host routes inside the range. A wider route, such as a VPN's, does not count: the /30 goes
// before it.
func takenSubnets(within netip.Prefix) ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, 0)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var taken []netip.Prefix
	for _, route := range routes {
		if route.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(route.Dst.IP.To4())
		bits, _ := route.Dst.Mask.Size()
		if prefix := netip.PrefixFrom(addr, bits); ok && bits >= within.Bits() && within.Overlaps(prefix) {
			taken = append(taken, prefix)
		}
	}
	return taken, nil
}

func overlapsAny(prefixes []netip.Prefix, p netip.Prefix) bool {
	for _, other := range prefixes {
		if other.Overlaps(p) {
			return true
		}
	}
	return false
}

// routeMTU returns the MTU of the interface with the default route, or 0 for the kernel's own choice.
func routeMTU() int {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return 0
	}
	for _, route := range routes {
		if route.Dst != nil && !route.Dst.IP.IsUnspecified() || route.LinkIndex == 0 {
			continue
		}
		if link, err := netlink.LinkByIndex(route.LinkIndex); err == nil {
			return link.Attrs().MTU
		}
	}
	return 0
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	var missing netlink.LinkNotFoundError
	if err == nil || errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
		return nil // the kernel may have been first, after the end of the machine's namespace
	}
	return fmt.Errorf("remove %s: %w", name, err)
}

// enableForwarding lets the host pass on packets. It stays on: something else may have come to rely on it.
func enableForwarding() error {
	const file = "/proc/sys/net/ipv4/ip_forward"
	now, err := os.ReadFile(file)
	if err == nil && strings.TrimSpace(string(now)) == "0" {
		err = writeFile(file, "1")
	}
	if err != nil {
		return fmt.Errorf("enable forwarding: %w", err)
	}
	return nil
}
