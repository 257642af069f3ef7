package depotctl

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
)

// front terminates TLS before a daemon's socket as a machine does: the certificates are chosen by the lease in the SNI.
type front struct {
	listener net.Listener
	socket   string

	mu     sync.Mutex
	leases map[string]*tls.Config
	conns  map[net.Conn]string
}

func newFront(t testing.TB, socket string) *front {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f := &front{listener: listener, socket: socket, leases: map[string]*tls.Config{}, conns: map[net.Conn]string{}}
	var tasks sync.WaitGroup
	tasks.Go(func() { f.accept(&tasks) })
	t.Cleanup(func() {
		_ = listener.Close()
		f.cut("")
		tasks.Wait()
	})
	return f
}

func (f *front) address() string { return f.listener.Addr().String() }

func (f *front) accept(tasks *sync.WaitGroup) {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if c, ok := f.leases[hello.ServerName]; ok {
				return c, nil
			}
			return nil, errors.New("no such lease")
		},
	}
	for {
		raw, err := f.listener.Accept()
		if err != nil {
			return
		}
		tasks.Go(func() { f.serve(tls.Server(raw, config)) })
	}
}

func (f *front) serve(conn *tls.Conn) {
	defer conn.Close()
	if err := conn.Handshake(); err != nil {
		return
	}
	f.mu.Lock()
	f.conns[conn] = conn.ConnectionState().ServerName
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.conns, conn)
		f.mu.Unlock()
	}()
	backend, err := net.Dial("unix", f.socket)
	if err != nil {
		return
	}
	defer backend.Close()
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{conn, backend}, {backend, conn}} {
		go func() {
			_, _ = io.Copy(pair[0], pair[1])
			done <- struct{}{}
		}()
	}
	<-done
}

// cut ends the connections of a lease, or of all.
func (f *front) cut(lease string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c, l := range f.conns {
		if lease == "" || lease == l {
			_ = c.Close()
		}
	}
}

// grant makes the certificates of a lease, as machine and API server do together.
func (f *front) grant(t testing.TB, view *bus.LeaseView, identity certs.Lease, csr string) {
	t.Helper()
	f.grantTo(t, view, identity, csr, csr)
}

// grantTo is grant with a front that expects the client to hold the key of pinned.
func (f *front) grantTo(t testing.TB, view *bus.LeaseView, identity certs.Lease, csr, pinned string) {
	t.Helper()
	now := time.Now()
	authority, err := certs.NewAuthority(identity, now, now.Add(time.Hour))
	require.NoError(t, err)
	key, err := certs.NewKey()
	require.NoError(t, err)
	machineCSR, err := key.CSR()
	require.NoError(t, err)
	server, err := authority.SignServer(machineCSR)
	require.NoError(t, err)
	client, err := authority.SignClient(csr)
	require.NoError(t, err)
	pin, err := certs.SPKI(pinned)
	require.NoError(t, err)
	config, err := certs.ServerConfig(identity.ID, authority.CA(), server, key, pin)
	require.NoError(t, err)
	f.mu.Lock()
	f.leases[identity.ID] = config
	f.mu.Unlock()
	view.Addresses, view.ServerName = []string{f.address()}, identity.ID
	view.CA, view.Certificate = authority.CA(), client
}
