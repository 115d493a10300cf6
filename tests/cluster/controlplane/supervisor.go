package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const (
	// readyPatience is how long a component may take to become healthy.
	readyPatience = 90 * time.Second
	// logLinesShown of a component that ended by itself.
	logLinesShown = 25
	// mostRevivals of one component, so that one that cannot run is told and not started for ever.
	mostRevivals = 20
)

// options of a cluster.
type options struct {
	at    layout
	nodes int
	kwok  string
	// pause is the image archive of a real node; empty where none is wanted.
	pause string
	// dns is the program that answers for names in a cluster with a real node.
	dns string
	// share is a folder for the pods of a real node; empty for none.
	share string
	crds  []string
	// removeDir at the end.
	removeDir bool
	// say tells a person what happens now.
	say func(format string, arguments ...any)
}

// supervisor runs the components. All of it happens on one goroutine, which stays on one thread.
type supervisor struct {
	options
	components []component
	// definitions are those in the files of options.crds.
	definitions []*unstructured.Unstructured
	running     map[string]*process
	// revivals counts them; nil until the cluster is up.
	revivals map[string]int
	control  *controlServer
	self     processState
	// node is nil where none is wanted.
	node *realNode
}

// errStopped says that someone asked the supervisor to end.
var errStopped = errors.New("asked to end")

// supervise runs a cluster until ctx ends. announce is called once when everything is ready.
func supervise(ctx context.Context, options options, announce func()) error {
	// See startProcess. Never unlocked: when this function returns, so does the program.
	runtime.LockOSThread()
	at := options.at
	if err := os.MkdirAll(at.dir, 0o700); err != nil {
		return fmt.Errorf("creating %s: %w", at.dir, err)
	}
	lock, err := at.lock()
	if err != nil {
		return fmt.Errorf("%s: %w", at.dir, err)
	}
	defer lock.Close()
	if err := at.prepare(); err != nil {
		return err
	}
	s := &supervisor{options: options, running: map[string]*process{}}
	err = s.start(ctx)
	failedToStart := err != nil
	if !failedToStart {
		s.revivals = map[string]int{}
		announce()
		err = s.serve(ctx)
	}
	s.end()
	if failedToStart || options.removeDir {
		err = errors.Join(err, removeAll(at.dir))
	}
	if errors.Is(err, errStopped) {
		return nil
	}
	return err
}

// start brings everything up; the order is that of the needs.
func (s *supervisor) start(ctx context.Context) error {
	var err error
	if s.self, err = describeProcess(os.Getpid()); err != nil {
		return err
	}
	// The mark of our directory, first: an interrupted start can be cleaned up.
	if err := s.saveState(); err != nil {
		return err
	}
	// What was given wrongly is said before anything starts.
	if s.definitions, err = readCRDs(s.crds); err != nil {
		return err
	}
	if s.pause != "" {
		if s.node, err = newRealNode(s.dns, s.share, s.self); err != nil {
			return err
		}
		if err := s.node.prepare(s.at); err != nil {
			return err
		}
	}
	s.say("making certificates")
	if err := writeCertificates(s.at.pki(), s.node); err != nil {
		return err
	}
	ports, err := choosePorts()
	if err != nil {
		return err
	}
	if err := writeConfigs(s.at); err != nil {
		return err
	}
	if err := writeKubeconfigs(s.at, ports, s.node); err != nil {
		return err
	}
	if s.components, err = components(s.at, ports, s.kwok, s.node); err != nil {
		return err
	}
	if err := s.startAll(ctx); err != nil {
		return err
	}
	if err := s.fill(ctx); err != nil {
		return err
	}
	s.control, err = listenForControl(s.at)
	return err
}

func (s *supervisor) startAll(ctx context.Context) error {
	// etcd, then the API server; what only talks to the latter starts together.
	for _, component := range s.components[:2] {
		if err := s.startOne(ctx, component); err != nil {
			return err
		}
	}
	if s.kwok != "" {
		if err := allowKwok(ctx, s.at); err != nil {
			return err
		}
	}
	for _, component := range s.components[2:] {
		if err := s.launch(component); err != nil {
			return err
		}
	}
	for _, component := range s.components[2:] {
		if err := s.awaitHealth(ctx, component); err != nil {
			return err
		}
	}
	return nil
}

// fill creates what was asked for in the empty cluster.
func (s *supervisor) fill(ctx context.Context) error {
	if len(s.definitions) > 0 {
		s.say("applying custom resource definitions")
		if err := s.unlessComponentEnds(ctx, func(ctx context.Context) error {
			return applyCRDs(ctx, s.at, s.definitions)
		}); err != nil {
			return err
		}
	}
	if s.node != nil {
		s.say("importing the image of sandboxes")
		if err := s.unlessComponentEnds(ctx, func(ctx context.Context) error {
			return importImage(ctx, s.at, s.pause)
		}); err != nil {
			return err
		}
	}
	if s.nodes == 0 {
		return nil
	}
	s.say("creating %d nodes", s.nodes)
	return s.unlessComponentEnds(ctx, func(ctx context.Context) error {
		return createNodes(ctx, s.at, s.nodes)
	})
}

func (s *supervisor) startOne(ctx context.Context, component component) error {
	if err := s.launch(component); err != nil {
		return err
	}
	return s.awaitHealth(ctx, component)
}

func (s *supervisor) launch(component component) error {
	s.say("starting %s", component.name)
	started, err := startProcess(component, s.at)
	if err != nil {
		return err
	}
	s.running[component.name] = started
	return s.saveState()
}

func (s *supervisor) awaitHealth(ctx context.Context, component component) error {
	return s.unlessComponentEnds(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, readyPatience)
		defer cancel()
		for {
			err := component.health.once(ctx, s.at)
			if err == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s is not healthy after %s: %w; its log ends:\n%s", component.name,
					readyPatience, err, s.at.lastLines(component.name, logLinesShown))
			case <-time.After(probePause):
			}
		}
	})
}

// unlessComponentEnds does work that needs the components; the end of one that cannot be revived, or of ctx,
// ends it.
func (s *supervisor) unlessComponentEnds(ctx context.Context, work func(context.Context) error) error {
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- work(working) }()
	for {
		watching, unwatch := context.WithCancel(working)
		dead := s.watchForDeath(watching)
		var err error
		select {
		case err := <-done:
			unwatch()
			if ctx.Err() != nil {
				return errStopped
			}
			return err
		case name := <-dead:
			err = s.revive(name)
		case <-ctx.Done():
			err = errStopped
		}
		unwatch()
		if err != nil {
			return err
		}
	}
}

// watchForDeath names a component that ends by itself, until ctx ends.
func (s *supervisor) watchForDeath(ctx context.Context) <-chan string {
	dead := make(chan string, len(s.running))
	for name, process := range s.running {
		go func() {
			select {
			case <-ctx.Done():
			case <-process.ended:
				dead <- name
			}
		}()
	}
	return dead
}

// revive starts a component again that ended by itself, as a kubelet does: the controller manager ends where the
// API server is away before all of its controllers have started. While the cluster is being started nothing may
// end, and the components that hold the data never.
func (s *supervisor) revive(name string) error {
	ended := s.running[name]
	for _, component := range s.components[2:] {
		if component.name != name || s.revivals == nil || s.revivals[name] == mostRevivals {
			continue
		}
		s.revivals[name]++
		s.say("%s ended: %s", name, ended.exit())
		ended.buried()
		return s.launch(component)
	}
	return fmt.Errorf("%s ended by itself: %s; its log ends:\n%s",
		name, ended.exit(), s.at.lastLines(name, logLinesShown))
}

// serve answers the control socket until ctx ends or a component that cannot be revived does.
func (s *supervisor) serve(ctx context.Context) error {
	for {
		watching, cancel := context.WithCancel(ctx)
		dead := s.watchForDeath(watching)
		var err error
		select {
		case <-ctx.Done():
			err = errStopped
		case name := <-dead:
			err = s.revive(name)
		case order := <-s.control.orders:
			// Whom we stop ourselves does not count as dead.
			cancel()
			order.answer <- s.obey(ctx, order)
		}
		cancel()
		if err != nil {
			return err
		}
	}
}

func (s *supervisor) obey(ctx context.Context, order order) error {
	for _, component := range s.components {
		if component.name != order.Component {
			continue
		}
		process, isRunning := s.running[component.name]
		switch {
		case order.Action == "start" && isRunning:
			return fmt.Errorf("%s runs already", component.name)
		case order.Action == "stop" && !isRunning:
			return fmt.Errorf("%s is stopped already", component.name)
		}
		if isRunning {
			s.say("stopping %s", component.name)
			process.stop()
			delete(s.running, component.name)
			if err := s.saveState(); err != nil {
				return err
			}
		}
		if order.Action == "stop" {
			return nil
		}
		return s.startOne(ctx, component)
	}
	return fmt.Errorf("no component %q in this cluster; there are %s", order.Component, s.names())
}

func (s *supervisor) names() string {
	names := ""
	for index, component := range s.components {
		if index > 0 {
			names += ", "
		}
		names += component.name
	}
	return names
}

// end stops everything in the reverse order of the start.
func (s *supervisor) end() {
	if s.control != nil {
		s.control.close()
	}
	for index := len(s.components) - 1; index >= 0; index-- {
		if process, ok := s.running[s.components[index].name]; ok {
			s.say("stopping %s", s.components[index].name)
			process.stop()
		}
	}
	if s.node != nil {
		if err := errors.Join(removeCgroup(s.node.cgroup), s.node.network.release(s.self.PID)); err != nil {
			s.say("%s", err)
		}
	}
}

func (s *supervisor) saveState() error {
	saved := state{
		Kubeconfig: s.at.kubeconfig("admin"),
		AuditLog:   s.at.audit(),
		Supervisor: s.self,
	}
	if s.node != nil {
		saved.Network = s.node.network.octet
	}
	for _, component := range s.components {
		one := componentState{Name: component.name, Version: component.version, Port: component.port}
		if process, ok := s.running[component.name]; ok {
			one.PID = process.command.Process.Pid
		}
		saved.Components = append(saved.Components, one)
	}
	return s.at.writeState(saved)
}

func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	return nil
}
