package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// stopPatience is how long a component may take to end when asked to. The API server would wait for every watch
// to end, and etcd for its clients, up to a minute; whatever they answered is written by then.
const stopPatience = 3 * time.Second

// process is a running component.
type process struct {
	command *exec.Cmd
	// ended is closed when the process has been waited for.
	ended chan struct{}
	// result is set before ended is closed.
	result error
	// detach is done when it has ended; nil where there is nothing to do.
	detach func()
}

// startProcess must be called from a goroutine that is locked to its thread and lives as long as the process is
// wanted: the kernel kills the child when the thread that started it ends.
func startProcess(of component, at layout) (*process, error) {
	log, err := os.OpenFile(at.log(of.name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", of.name, err)
	}
	// The child has its own copy.
	defer log.Close()
	command := exec.Command(of.program, of.arguments...)
	command.Dir = at.dir
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{
		// However this supervisor ends, no component outlives it.
		Pdeathsig: syscall.SIGKILL,
		// Ctrl-C at a terminal reaches the supervisor only, which ends components in order.
		Setpgid:    true,
		Cloneflags: of.namespaces,
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", of.name, err)
	}
	started := &process{command: command, ended: make(chan struct{})}
	go func() {
		started.result = command.Wait()
		close(started.ended)
	}()
	if of.attach != nil {
		var err error
		if started.detach, err = of.attach(command.Process.Pid); err != nil {
			started.stop()
			return nil, fmt.Errorf("starting %s: %w", of.name, err)
		}
	}
	return started, nil
}

// stop asks the process to end, and kills it where it does not.
func (p *process) stop() {
	// It may have ended already.
	_ = p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(stopPatience):
		_ = p.command.Process.Kill()
		<-p.ended
	}
	p.buried()
}

// buried is done once the process has ended.
func (p *process) buried() {
	if p.detach != nil {
		p.detach()
	}
}

// exit says how an ended process ended.
func (p *process) exit() string {
	if p.result == nil {
		return "exit status 0"
	}
	return p.result.Error()
}
