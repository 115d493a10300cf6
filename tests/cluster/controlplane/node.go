package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// nodeName is that of the real node; fake ones have a number.
	nodeName = "real-node"
	// kubeletHealthPort is what the kubelet takes by default.
	kubeletHealthPort = 10248
	// pauseImage is what config/node/containerd.toml calls it.
	pauseImage = "headway.test/pause:1"
	// imagesNamespace of containerd is the one in which the kubelet looks for images.
	imagesNamespace = "k8s.io"
)

// programs that a node consists of besides this one, and the package of Debian that has each.
var nodePrograms = []struct{ name, inPackage string }{
	{"containerd", "containerd"},
	{"containerd-shim-runc-v2", "containerd"},
	{"ctr", "containerd"},
	{"runc", "runc"},
	{"nft", "nftables"},
}

// pluginFolders are where distributions put network plugins.
var pluginFolders = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

// plugins of config/node/pods.conflist, and the one that containerd wants always.
var plugins = []string{"ptp", "host-local", "loopback"}

// realNode is what there is to know of a real node before it starts.
type realNode struct {
	network network
	// dns is the program that answers for names of services.
	dns string
	// share is a folder of this machine that pods may use; empty for none.
	share string
	// plugins is the folder with network plugins.
	plugins string
	// cgroup is the root of its control groups, such as /headway-1234-567.
	cgroup string
}

// newRealNode checks that this machine can have one, and does away with what killed ones left.
func newRealNode(dns, share string, self processState) (*realNode, error) {
	folder, err := checkNode()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(removeOldCgroups(), removeOldRoutes()); err != nil {
		return nil, err
	}
	chosen, err := chooseNetwork()
	if err != nil {
		return nil, err
	}
	if err := chosen.reserve(self.PID); err != nil {
		return nil, err
	}
	return &realNode{network: chosen, dns: dns, share: share, plugins: folder, cgroup: cgroupOf(self)}, nil
}

// checkNode says what keeps this machine from having a real node, and returns the folder with network plugins.
func checkNode() (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("a real node runs containers: this takes root")
	}
	if !mayAdminister() {
		return "", errors.New("a real node mounts and makes namespaces: this takes CAP_SYS_ADMIN, which root does " +
			"not have here")
	}
	// Where an administrator's PATH has them and a user's may not.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin"); err != nil {
		return "", fmt.Errorf("extending PATH: %w", err)
	}
	missing := map[string]bool{}
	var packages []string
	lack := func(name string) {
		if !missing[name] {
			missing[name] = true
			packages = append(packages, name)
		}
	}
	for _, program := range nodePrograms {
		if _, err := exec.LookPath(program.name); err != nil {
			lack(program.inPackage)
		}
	}
	folder := pluginFolder()
	if folder == "" {
		lack("containernetworking-plugins")
	}
	if len(packages) > 0 {
		return "", fmt.Errorf("a real node needs what is not installed here; on Debian: apt-get install %s",
			strings.Join(packages, " "))
	}
	return folder, nil
}

// mayAdminister says whether this process has CAP_SYS_ADMIN. A root within a container has not.
func mayAdminister() bool {
	const sysAdmin = 21
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			capabilities, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err == nil && capabilities>>sysAdmin&1 == 1
		}
	}
	return false
}

// pluginFolder is the first that has all plugins.
func pluginFolder() string {
	for _, folder := range pluginFolders {
		found := 0
		for _, plugin := range plugins {
			if _, err := os.Stat(filepath.Join(folder, plugin)); err == nil {
				found++
			}
		}
		if found == len(plugins) {
			return folder
		}
	}
	return ""
}

// component runs the node's first process in namespaces of its own. It is to the node what init is to a machine:
// when it ends, the kernel kills every other process of the node, and with the last of them go mounts, interfaces
// and packet rules.
func (n *realNode) component(at layout, self, version string, apiServerPort int) component {
	return component{
		name: "node", version: version, program: self,
		arguments: []string{"node", "--dir", at.dir, "--network", strconv.Itoa(int(n.network.octet)),
			"--dns", n.dns, "--share", n.share},
		port: kubeletHealthPort,
		namespaces: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC |
			syscall.CLONE_NEWUTS,
		attach: func(pid int) (func(), error) { return n.attach(pid, apiServerPort) },
		health: probe{host: n.network.node().String(), port: kubeletHealthPort, path: "/healthz", plain: true,
			node: nodeName},
	}
}

// attach connects a new node with this machine; the function that it returns does away with what the kernel does not.
func (n *realNode) attach(pid, apiServerPort int) (func(), error) {
	if err := n.network.plug(pid); err != nil {
		return nil, err
	}
	address := net.JoinHostPort(n.network.host().String(), strconv.Itoa(apiServerPort))
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		return nil, fmt.Errorf("listening for the node: %w", err)
	}
	go forward(listener, loopback(apiServerPort))
	return func() { listener.Close() }, nil
}

// importImage gives an image in an archive to the node's containerd.
func importImage(ctx context.Context, at layout, archive string) error {
	words := []string{"--address", at.containerdSocket(), "--namespace", imagesNamespace, "images", "import",
		// The first container unpacks it.
		"--no-unpack", archive}
	output, err := exec.CommandContext(ctx, "ctr", words...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("importing %s: %w: %s", archive, err, strings.TrimSpace(string(output)))
	}
	return nil
}

// isNodeReady asks the API server whether pods can be scheduled on the node.
func isNodeReady(ctx context.Context, at layout, name string) error {
	client, err := newClient(at)
	if err != nil {
		return err
	}
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("looking for node %s: %w", name, err)
	}
	if !isReady(node) {
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady {
				return fmt.Errorf("node %s is not ready: %s", name, condition.Message)
			}
		}
		return fmt.Errorf("node %s is not ready", name)
	}
	return nil
}

// prepare writes the node's configuration.
func (n *realNode) prepare(at layout) error {
	snapshotter, err := chooseSnapshotter(filepath.Join(at.dir, "node"))
	if err != nil {
		return err
	}
	if err := makeCgroup(n.cgroup); err != nil {
		return err
	}
	return writeConfigFolder(at, "config/node", strings.NewReplacer(
		"DIR/", at.dir+"/",
		"CNI_PLUGINS", n.plugins,
		"SNAPSHOTTER", snapshotter,
		"CGROUP", n.cgroup,
		"NODE_ADDRESS", n.network.node().String(),
		"NODE_PODS", n.network.prefix(128, 24).String(),
		"PODS", n.network.pods().String(),
	))
}

// chooseSnapshotter tries whether layers can be laid over each other in folder, or must be copied.
func chooseSnapshotter(folder string) (string, error) {
	trial := filepath.Join(folder, "overlay-trial")
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(trial, name), 0o700); err != nil {
			return "", fmt.Errorf("trying overlayfs: %w", err)
		}
	}
	defer os.RemoveAll(trial)
	merged := filepath.Join(trial, "merged")
	data := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", trial)
	if syscall.Mount("overlay", merged, "overlay", 0, data) != nil {
		return "native", nil
	}
	if err := syscall.Unmount(merged, 0); err != nil {
		return "", fmt.Errorf("unmounting %s: %w", merged, err)
	}
	return "overlayfs", nil
}

// awaitSocket waits until something listens there.
func awaitSocket(path string, patience time.Duration) error {
	for late := time.Now().Add(patience); ; time.Sleep(probePause) {
		connection, err := net.Dial("unix", path)
		if err == nil {
			return connection.Close()
		}
		if time.Now().After(late) {
			return fmt.Errorf("nothing listens after %s: %w", patience, err)
		}
	}
}
