package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certificateLife is longer than any cluster of this rig lives.
const certificateLife = 365 * 24 * time.Hour

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// identity says for whom a certificate is: a server (hosts) or a user of the API (name, groups), or both.
type identity struct {
	file   string
	name   string
	groups []string
	hosts  []string
}

// users are those who get a client certificate and a kubeconfig each. "rig" is the supervisor itself, so that
// its own requests can be told from those of "admin", which are the tests'.
var users = []identity{
	{file: "admin", name: "headway-admin", groups: []string{"system:masters"}},
	{file: "rig", name: rigUser, groups: []string{"system:masters"}},
	{file: "controller-manager", name: "system:kube-controller-manager"},
	{file: "scheduler", name: "system:kube-scheduler"},
	{file: "kwok", name: kwokUser},
	{file: "kubelet", name: "system:node:" + nodeName, groups: []string{"system:nodes"}},
	{file: "kube-proxy", name: "system:kube-proxy"},
	{file: "dns", name: dnsUser, groups: []string{"system:masters"}},
}

// writeCertificates fills pki with everything that the components need.
func writeCertificates(pki string, node *realNode) error {
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return fmt.Errorf("creating %s: %w", pki, err)
	}
	// Three authorities, so that a user of the API is no client of etcd, and no aggregating proxy.
	cluster, err := newAuthority(pki, "ca", "headway cluster")
	if err != nil {
		return err
	}
	etcd, err := newAuthority(pki, "etcd-ca", "headway etcd")
	if err != nil {
		return err
	}
	frontProxy, err := newAuthority(pki, "front-proxy-ca", "headway front proxy")
	if err != nil {
		return err
	}
	loopback := []string{"127.0.0.1", "localhost"}
	apiHosts := append([]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local", serviceRange(node).Addr().Next().String()}, loopback...)
	if node != nil {
		apiHosts = append(apiHosts, node.network.host().String())
	}
	issued := []struct {
		by *authority
		to identity
	}{
		{cluster, identity{file: "apiserver", name: "kube-apiserver", hosts: apiHosts}},
		{cluster, identity{file: "components", name: "headway components", hosts: loopback}},
		{etcd, identity{file: "etcd", name: "etcd", hosts: loopback}},
		{frontProxy, identity{file: "front-proxy", name: "front-proxy-client"}},
	}
	for _, one := range issued {
		if err := one.by.issue(pki, one.to); err != nil {
			return err
		}
	}
	for _, user := range users {
		if node != nil && user.file == "kubelet" {
			user.hosts = []string{node.network.node().String()}
		}
		if err := cluster.issue(pki, user); err != nil {
			return err
		}
	}
	return writeServiceAccountKeys(pki)
}

func newAuthority(pki, file, name string) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template, err := template(name)
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing authority %s: %w", file, err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading authority %s: %w", file, err)
	}
	return &authority{certificate, key}, writePair(pki, file, der, key)
}

func (a *authority) issue(pki string, to identity) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	template, err := template(to.name)
	if err != nil {
		return err
	}
	template.Subject.Organization = to.groups
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(to.hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, host := range to.hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("signing certificate %s: %w", to.file, err)
	}
	return writePair(pki, to.file, der, key)
}

func template(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("choosing a serial number: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		// A clock that is set back a little must not make the cluster unusable.
		NotBefore: now.Add(-time.Hour),
		NotAfter:  now.Add(certificateLife),
	}, nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key, nil
}

func writePair(pki, file string, der []byte, key *ecdsa.PrivateKey) error {
	if err := writeKey(filepath.Join(pki, file+".key"), key); err != nil {
		return err
	}
	return writePEM(filepath.Join(pki, file+".crt"), "CERTIFICATE", der, 0o644)
}

func writeServiceAccountKeys(pki string) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("writing the service-account key: %w", err)
	}
	if err := writePEM(filepath.Join(pki, "service-accounts.pub"), "PUBLIC KEY", public, 0o644); err != nil {
		return err
	}
	return writeKey(filepath.Join(pki, "service-accounts.key"), key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return writePEM(path, "EC PRIVATE KEY", der, 0o600)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	block := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path, block, mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
