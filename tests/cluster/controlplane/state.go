package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// state is what DIR/state.json tells others of a cluster. Only its supervisor writes it.
type state struct {
	Kubeconfig string           `json:"kubeconfig"`
	AuditLog   string           `json:"auditLog"`
	Supervisor processState     `json:"supervisor"`
	Components []componentState `json:"components"`
	// Network of a real node: N of 10.N.0.0/16.
	Network byte `json:"network,omitempty"`
}

// processState names a process so that a later one with the same pid is not taken for it.
type processState struct {
	PID int `json:"pid"`
	// StartTicks is when it started, in clock ticks since the machine did.
	StartTicks uint64 `json:"startTicks"`
}

type componentState struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Port    int    `json:"port"`
	// PID is 0 while it does not run.
	PID int `json:"pid"`
}

func (l layout) readState() (state, error) {
	var read state
	text, err := os.ReadFile(l.state())
	if err != nil {
		return state{}, fmt.Errorf("reading the cluster's state: %w", err)
	}
	if err := json.Unmarshal(text, &read); err != nil {
		return state{}, fmt.Errorf("reading %s: %w", l.state(), err)
	}
	return read, nil
}

func (l layout) writeState(written state) error {
	text, err := json.MarshalIndent(written, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the cluster's state: %w", err)
	}
	// By rename, so that no reader sees half of it.
	partial := l.state() + ".partial"
	if err := os.WriteFile(partial, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the cluster's state: %w", err)
	}
	if err := os.Rename(partial, l.state()); err != nil {
		return fmt.Errorf("writing the cluster's state: %w", err)
	}
	return nil
}

// describeProcess reads what tells a process from a later one of the same pid.
func describeProcess(pid int) (processState, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processState{}, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	// The second field is the name in parentheses, which may hold anything; the start is field 22.
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return processState{}, fmt.Errorf("looking at process %d: unexpected format", pid)
	}
	// One that was killed, and that its parent has not waited for yet.
	if fields[0] == "Z" {
		return processState{}, fmt.Errorf("process %d has ended", pid)
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return processState{}, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	return processState{PID: pid, StartTicks: ticks}, nil
}

// terminate asks exactly that process to end.
func (p processState) terminate() error {
	now, err := describeProcess(p.PID)
	if err != nil {
		return err
	}
	if now != p {
		return fmt.Errorf("process %d is not the cluster's supervisor any more", p.PID)
	}
	if err := syscall.Kill(p.PID, syscall.SIGTERM); err != nil {
		return fmt.Errorf("ending process %d: %w", p.PID, err)
	}
	return nil
}

// residentMiB is the memory of a process; 0 where it is gone.
func residentMiB(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			if err == nil {
				return kib / 1024
			}
		}
	}
	return 0
}
