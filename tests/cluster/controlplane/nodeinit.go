package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// runtimePatience is how long containerd may take to listen.
const runtimePatience = 30 * time.Second

// hiddenFolders get an empty one laid over them within the node: programs write there without being asked.
var hiddenFolders = []string{"/run", "/var/lib", "/var/log"}

// sharedFolder is where pods find what --share names, as a hostPath.
const sharedFolder = "/var/lib/headway-models"

// tunables are kernel parameters that a kubelet sets for the whole machine. The node finds files in their place
// which say that they are set, and the machine keeps its own.
var tunables = map[string]string{
	"kernel/keys/root_maxbytes": "25000000",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
}

// runNode is the first process of a real node. It returns when one of the node's programs ends or it is asked to,
// and the kernel ends everything else with it.
func runNode(at layout, given rigArguments) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("only \"run --node\" and \"up --node\" start it: %w", errUsage)
	}
	chosen := network{byte(given.network)}
	if err := checkVisible(at.dir, given.share, given.dns); err != nil {
		return err
	}
	if err := mountNode(given.share); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(nodeName)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := chosen.plugged(); err != nil {
		return err
	}
	// For packets between pods and whoever asks for a service. Each network namespace has a switch of its own.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("having packets forwarded: %w", err)
	}
	init := nodeInit{at: at, children: map[int]string{}}
	// After a restart, it describes containers that are gone.
	if err := removeAll(filepath.Join(at.dir, "node/state")); err != nil {
		return err
	}
	if err := init.start("containerd", "containerd", "--config", at.config("node/containerd.toml")); err != nil {
		return err
	}
	if err := awaitSocket(at.containerdSocket(), runtimePatience); err != nil {
		return fmt.Errorf("containerd: %w; its log ends:\n%s", err, at.lastLines("containerd", logLinesShown))
	}
	for _, program := range []string{"kubelet", "kube-proxy"} {
		if err := init.start(program, "/proc/self/exe", programArguments(program, at, chosen)...); err != nil {
			return err
		}
	}
	if err := init.start("dns", given.dns, "-conf", at.config("node/dns.corefile")); err != nil {
		return err
	}
	return init.reap()
}

func programArguments(program string, at layout, chosen network) []string {
	arguments := []string{program, "--config=" + at.config("node/"+program+".yaml"), "--hostname-override=" + nodeName}
	if program == "kubelet" {
		arguments = append(arguments,
			"--kubeconfig="+at.kubeconfig("kubelet"),
			"--root-dir="+filepath.Join(at.dir, "node/kubelet"),
			"--node-ip="+chosen.node().String())
	}
	return arguments
}

// checkVisible refuses paths that the node could not see.
func checkVisible(paths ...string) error {
	for _, path := range paths {
		for _, folder := range hiddenFolders {
			if strings.HasPrefix(path, folder+"/") {
				return fmt.Errorf("%s lies in %s, which a real node hides: choose another place, by TMPDIR and "+
					"XDG_CACHE_HOME for those that the repository's commands choose", path, folder)
			}
		}
	}
	return nil
}

// mountNode gives the node a view of the machine's files in which it sees its own processes, and its programs'
// habitual folders are empty. Nothing that is mounted from here on is seen outside.
func mountNode(share string) error {
	// Private cuts the tie to the machine's mounts; shared lets containers have ties to the node's.
	for _, propagation := range []uintptr{syscall.MS_PRIVATE, syscall.MS_SHARED} {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|propagation, ""); err != nil {
			return fmt.Errorf("taking mounts apart from the machine's: %w", err)
		}
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	for _, folder := range hiddenFolders {
		if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mounting an empty folder over %s: %w", folder, err)
		}
	}
	if share != "" {
		if err := os.Mkdir(sharedFolder, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", sharedFolder, err)
		}
		if err := syscall.Mount(share, sharedFolder, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("showing %s as %s: %w", share, sharedFolder, err)
		}
	}
	if err := os.Mkdir("/run/tunables", 0o755); err != nil {
		return fmt.Errorf("making a folder for kernel parameters: %w", err)
	}
	for name, value := range tunables {
		file := filepath.Join("/run/tunables", filepath.Base(name))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", file, err)
		}
		if err := syscall.Mount(file, "/proc/sys/"+name, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting %s over the kernel's: %w", name, err)
		}
	}
	return nil
}

// nodeInit starts the node's programs and buries all of its processes.
type nodeInit struct {
	at       layout
	children map[int]string
}

// start runs a program with a log of its own.
func (i *nodeInit) start(name, program string, arguments ...string) error {
	log, err := os.OpenFile(i.at.log(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer log.Close()
	command := exec.Command(program, arguments...)
	command.Dir = "/"
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	i.children[command.Process.Pid] = name
	return nil
}

// reap waits for every process whose parent is gone, which is what a first process is for, until one of the
// programs ends.
func (i *nodeInit) reap() error {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting for the node's processes: %w", err)
		}
		if name, ok := i.children[pid]; ok {
			return fmt.Errorf("%s ended by itself: exit status %d, signal %d; its log ends:\n%s", name,
				status.ExitStatus(), status.Signal(), i.at.lastLines(name, logLinesShown))
		}
	}
}
