package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/depotctl/depot/bus"
)

// lease is a builder that the bench holds itself, with a key that can be written to files for other clients.
type lease struct {
	build bus.BuildID
	view  bus.LeaseView
	key   *ecdsa.PrivateKey
	took  stages
}

// stages is where the time of one acquisition went.
type stages struct {
	create  time.Duration // from the request to the answer that it is stored
	ready   time.Duration // from that answer until the certificates are here
	connect time.Duration // of the handshake with the builder
	at      map[bus.Stage]time.Duration
}

func (s stages) total() time.Duration { return s.create + s.ready + s.connect }

// acquire does what depotctl does: it asks, waits to be told, asks for the truth, and connects.
func acquire(ctx context.Context, conn *bus.Conn, project string) (*lease, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	build := bus.NewBuildID()
	l := &lease{build: build, key: key, took: stages{at: map[bus.Stage]time.Duration{}}}

	news := make(chan bus.BuildEvent, 64)
	if err := bus.BuildStory.Subscribe(ctx, conn, func(e bus.BuildEvent) { news <- e }, "*", string(build)); err != nil {
		return nil, err
	}
	started := time.Now()
	view, err := bus.CreateBuild.Call(ctx, conn, bus.BuildCreate{Build: build, Project: project, CSR: csr})
	if err != nil {
		return nil, err
	}
	l.took.create = time.Since(started)
	for view.State != bus.BuildReady {
		if view.State.Ended() {
			return nil, fmt.Errorf("build %s %s: %s", build, view.State, view.Reason)
		}
		select {
		case e := <-news:
			if e.Stage != "" {
				l.took.at[e.Stage] = time.Since(started)
			}
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return nil, fmt.Errorf("build %s is still %s: %w", build, view.State, ctx.Err())
		}
		if view, err = bus.GetBuild.Call(ctx, conn, bus.BuildRef{Build: build}); err != nil {
			return nil, err
		}
	}
	l.took.ready = time.Since(started) - l.took.create
	l.view = view.Leases[0]
	if l.took.connect, err = l.handshake(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// hold says every few seconds that the build of a lease is alive, as depotctl does, until ctx ends.
func hold(ctx context.Context, conn *bus.Conn, l *lease) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = bus.BuildIsLive.Send(ctx, conn, bus.BuildLive{Build: l.build}) // loss is harmless
		case <-ctx.Done():
			return
		}
	}
}

// release ends the build of a lease.
func release(ctx context.Context, conn *bus.Conn, l *lease) error {
	_, err := bus.FinishBuild.Call(ctx, conn, bus.BuildFinish{Build: l.build, State: bus.BuildSucceeded})
	return err
}

// handshake connects to the builder as plain mTLS, and returns how long that took.
func (l *lease) handshake(ctx context.Context) (time.Duration, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(l.view.CA)) || len(l.view.Addresses) == 0 {
		return 0, errors.New("the lease has no CA or no address")
	}
	leaf, _ := pem.Decode([]byte(l.view.Certificate))
	if leaf == nil {
		return 0, errors.New("the lease has no certificate")
	}
	dialer := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ServerName: l.view.ServerName, RootCAs: roots,
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Bytes}, PrivateKey: l.key}},
	}}
	started := time.Now()
	conn, err := dialer.DialContext(ctx, "tcp", l.view.Addresses[0])
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	// With TLS 1.3 the server has accepted the client's certificate when its first bytes are here: HTTP/2 settings.
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return 0, err
	}
	if _, err := conn.Read(make([]byte, 9)); err != nil {
		return 0, err
	}
	return time.Since(started), nil
}

// files are a lease's certificates where clients that need files find them.
type files struct{ ca, cert, key string }

func (l *lease) write(dir string) (files, error) {
	der, err := x509.MarshalPKCS8PrivateKey(l.key)
	if err != nil {
		return files{}, err
	}
	f := files{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return f, errors.Join(
		os.WriteFile(f.ca, []byte(l.view.CA), 0o600),
		os.WriteFile(f.cert, []byte(l.view.Certificate), 0o600),
		os.WriteFile(f.key, key, 0o600),
	)
}
