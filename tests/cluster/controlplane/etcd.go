package main

import (
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

const (
	// etcdQuotaBytes bounds the database; far more than any test writes.
	etcdQuotaBytes = 4 << 30
	// etcdRetention of old revisions; long enough for the API server's pages and watches.
	etcdRetention = "5m"
	// slowRequest is logged.
	slowRequest = time.Second
)

// etcdOptions are the few settings that differ from one cluster to the next.
type etcdOptions struct {
	dataDir, client, peer string
	cert, key, trusted    string
}

func runEtcd() int {
	var options etcdOptions
	flags := flag.NewFlagSet("etcd", flag.ContinueOnError)
	flags.StringVar(&options.dataDir, "data-dir", "", "where the database lies")
	flags.StringVar(&options.client, "listen-client-url", "", "https://127.0.0.1:PORT for clients")
	flags.StringVar(&options.peer, "listen-peer-url", "", "https://127.0.0.1:PORT for peers; there are none")
	flags.StringVar(&options.cert, "cert-file", "", "certificate, for the server and for itself as a client")
	flags.StringVar(&options.key, "key-file", "", "its key")
	flags.StringVar(&options.trusted, "trusted-ca-file", "", "who signs the certificates of clients and peers")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return 2
	}
	if err := serveEtcd(options); err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		return 1
	}
	return 0
}

func serveEtcd(options etcdOptions) error {
	config, err := etcdConfig(options)
	if err != nil {
		return err
	}
	server, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	defer server.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	select {
	case <-server.Server.ReadyNotify():
	case <-stop:
		return nil
	case <-time.After(time.Minute):
		return errors.New("not ready within a minute")
	}
	select {
	case err := <-server.Err():
		return fmt.Errorf("serving: %w", err)
	case <-server.Server.StopNotify():
		return errors.New("ended by itself")
	case <-stop:
		return nil
	}
}

func etcdConfig(options etcdOptions) (*embed.Config, error) {
	if options.dataDir == "" {
		return nil, errors.New("--data-dir is missing")
	}
	client, err := url.ParseRequestURI(options.client)
	if err != nil {
		return nil, fmt.Errorf("--listen-client-url: %w", err)
	}
	peer, err := url.ParseRequestURI(options.peer)
	if err != nil {
		return nil, fmt.Errorf("--listen-peer-url: %w", err)
	}
	tls := transport.TLSInfo{
		CertFile: options.cert, KeyFile: options.key, TrustedCAFile: options.trusted, ClientCertAuth: true,
	}
	config := embed.NewConfig()
	config.Name = "headway"
	config.Dir = options.dataDir
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	config.ClientTLSInfo, config.PeerTLSInfo = tls, tls
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.QuotaBackendBytes = etcdQuotaBytes
	// The data need not outlive a power cut, and fsync is most of what a small etcd waits for.
	config.UnsafeNoFsync = true
	config.AutoCompactionMode = embed.CompactorModePeriodic
	config.AutoCompactionRetention = etcdRetention
	// Zero, the default here, would log every request as slow.
	config.WarningUnaryRequestDuration = slowRequest
	config.LogLevel = "warn"
	config.LogOutputs = []string{"stderr"}
	return config, nil
}
