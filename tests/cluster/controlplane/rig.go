package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const usage = `Usage: headway-cluster COMMAND

A Kubernetes control plane for tests:
  run        --dir DIR [--nodes N --kwok PATH] [--crds PATH]...
             [--node --pause ARCHIVE --dns PATH [--share DIR]]
             runs a cluster until SIGTERM; prints "ready KUBECONFIG=PATH" when it can be used
             --until-stdin-closes  ends when its standard input does, too
             --remove-dir          removes DIR at the end
             --node  a real node beside those that kwok plays; takes root
             --pause the archive with the image headway.test/pause:1 for it
             --dns   the program that answers for names of services on it
             --share a folder that its pods find as a hostPath, /var/lib/headway-models
  up         --dir DIR [--nodes N --kwok PATH] [--crds PATH]...
             [--node --pause ARCHIVE --dns PATH [--share DIR]]
             runs a cluster in the background and waits until it can be used
  down       --dir DIR             ends it and removes DIR
  status     --dir DIR             one line for each component
  check-node                       says what keeps this machine from having a real node
  kubeconfig --dir DIR             prints the path of the administrator's kubeconfig
  import     --dir DIR ARCHIVE     gives an image to the real node
  stop, start, restart --dir DIR COMPONENT

The components themselves, with their own options:
  etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl
`

// maxNodes is as many as a small machine keeps alive: each renews its lease every few seconds.
const maxNodes = 1000

// rigArguments are those of the rig's commands, as given.
type rigArguments struct {
	dir, kwok, pause, dns, share string
	nodes, network               int
	node                         bool
	crds                         []string
	untilStdinCloses, removeDir  bool
	positional                   []string
}

// errUsage marks what the user wrote wrongly.
var errUsage = errors.New("see headway-cluster --help")

func runRigCommand(name string, words []string) int {
	if name == "help" || name == "--help" || name == "-h" {
		fmt.Print(usage)
		return 0
	}
	if name == "check-node" {
		if _, err := checkNode(); err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	err := rigCommand(name, words)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "headway-cluster:", err)
	if errors.Is(err, errUsage) {
		return 2
	}
	return 1
}

func rigCommand(name string, words []string) error {
	commands := map[string]func(layout, rigArguments) error{
		"run": run, "up": up, "down": down, "status": status, "kubeconfig": kubeconfig,
		"node": runNode, "import": importArchive,
		"start": control("start"), "stop": control("stop"), "restart": control("restart"),
	}
	command, ok := commands[name]
	if !ok {
		return fmt.Errorf("unknown command %q: %w", name, errUsage)
	}
	given, err := parse(name, words)
	if err != nil {
		return err
	}
	at, err := newLayout(given.dir)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errUsage)
	}
	return command(at, given)
}

func parse(name string, words []string) (rigArguments, error) {
	var given rigArguments
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&given.dir, "dir", "", "")
	if name == "run" || name == "up" {
		flags.IntVar(&given.nodes, "nodes", 0, "")
		flags.StringVar(&given.kwok, "kwok", "", "")
		flags.BoolVar(&given.node, "node", false, "")
		flags.StringVar(&given.dns, "dns", "", "")
		flags.StringVar(&given.share, "share", "", "")
		flags.StringVar(&given.pause, "pause", "", "")
		flags.Func("crds", "", func(path string) error {
			given.crds = append(given.crds, path)
			return nil
		})
	}
	if name == "node" {
		flags.StringVar(&given.dns, "dns", "", "")
		flags.StringVar(&given.share, "share", "", "")
		flags.IntVar(&given.network, "network", firstNetwork, "")
	}
	if name == "run" {
		flags.BoolVar(&given.untilStdinCloses, "until-stdin-closes", false, "")
		flags.BoolVar(&given.removeDir, "remove-dir", false, "")
	}
	// Options may come after the component's name as well.
	for rest := words; len(rest) > 0; rest = rest[1:] {
		if err := flags.Parse(rest); err != nil {
			return given, fmt.Errorf("%w: %w", err, errUsage)
		}
		if rest = flags.Args(); len(rest) == 0 {
			break
		}
		given.positional = append(given.positional, rest[0])
	}
	return given, given.check(name)
}

func (g *rigArguments) check(name string) error {
	wanted := 0
	if slices.Contains([]string{"start", "stop", "restart", "import"}, name) {
		wanted = 1
	}
	if len(g.positional) != wanted {
		return fmt.Errorf("%s takes %d names besides its options, not %q: %w",
			name, wanted, strings.Join(g.positional, " "), errUsage)
	}
	if g.nodes < 0 || g.nodes > maxNodes {
		return fmt.Errorf("--nodes %d: between 0 and %d: %w", g.nodes, maxNodes, errUsage)
	}
	if g.nodes > 0 && g.kwok == "" {
		return fmt.Errorf("--nodes needs --kwok, the program that plays the nodes: %w", errUsage)
	}
	if g.node && (g.pause == "" || g.dns == "") {
		return fmt.Errorf("--node needs --pause, the image of its sandboxes, and --dns: %w", errUsage)
	}
	if g.network < 0 || g.network > 255 {
		return fmt.Errorf("--network %d: between 0 and 255: %w", g.network, errUsage)
	}
	// Components run in the cluster's directory.
	for _, path := range append([]*string{&g.kwok, &g.pause, &g.dns, &g.share}, pointers(g.crds)...) {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("%s: %w", *path, err)
		}
		if _, err := os.Stat(absolute); err != nil {
			return fmt.Errorf("%w: %w", err, errUsage)
		}
		*path = absolute
	}
	return nil
}

func pointers(to []string) []*string {
	var all []*string
	for index := range to {
		all = append(all, &to[index])
	}
	return all
}
