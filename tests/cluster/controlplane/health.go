package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"debug/buildinfo"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// probeTimeout bounds one question.
	probeTimeout = 5 * time.Second
	// probePause lies between two.
	probePause = 100 * time.Millisecond
)

// probe asks a component whether it is well.
type probe struct {
	// host is 127.0.0.1 where it is empty.
	host string
	port int
	path string
	// plain is HTTP, without certificates.
	plain bool
	// authority signed the server's certificate, client is ours.
	authority, client string
	// node is the name of one that must be ready, too.
	node string
}

// once asks one time; nil is yes.
func (p probe) once(ctx context.Context, at layout) error {
	scheme, transport := "https", &http.Transport{DisableKeepAlives: true}
	if p.plain {
		scheme = "http"
	} else {
		config, err := p.tls(at)
		if err != nil {
			return err
		}
		transport.TLSClientConfig = config
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	address := loopback(p.port)
	if p.host != "" {
		address = net.JoinHostPort(p.host, strconv.Itoa(p.port))
	}
	url := scheme + "://" + address + p.path
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("asking %s: %w", url, err)
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("asking %s: %w", url, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return fmt.Errorf("%s answers %s: %s", url, response.Status, strings.TrimSpace(string(body)))
	}
	if p.node != "" {
		return isNodeReady(ctx, at, p.node)
	}
	return nil
}

func (p probe) tls(at layout) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(at.cert(p.client), at.key(p.client))
	if err != nil {
		return nil, fmt.Errorf("loading the rig's certificate: %w", err)
	}
	authority, err := os.ReadFile(at.cert(p.authority))
	if err != nil {
		return nil, fmt.Errorf("loading %s: %w", p.authority, err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, nil
}

// programVersion is that of the module which a Go program's main package is from.
func programVersion(path string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for _, module := range append(info.Deps, &info.Main) {
		if info.Path == module.Path || strings.HasPrefix(info.Path, module.Path+"/") {
			return module.Version
		}
	}
	return "unknown"
}
