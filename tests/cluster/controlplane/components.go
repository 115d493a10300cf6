package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	etcdversion "go.etcd.io/etcd/api/v3/version"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-base/version"
)

// component is one program of the control plane and how it is run.
type component struct {
	name    string
	version string
	// program is this binary for most.
	program   string
	arguments []string
	port      int
	// namespaces of its own, as flags of clone.
	namespaces uintptr
	// attach is done when it has started, with its process id; what it returns is done when it has ended.
	attach func(pid int) (func(), error)
	health probe
}

// components in the order in which they start; they end in the reverse order.
func components(at layout, ports ports, kwok string, node *realNode) ([]component, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	kubernetes := version.Get().GitVersion
	all := []component{
		{name: "etcd", version: "v" + etcdversion.Version, program: self,
			arguments: etcdArguments(at, ports), port: ports.Etcd,
			health: probe{port: ports.Etcd, path: "/health", authority: "etcd-ca", client: "etcd"}},
		{name: "kube-apiserver", version: kubernetes, program: self,
			arguments: apiServerArguments(at, ports, node), port: ports.APIServer,
			health: probe{port: ports.APIServer, path: "/readyz", authority: "ca", client: "rig"}},
		{name: "kube-controller-manager", version: kubernetes, program: self,
			arguments: controllerManagerArguments(at, ports, node), port: ports.ControllerManager,
			health: probe{port: ports.ControllerManager, path: "/healthz", authority: "ca", client: "rig"}},
		{name: "kube-scheduler", version: kubernetes, program: self,
			arguments: schedulerArguments(at, ports), port: ports.Scheduler,
			health: probe{port: ports.Scheduler, path: "/healthz", authority: "ca", client: "rig"}},
	}
	if kwok != "" {
		all = append(all, component{name: "kwok", version: programVersion(kwok), program: kwok,
			arguments: kwokArguments(at, ports, node), port: ports.Kwok,
			health: probe{port: ports.Kwok, path: "/healthz", plain: true}})
	}
	if node != nil {
		all = append(all, node.component(at, self, kubernetes, ports.APIServer))
	}
	return all, nil
}

// serviceRange holds the addresses of services; the first is the API server's own.
func serviceRange(node *realNode) netip.Prefix {
	if node != nil {
		return node.network.services()
	}
	return netip.MustParsePrefix("10.96.0.0/16")
}

func etcdArguments(at layout, ports ports) []string {
	return []string{
		"etcd",
		"--data-dir=" + filepath.Join(at.dir, "etcd"),
		"--listen-client-url=" + ports.etcdURL(),
		"--listen-peer-url=https://" + loopback(ports.EtcdPeer),
		"--cert-file=" + at.cert("etcd"),
		"--key-file=" + at.key("etcd"),
		"--trusted-ca-file=" + at.cert("etcd-ca"),
	}
}

func apiServerArguments(at layout, ports ports, node *realNode) []string {
	issuer := "https://kubernetes.default.svc.cluster.local"
	// Said, so that no default route is needed to find one; and an endpoint on loopback would be refused.
	advertised, reconciler := "127.0.0.1", "none"
	if node != nil {
		advertised, reconciler = node.network.host().String(), "lease"
	}
	return []string{
		"kube-apiserver",
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", ports.APIServer),
		"--advertise-address=" + advertised,
		"--endpoint-reconciler-type=" + reconciler,
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-certificate-authority=" + at.cert("ca"),
		"--kubelet-client-certificate=" + at.cert("rig"),
		"--kubelet-client-key=" + at.key("rig"),
		"--etcd-servers=" + ports.etcdURL(),
		"--etcd-cafile=" + at.cert("etcd-ca"),
		"--etcd-certfile=" + at.cert("etcd"),
		"--etcd-keyfile=" + at.key("etcd"),
		"--cert-dir=" + at.pki(),
		"--tls-cert-file=" + at.cert("apiserver"),
		"--tls-private-key-file=" + at.key("apiserver"),
		"--client-ca-file=" + at.cert("ca"),
		"--requestheader-client-ca-file=" + at.cert("front-proxy-ca"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + at.cert("front-proxy"),
		"--proxy-client-key-file=" + at.key("front-proxy"),
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + filepath.Join(at.pki(), "service-accounts.pub"),
		"--service-account-signing-key-file=" + at.key("service-accounts"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--service-cluster-ip-range=" + serviceRange(node).String(),
		"--max-requests-inflight=2000",
		"--max-mutating-requests-inflight=1000",
		"--audit-policy-file=" + at.config("audit-policy.yaml"),
		"--audit-log-path=" + at.audit(),
		// In MiB; 0 would mean 100. A test that counts requests must not lose the first of them.
		"--audit-log-maxsize=16384",
	}
}

func controllerManagerArguments(at layout, ports ports, node *realNode) []string {
	kubeconfig := at.kubeconfig("controller-manager")
	return append([]string{
		"kube-controller-manager",
		"--root-ca-file=" + at.cert("ca"),
		"--cluster-signing-cert-file=" + at.cert("ca"),
		"--cluster-signing-key-file=" + at.key("ca"),
		"--service-account-private-key-file=" + at.key("service-accounts"),
		"--use-service-account-credentials=true",
		"--service-cluster-ip-range=" + serviceRange(node).String(),
		"--kubeconfig=" + kubeconfig,
		"--leader-elect=false",
		"--kube-api-qps=2000",
		"--kube-api-burst=4000",
		"--concurrent-deployment-syncs=20",
		"--concurrent-replicaset-syncs=20",
		// A machine busy with builds is late with heartbeats; its nodes are not lost for that.
		"--node-monitor-grace-period=5m",
		// The default is made if absent, outside our directory.
		"--flex-volume-plugin-dir=" + filepath.Join(at.dir, "flexvolume"),
	}, servingArguments(at, ports.ControllerManager, kubeconfig)...)
}

func schedulerArguments(at layout, ports ports) []string {
	return append([]string{
		"kube-scheduler",
		"--config=" + at.config("scheduler.yaml"),
	}, servingArguments(at, ports.Scheduler, at.kubeconfig("scheduler"))...)
}

// servingArguments are those of a component that serves its health and metrics, and asks the API server who
// may read them.
func servingArguments(at layout, port int, kubeconfig string) []string {
	return []string{
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port),
		"--tls-cert-file=" + at.cert("components"),
		"--tls-private-key-file=" + at.key("components"),
		"--client-ca-file=" + at.cert("ca"),
		"--requestheader-client-ca-file=" + at.cert("front-proxy-ca"),
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
	}
}

func kwokArguments(at layout, ports ports, node *realNode) []string {
	played := "--manage-all-nodes=true"
	if node != nil {
		played = "--manage-nodes-with-label-selector=" + corev1.LabelInstanceTypeStable + "=" + fakeInstanceType
	}
	return []string{
		"--config=" + at.config("kwok.yaml"),
		// Otherwise a line for each pod and each heartbeat.
		"--v=WARN",
		"--kubeconfig=" + at.kubeconfig("kwok"),
		played,
		"--cidr=10.244.0.0/16",
		"--node-ip=10.245.0.1",
		// A kwok that is started again plays no pods before the leases of the one before it end.
		"--node-lease-duration-seconds=10",
		"--server-address=" + loopback(ports.Kwok),
	}
}
