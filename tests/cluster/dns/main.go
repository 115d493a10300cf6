// Command dns is CoreDNS with the only two plugins that a cluster without a way out has use for.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
)

func main() {
	// Plugins run in this order.
	dnsserver.Directives = []string{"errors", "kubernetes"}
	coremain.Run()
}
