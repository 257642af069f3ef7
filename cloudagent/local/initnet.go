package local

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// machineLink is the name of a machine's network interface, inside.
const machineLink = "eth0"

// linkSpec is the machine's side of its network, which the provider sends once it has made the host's side.
type linkSpec struct {
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway"`
}

// configureLink brings up loopback and the machine's end of its veth pair.
func configureLink(spec linkSpec) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	link, err := netlink.LinkByName(machineLink)
	if err != nil {
		return fmt.Errorf("find %s: %w", machineLink, err)
	}
	disableIPv6(machineLink)
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(spec.Address)}); err != nil {
		return fmt.Errorf("set address of %s: %w", machineLink, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", machineLink, err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: spec.Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("set default route: %w", err)
	}
	return nil
}

// disableIPv6 keeps the kernel from giving an interface an address that nobody uses. Hosts without IPv6 have no such file.
func disableIPv6(link string) { _ = writeFile("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", "1") }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
