// Command headway-cluster is a Kubernetes control plane for tests on one Linux machine: etcd, the API server,
// the controller manager, the scheduler and kubectl in one binary, and the rig that runs them together.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	name, arguments := os.Args[1], os.Args[2:]
	if component, ok := delegates[name]; ok {
		// The components read os.Args themselves; each sees a command line of its own.
		os.Args = append([]string{name}, arguments...)
		os.Exit(component())
	}
	os.Exit(runRigCommand(name, arguments))
}
