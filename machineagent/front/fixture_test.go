package front_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/certs"
	"github.com/depotctl/depot/machineagent/front"
)

// set is one generation of one lease, both ends.
type set struct {
	front.Lease
	authority *certs.Authority
	client    *tls.Config
}

func newSet(t testing.TB, id string, generation int) *set {
	t.Helper()
	deadline := time.Now().Add(time.Hour)
	a, err := certs.NewAuthority(certs.Lease{ID: id, Build: "bld-1", Project: "prj-1", Organization: "org-1"}, time.Now(), deadline)
	require.NoError(t, err)
	serverKey, clientKey := newKey(t), newKey(t)
	serverCSR, err := serverKey.CSR()
	require.NoError(t, err)
	clientCSR, err := clientKey.CSR()
	require.NoError(t, err)
	serverLeaf, err := a.SignServer(serverCSR)
	require.NoError(t, err)
	clientLeaf, err := a.SignClient(clientCSR)
	require.NoError(t, err)
	pin, err := certs.SPKI(clientCSR)
	require.NoError(t, err)
	s := &set{Lease: front.Lease{ID: id, Generation: generation, Deadline: deadline}, authority: a}
	s.TLS, err = certs.ServerConfig(id, a.CA(), serverLeaf, serverKey, pin)
	require.NoError(t, err)
	s.client, err = certs.ClientConfig(id, a.CA(), clientLeaf, clientKey)
	require.NoError(t, err)
	return s
}

func newKey(t testing.TB) *certs.Key {
	t.Helper()
	k, err := certs.NewKey()
	require.NoError(t, err)
	return k
}

// machine is a front that serves, with a daemon behind it.
type machine struct {
	*front.Front
	address string
	log     *syncBuffer
	changes atomic.Int64
}

func startMachine(t testing.TB, daemon func(*net.UnixConn), adjust ...func(*front.Config)) *machine {
	t.Helper()
	socket := startDaemon(t, daemon)
	m := &machine{log: &syncBuffer{}}
	cfg := front.Config{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		Changed: func() { m.changes.Add(1) },
		Log:     slog.New(slog.NewTextHandler(m.log, nil)),
	}
	for _, a := range adjust {
		a(&cfg)
	}
	var err error
	m.Front, err = front.New(cfg)
	require.NoError(t, err)
	l, err := front.Listen(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	m.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // ends in the cleanup below, which waits
	served := make(chan error, 1)
	go func() { served <- m.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-served)
	})
	return m
}

// startDaemon runs handle for each connection to a unix socket, and returns its path.
func startDaemon(t testing.TB, handle func(*net.UnixConn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "d")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return path
}

func echo(c *net.UnixConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

func dial(t testing.TB, address string, cfg *tls.Config) (*tls.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	require.NoError(t, err)
	conn := tls.Client(raw, cfg)
	t.Cleanup(func() { _ = conn.Close() })
	return conn, conn.HandshakeContext(ctx)
}

// ping proves that a connection works from end to end. A client of TLS 1.3 learns of its refusal only now.
func ping(c *tls.Conn) error {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	defer func() { _ = c.SetDeadline(time.Time{}) }()
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(c, answer); err != nil {
		return err
	}
	if string(answer) != "ping" {
		return errors.New("another answer")
	}
	return nil
}

func mustDial(t testing.TB, address string, cfg *tls.Config) *tls.Conn {
	t.Helper()
	c, err := dial(t, address, cfg)
	require.NoError(t, err)
	require.NoError(t, ping(c))
	return c
}

func requireRefused(t testing.TB, address string, cfg *tls.Config) {
	t.Helper()
	require.Error(t, refusal(t, address, cfg))
}

// refusal is what a client that is refused gets to see.
func refusal(t testing.TB, address string, cfg *tls.Config) error {
	t.Helper()
	c, err := dial(t, address, cfg)
	if err == nil {
		err = ping(c)
	}
	require.Error(t, err, "the front let it in")
	return err
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func refuseDial(context.Context) (net.Conn, error) { return nil, errors.New("no daemon") }
