package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	readyLine = "ready KUBECONFIG="
	// upPatience bounds a start as a whole.
	upPatience = 5 * time.Minute
	// downPatience bounds an end: every component may need its full time.
	downPatience = 2 * time.Minute
)

// run is the supervisor in the foreground.
func run(at layout, given rigArguments) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	if given.untilStdinCloses {
		go func() {
			// Whatever ends the reading, the owner is gone.
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
	}
	started := time.Now()
	return supervise(ctx, options{
		at: at, nodes: given.nodes, kwok: given.kwok, pause: given.pause, dns: given.dns, share: given.share,
		crds: given.crds, removeDir: given.removeDir,
		say: func(format string, arguments ...any) {
			fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, arguments...))
		},
	}, func() { fmt.Println(readyLine + at.kubeconfig("admin")) })
}

// up starts `run` in the background and shows what it says until it is ready.
func up(at layout, given rigArguments) error {
	if at.isUp() {
		fmt.Fprintln(os.Stderr, "up already")
		fmt.Println(at.kubeconfig("admin"))
		return nil
	}
	if err := at.prepare(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	path := at.log("supervisor")
	log, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("creating the supervisor's log: %w", err)
	}
	defer log.Close()
	// Opened before the start: a start that fails removes the directory, but not what is open.
	follow, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the supervisor's log: %w", err)
	}
	defer follow.Close()
	words := []string{"run", "--dir", at.dir, "--nodes", strconv.Itoa(given.nodes)}
	if given.kwok != "" {
		words = append(words, "--kwok", given.kwok)
	}
	if given.node {
		words = append(words, "--node", "--pause", given.pause, "--dns", given.dns, "--share", given.share)
	}
	for _, path := range given.crds {
		words = append(words, "--crds", path)
	}
	command := exec.Command(self, words...)
	command.Dir = "/"
	command.Stdout, command.Stderr = log, log
	// A session of its own: it outlives the terminal.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	if err := showUntilReady(follow, ended); err != nil {
		// Has no effect where it has ended; otherwise the supervisor cleans up.
		_ = command.Process.Signal(syscall.SIGTERM)
		return err
	}
	fmt.Println(at.kubeconfig("admin"))
	return nil
}

// showUntilReady copies the supervisor's lines to stderr.
func showUntilReady(log io.Reader, ended <-chan error) error {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	late := time.After(upPatience)
	lines := bufio.NewReader(log)
	partial := ""
	isEnded := false
	for {
		text, err := lines.ReadString('\n')
		partial += text
		if err == nil {
			if strings.HasPrefix(partial, readyLine) {
				return nil
			}
			fmt.Fprint(os.Stderr, partial)
			partial = ""
			continue
		}
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the supervisor's log: %w", err)
		}
		if isEnded {
			return errors.New("the cluster did not start")
		}
		select {
		case <-ended:
			// What it wrote last is still to be read.
			isEnded = true
		case <-interrupted:
			return errors.New("interrupted")
		case <-late:
			return fmt.Errorf("not ready after %s", upPatience)
		case <-time.After(probePause):
		}
	}
}

// down ends the cluster, if one is up, and removes what is left of it.
func down(at layout, _ rigArguments) error {
	if _, err := os.Stat(at.state()); err != nil {
		return fmt.Errorf("no cluster in %s", at.dir)
	}
	if at.isUp() {
		known, err := at.readState()
		if err != nil {
			return err
		}
		if err := known.Supervisor.terminate(); err != nil {
			return err
		}
	}
	for late := time.After(downPatience); at.isUp(); {
		select {
		case <-late:
			return fmt.Errorf("still running after %s; see %s", downPatience, at.log("supervisor"))
		case <-time.After(probePause):
		}
	}
	return removeAll(at.dir)
}

// status prints one line for each component, and fails where one is not well.
func status(at layout, _ rigArguments) error {
	if !at.isUp() {
		return fmt.Errorf("no cluster is up in %s", at.dir)
	}
	known, err := at.readState()
	if err != nil {
		return err
	}
	if len(known.Components) == 0 {
		return errors.New("the cluster is starting")
	}
	fmt.Printf("%-24s %-9s %8s %6s %-9s %s\n", "COMPONENT", "STATE", "PID", "PORT", "VERSION", "RSS")
	fmt.Printf("%-24s %-9s %8d %6s %-9s %d MiB\n", "supervisor", "running", known.Supervisor.PID, "-", "-",
		residentMiB(known.Supervisor.PID))
	// Only for the probes; it starts nothing.
	all, err := components(at, knownPorts(known), "kwok", &realNode{network: network{known.Network}})
	if err != nil {
		return err
	}
	unwell := 0
	for _, one := range known.Components {
		condition := "stopped"
		for _, component := range all {
			if component.name != one.Name || one.PID == 0 {
				continue
			}
			condition = "ready"
			if component.health.once(context.Background(), at) != nil {
				condition = "not ready"
			}
		}
		if condition != "ready" {
			unwell++
		}
		fmt.Printf("%-24s %-9s %8d %6d %-9s %d MiB\n", one.Name, condition, one.PID, one.Port, one.Version,
			residentMiB(one.PID))
	}
	if unwell > 0 {
		return fmt.Errorf("%d components are not ready", unwell)
	}
	return nil
}

func knownPorts(known state) ports {
	var found ports
	for _, one := range known.Components {
		switch one.Name {
		case "etcd":
			found.Etcd = one.Port
		case "kube-apiserver":
			found.APIServer = one.Port
		case "kube-controller-manager":
			found.ControllerManager = one.Port
		case "kube-scheduler":
			found.Scheduler = one.Port
		case "kwok":
			found.Kwok = one.Port
		}
	}
	return found
}

func kubeconfig(at layout, _ rigArguments) error {
	if !at.isUp() {
		return fmt.Errorf("no cluster is up in %s", at.dir)
	}
	fmt.Println(filepath.Clean(at.kubeconfig("admin")))
	return nil
}

// importArchive gives an image to the real node.
func importArchive(at layout, given rigArguments) error {
	if !at.isUp() {
		return fmt.Errorf("no cluster is up in %s", at.dir)
	}
	if _, err := os.Stat(at.containerdSocket()); err != nil {
		return fmt.Errorf("the cluster in %s has no real node", at.dir)
	}
	return importImage(context.Background(), at, given.positional[0])
}

// control asks the supervisor for something.
func control(action string) func(layout, rigArguments) error {
	return func(at layout, given rigArguments) error {
		return command(at, action, given.positional[0])
	}
}
