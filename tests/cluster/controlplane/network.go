package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	// The second octet of a real node's network is chosen between these. Others rarely use this part of 10/8.
	firstNetwork, pastLastNetwork = 176, 240
	// networkAttempts until a network is found that no route of this machine has.
	networkAttempts = 64
	// nodeInterface is what the node calls its end of the cable to this machine.
	nodeInterface = "eth0"
	// linkPatience is how long the node waits for that cable.
	linkPatience = 20 * time.Second
	// routeProtocol tells our routes from those of others; nobody is known to use this number.
	routeProtocol = 177
)

// network of a cluster with a real node: 10.N.0.0/16, of which services, pods and the cable between this machine
// and the node have a part each.
type network struct{ octet byte }

func (n network) prefix(third byte, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n.octet, third, 0}), bits)
}

func (n network) whole() netip.Prefix    { return n.prefix(0, 16) }
func (n network) services() netip.Prefix { return n.prefix(0, 17) }
func (n network) pods() netip.Prefix     { return n.prefix(128, 18) }

// host is this machine's end of the cable, node the other.
func (n network) host() netip.Addr { return netip.AddrFrom4([4]byte{10, n.octet, 255, 1}) }
func (n network) node() netip.Addr { return netip.AddrFrom4([4]byte{10, n.octet, 255, 2}) }

// link is the name of this machine's end of the cable.
func (n network) link() string { return fmt.Sprintf("headway-%d", n.octet) }

// chooseNetwork finds one that no route of this machine leads into.
func chooseNetwork() (network, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return network{}, fmt.Errorf("reading this machine's routes: %w", err)
	}
	for range networkAttempts {
		chosen := network{byte(firstNetwork + rand.IntN(pastLastNetwork-firstNetwork))}
		if !isRouted(routes, chosen.whole()) {
			return chosen, nil
		}
	}
	return network{}, fmt.Errorf("this machine has routes into all networks between 10.%d.0.0 and 10.%d.0.0",
		firstNetwork, pastLastNetwork-1)
}

func isRouted(routes []netlink.Route, wanted netip.Prefix) bool {
	for _, route := range routes {
		if route.Dst == nil {
			continue
		}
		address, ok := netip.AddrFromSlice(route.Dst.IP.To4())
		ones, _ := route.Dst.Mask.Size()
		// The default route leads everywhere.
		if ok && ones > 0 && netip.PrefixFrom(address, ones).Overlaps(wanted) {
			return true
		}
	}
	return false
}

// reserve has this machine refuse the whole network where no cable leads into it: without, what is meant for a node
// that is down would leave by the default route, and whoever is there would answer. The metric of the route is the
// supervisor's process id.
func (n network) reserve(supervisor int) error {
	if err := netlink.RouteAdd(n.refusal(supervisor)); err != nil {
		return fmt.Errorf("reserving %s: %w", n.whole(), err)
	}
	return nil
}

func (n network) release(supervisor int) error {
	if err := netlink.RouteDel(n.refusal(supervisor)); err != nil {
		return fmt.Errorf("giving %s back: %w", n.whole(), err)
	}
	return nil
}

func (n network) refusal(supervisor int) *netlink.Route {
	return &netlink.Route{Dst: ipNet(n.whole()), Type: syscall.RTN_UNREACHABLE, Protocol: routeProtocol,
		Priority: supervisor}
}

// removeOldRoutes removes the refusals of supervisors that were killed: nobody else does.
func removeOldRoutes() error {
	wanted := &netlink.Route{Protocol: routeProtocol}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, wanted, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("looking for old routes: %w", err)
	}
	for _, old := range routes {
		if _, err := describeProcess(old.Priority); err == nil {
			continue
		}
		if err := netlink.RouteDel(&old); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("removing an old route to %s: %w", old.Dst, err)
		}
	}
	return nil
}

// plug lays the cable between this machine and the network namespace of a process, and the routes over it. The
// kernel takes all of it away with that namespace.
func (n network) plug(pid int) error {
	// A node that has just ended may not be gone altogether.
	if old, err := netlink.LinkByName(n.link()); err == nil {
		_ = netlink.LinkDel(old)
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = n.link()
	cable := &netlink.Veth{LinkAttrs: attributes, PeerName: nodeInterface, PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("making the interface %s: %w", n.link(), err)
	}
	if err := setUp(cable, netip.PrefixFrom(n.host(), 30)); err != nil {
		return err
	}
	for _, to := range []netip.Prefix{n.services(), n.pods()} {
		if err := netlink.RouteAdd(route(cable, to, n.node())); err != nil {
			return fmt.Errorf("adding a route to %s: %w", to, err)
		}
	}
	return nil
}

// plugged waits, within the node, for the cable, and sets up this end of it.
func (n network) plugged() error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("setting up the loopback interface: %w", err)
	}
	var cable netlink.Link
	for late := time.Now().Add(linkPatience); ; time.Sleep(probePause) {
		if cable, err = netlink.LinkByName(nodeInterface); err == nil {
			break
		}
		if time.Now().After(late) {
			return fmt.Errorf("no interface %s after %s: %w", nodeInterface, linkPatience, err)
		}
	}
	if err := setUp(cable, netip.PrefixFrom(n.node(), 30)); err != nil {
		return err
	}
	everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if err := netlink.RouteAdd(route(cable, everywhere, n.host())); err != nil {
		return fmt.Errorf("adding the default route: %w", err)
	}
	return nil
}

func setUp(link netlink.Link, address netip.Prefix) error {
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
		return fmt.Errorf("giving %s the address %s: %w", link.Attrs().Name, address, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting up %s: %w", link.Attrs().Name, err)
	}
	return nil
}

func route(over netlink.Link, to netip.Prefix, by netip.Addr) *netlink.Route {
	return &netlink.Route{LinkIndex: over.Attrs().Index, Dst: ipNet(to), Gw: by.AsSlice()}
}

func ipNet(of netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: of.Addr().AsSlice(), Mask: net.CIDRMask(of.Bits(), 32)}
}

// forward passes on what connects to listener, until that is closed. The API server listens on loopback only, and
// this is how the node and its pods reach it.
func forward(listener net.Listener, to string) {
	for {
		from, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(probePause)
			continue
		}
		go func() {
			defer from.Close()
			there, err := net.Dial("tcp", to)
			if err != nil {
				return
			}
			defer there.Close()
			done := make(chan struct{}, 2)
			pass := func(into, out net.Conn) {
				_, _ = io.Copy(into, out)
				_ = into.(*net.TCPConn).CloseWrite()
				done <- struct{}{}
			}
			go pass(there, from)
			go pass(from, there)
			<-done
			<-done
		}()
	}
}
