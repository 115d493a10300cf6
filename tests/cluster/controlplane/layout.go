package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxSocketPath is what the kernel allows for the address of a unix socket.
const maxSocketPath = 107

// layout says where things lie in the directory of a cluster.
type layout struct{ dir string }

func newLayout(dir string) (layout, error) {
	if dir == "" {
		return layout{}, errors.New("--dir is missing")
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return layout{}, fmt.Errorf("--dir %s: %w", dir, err)
	}
	at := layout{absolute}
	if len(at.socket()) > maxSocketPath {
		return layout{}, fmt.Errorf("--dir %s: too long by %d bytes for a unix socket in it",
			absolute, len(at.socket())-maxSocketPath)
	}
	return at, nil
}

func (l layout) pki() string             { return filepath.Join(l.dir, "pki") }
func (l layout) cert(name string) string { return filepath.Join(l.pki(), name+".crt") }
func (l layout) key(name string) string  { return filepath.Join(l.pki(), name+".key") }
func (l layout) logs() string            { return filepath.Join(l.dir, "logs") }
func (l layout) log(name string) string  { return filepath.Join(l.logs(), name+".log") }
func (l layout) config(name string) string {
	return filepath.Join(l.dir, "config", name)
}
func (l layout) state() string  { return filepath.Join(l.dir, "state.json") }
func (l layout) socket() string { return filepath.Join(l.dir, "control.sock") }
func (l layout) containerdSocket() string {
	return filepath.Join(l.dir, "node/containerd.sock")
}
func (l layout) audit() string { return filepath.Join(l.dir, "audit.log") }

// kubeconfig of a user; the administrator's is the one for tests and people.
func (l layout) kubeconfig(user string) string {
	if user == "admin" {
		return filepath.Join(l.dir, "kubeconfig")
	}
	return l.config(user + ".kubeconfig")
}

// prepare makes the directory empty but for its logs. It refuses a directory that holds anything which is not a
// cluster's.
func (l layout) prepare() error {
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reading %s: %w", l.dir, err)
	}
	// The state file is the mark of a cluster; its supervisor is dead, or the lock would be held.
	_, err = os.Stat(l.state())
	isCluster := err == nil
	for _, entry := range entries {
		if entry.Name() == filepath.Base(l.logs()) {
			continue
		}
		path := filepath.Join(l.dir, entry.Name())
		if !isCluster {
			return fmt.Errorf("%s is neither empty nor the directory of a cluster: it holds %s", l.dir, entry.Name())
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("removing what an earlier cluster left: %w", err)
		}
	}
	if err := os.MkdirAll(l.logs(), 0o700); err != nil {
		return fmt.Errorf("creating %s: %w", l.logs(), err)
	}
	// The supervisor's own log may be open already; those of components are appended to, so they must go.
	logs, err := os.ReadDir(l.logs())
	if err != nil {
		return fmt.Errorf("reading %s: %w", l.logs(), err)
	}
	for _, log := range logs {
		if log.Name() == "supervisor.log" {
			continue
		}
		if err := os.Remove(filepath.Join(l.logs(), log.Name())); err != nil {
			return fmt.Errorf("removing an earlier log: %w", err)
		}
	}
	return nil
}

// errLocked says that a supervisor lives.
var errLocked = errors.New("a cluster is up in this directory")

// lock is held by the supervisor as long as it lives; the kernel lets go of it whatever way the process ends.
func (l layout) lock() (*os.File, error) {
	file, err := os.Open(l.dir)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", l.dir, err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return file, nil
	}
	file.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, errLocked
	}
	return nil, fmt.Errorf("locking %s: %w", l.dir, err)
}

// isUp says whether a supervisor lives.
func (l layout) isUp() bool {
	lock, err := l.lock()
	if err == nil {
		lock.Close()
	}
	return errors.Is(err, errLocked)
}

// lastLines of a log, for a message about whoever wrote it.
func (l layout) lastLines(name string, count int) string {
	text, err := os.ReadFile(l.log(name))
	if err != nil {
		return "(no log: " + err.Error() + ")"
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}
