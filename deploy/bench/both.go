package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/depotctl/depot/certs"
	"github.com/depotctl/depot/machineagent/front"
)

// both is a daemon that is reached through its own TLS listener and through a front in this process.
type both struct {
	*daemon
	ways   []way
	served chan error
	cancel context.CancelFunc
}

func (b *bench) startBoth(ctx context.Context) (*both, error) {
	root, err := b.folder("both")
	if err != nil {
		return nil, err
	}
	own, err := newSet("lse-own", root)
	if err != nil {
		return nil, err
	}
	if err := own.serveFromFiles(); err != nil {
		return nil, err
	}
	fronted, err := newSet("lse-front", root)
	if err != nil {
		return nil, err
	}
	listener, err := front.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f, err := frontOf(fronted, filepath.Join(root, "sock"))
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	port, err := freePort(ctx)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	d, err := startDaemon(ctx, b, root, "--oci-worker-net=host", "--addr", "tcp://"+port,
		"--tlscacert", own.client.ca, "--tlscert", own.serverCert, "--tlskey", own.serverKey)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	two := &both{
		daemon: d, served: make(chan error, 1), cancel: cancel,
		ways: []way{{"BuildKit's own TLS", port, own}, {"through the front", listener.Addr().String(), fronted}},
	}
	go func() { two.served <- f.Serve(ctx, listener) }()
	return two, nil
}

func (d *both) stop() error {
	d.cancel()
	return errors.Join(<-d.served, d.daemon.stop())
}

// cpu is the processor time of the daemon and of this process, which is the front and little else.
func (d *both) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), ") ") // fields 3 and on: the name may hold anything
	fields := strings.Fields(after)
	var ticks int
	for _, field := range fields[11:13] { // utime and stime, in 1/100 s
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		return 0, err
	}
	return time.Duration(ticks)*10*time.Millisecond + time.Duration(own.Utime.Nano()+own.Stime.Nano()), nil
}

// frontOf is a front with one lease.
func frontOf(s *set, socket string) (*front.Front, error) {
	lease, err := s.serveFromFront()
	if err != nil {
		return nil, err
	}
	f, err := front.New(front.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}})
	if err != nil {
		return nil, err
	}
	return f, f.Install(lease)
}

func freePort(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// set is the certificates of both ends of one lease: the client's in files, the server's in files or for a front.
type set struct {
	lease                 string
	deadline              time.Time
	authority             *certs.Authority
	clientCSR             string
	client                files
	serverCert, serverKey string // files
}

// newSet makes the authority of a lease and its client's certificate.
func newSet(lease, dir string) (*set, error) {
	s := &set{lease: lease, deadline: time.Now().Add(2 * time.Hour)}
	var err error
	s.authority, err = certs.NewAuthority(certs.Lease{ID: lease, Build: "bld-bench", Project: "prj-bench", Organization: "org-bench"}, time.Now(), s.deadline)
	if err != nil {
		return nil, err
	}
	at := func(name string) string { return filepath.Join(dir, lease+"-"+name+".pem") }
	s.client = files{at("ca"), at("client"), at("client-key")}
	s.serverCert, s.serverKey = at("server"), at("server-key")
	if s.clientCSR, err = newKeyFile(s.client.key); err != nil {
		return nil, err
	}
	leaf, err := s.authority.SignClient(s.clientCSR)
	if err != nil {
		return nil, err
	}
	return s, errors.Join(os.WriteFile(s.client.ca, []byte(s.authority.CA()), 0o600), os.WriteFile(s.client.cert, []byte(leaf), 0o600))
}

// serveFromFiles makes the server's certificate for a daemon, which wants files.
func (s *set) serveFromFiles() error {
	csr, err := newKeyFile(s.serverKey)
	if err != nil {
		return err
	}
	leaf, err := s.authority.SignServer(csr)
	if err != nil {
		return err
	}
	return os.WriteFile(s.serverCert, []byte(leaf), 0o600)
}

// serveFromFront makes the server's certificate for a front, whose key stays where it was made.
func (s *set) serveFromFront() (front.Lease, error) {
	key, err := certs.NewKey()
	if err != nil {
		return front.Lease{}, err
	}
	csr, err := key.CSR()
	if err != nil {
		return front.Lease{}, err
	}
	leaf, err := s.authority.SignServer(csr)
	if err != nil {
		return front.Lease{}, err
	}
	pin, err := certs.SPKI(s.clientCSR)
	if err != nil {
		return front.Lease{}, err
	}
	cfg, err := certs.ServerConfig(s.lease, s.authority.CA(), leaf, key, pin)
	return front.Lease{ID: s.lease, Generation: 1, TLS: cfg, Deadline: s.deadline}, err
}

// newKeyFile makes a key in a file and returns its certificate request.
func newKeyFile(path string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return "", err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request})), nil
}
