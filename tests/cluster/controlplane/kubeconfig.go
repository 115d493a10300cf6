package main

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// writeKubeconfigs writes one for each user, with everything inside so that the file can be moved.
func writeKubeconfigs(at layout, ports ports, node *realNode) error {
	authority, err := os.ReadFile(at.cert("ca"))
	if err != nil {
		return fmt.Errorf("writing kubeconfigs: %w", err)
	}
	for _, user := range users {
		certificate, err := os.ReadFile(at.cert(user.file))
		if err != nil {
			return fmt.Errorf("writing kubeconfigs: %w", err)
		}
		key, err := os.ReadFile(at.key(user.file))
		if err != nil {
			return fmt.Errorf("writing kubeconfigs: %w", err)
		}
		server := ports.apiURL()
		if node != nil && slices.Contains([]string{"kubelet", "kube-proxy", "dns"}, user.file) {
			server = "https://" + net.JoinHostPort(node.network.host().String(), strconv.Itoa(ports.APIServer))
		}
		config := clientcmdapi.NewConfig()
		config.Clusters["headway"] = &clientcmdapi.Cluster{
			Server:                   server,
			CertificateAuthorityData: authority,
		}
		config.AuthInfos[user.name] = &clientcmdapi.AuthInfo{
			ClientCertificateData: certificate,
			ClientKeyData:         key,
		}
		config.Contexts["headway"] = &clientcmdapi.Context{Cluster: "headway", AuthInfo: user.name}
		config.CurrentContext = "headway"
		path := at.kubeconfig(user.file)
		// Written with mode 0600: it holds the key.
		if err := clientcmd.WriteToFile(*config, path); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	return nil
}

// clientConfig is how the supervisor talks to the API server.
func clientConfig(at layout) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", at.kubeconfig("rig"))
	if err != nil {
		return nil, fmt.Errorf("reading the rig's kubeconfig: %w", err)
	}
	config.QPS, config.Burst = 500, 1000
	config.UserAgent = "headway-cluster"
	return config, nil
}
