package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports lie below the range from which Linux takes those of outgoing connections (32768 and up): a component
// that is restarted finds its port still free.
const (
	firstPort    = 20000
	pastLastPort = 32000
	portAttempts = 1000
)

// ports of the components, all on 127.0.0.1.
type ports struct {
	Etcd, EtcdPeer, APIServer, ControllerManager, Scheduler, Kwok int
}

func (p ports) etcdURL() string { return "https://" + loopback(p.Etcd) }
func (p ports) apiURL() string  { return "https://" + loopback(p.APIServer) }

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// choosePorts finds free ones. They are let go again before the components take them; chosen at random, two
// clusters that start together hardly meet.
func choosePorts() (ports, error) {
	var chosen ports
	var listeners []net.Listener
	defer func() {
		for _, listener := range listeners {
			listener.Close()
		}
	}()
	for _, port := range []*int{&chosen.Etcd, &chosen.EtcdPeer, &chosen.APIServer, &chosen.ControllerManager,
		&chosen.Scheduler, &chosen.Kwok} {
		listener, err := listenAnywhere()
		if err != nil {
			return ports{}, err
		}
		// Held until all are chosen, so that they differ.
		listeners = append(listeners, listener)
		*port = listener.Addr().(*net.TCPAddr).Port
	}
	return chosen, nil
}

func listenAnywhere() (net.Listener, error) {
	last := errors.New("none tried")
	for range portAttempts {
		listener, err := net.Listen("tcp4", loopback(firstPort+rand.IntN(pastLastPort-firstPort)))
		if err == nil {
			return listener, nil
		}
		last = err
	}
	return nil, fmt.Errorf("no free port between %d and %d on 127.0.0.1: %w", firstPort, pastLastPort, last)
}
