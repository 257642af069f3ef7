package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func testLease(n int) Lease {
	return Lease{ID: fmt.Sprintf("lse-%d", n), Build: fmt.Sprintf("bld-%d", n), Project: "prj-a", Organization: "org-a"}
}

// pair is both ends of one lease.
type pair struct {
	lease                     Lease
	authority                 *Authority
	ca, serverLeaf, clientPEM string
	serverKey, clientKey      *Key
	clientSPKI                string
}

func newPair(t testing.TB, lease Lease, notAfter time.Time) *pair {
	t.Helper()
	p := &pair{lease: lease}
	var err error
	p.authority, err = NewAuthority(lease, time.Now(), notAfter)
	require.NoError(t, err)
	p.ca = p.authority.CA()
	p.serverKey, p.clientKey = newKey(t), newKey(t)
	p.serverLeaf, err = p.authority.SignServer(csrOf(t, p.serverKey))
	require.NoError(t, err)
	p.clientPEM, err = p.authority.SignClient(csrOf(t, p.clientKey))
	require.NoError(t, err)
	p.clientSPKI, err = SPKI(p.clientPEM)
	require.NoError(t, err)
	return p
}

func newKey(t testing.TB) *Key {
	t.Helper()
	k, err := NewKey()
	require.NoError(t, err)
	return k
}

func csrOf(t testing.TB, k *Key) string {
	t.Helper()
	csr, err := k.CSR()
	require.NoError(t, err)
	return csr
}

func (p *pair) server(t testing.TB) *tls.Config {
	t.Helper()
	cfg, err := ServerConfig(p.lease.ID, p.ca, p.serverLeaf, p.serverKey, p.clientSPKI)
	require.NoError(t, err)
	return cfg
}

func (p *pair) client(t testing.TB) *tls.Config {
	t.Helper()
	cfg, err := ClientConfig(p.lease.ID, p.ca, p.clientPEM, p.clientKey)
	require.NoError(t, err)
	return cfg
}

// connect runs one connection and returns what each end saw. A client of TLS 1.3 learns that it was refused only when
// it reads, so both ends exchange a byte.
func connect(ctx context.Context, server, client *tls.Config) (serverErr, clientErr error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// A pipe would do, but it has no buffer: an end that refuses while the other writes would hang.
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err, err
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		far, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		conn := tls.Server(far, server)
		err = conn.HandshakeContext(ctx)
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		done <- errors.Join(err, far.Close())
	}()
	near, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return err, err
	}
	conn := tls.Client(near, client)
	clientErr = conn.HandshakeContext(ctx)
	if clientErr == nil {
		_, clientErr = io.ReadFull(conn, make([]byte, 1))
	}
	_ = near.Close()
	return <-done, clientErr
}

func requireConnects(t testing.TB, server, client *tls.Config) {
	t.Helper()
	serverErr, clientErr := connect(t.Context(), server, client)
	require.NoError(t, serverErr)
	require.NoError(t, clientErr)
}

func requireRefuses(t testing.TB, server, client *tls.Config, why string) {
	t.Helper()
	serverErr, clientErr := connect(t.Context(), server, client)
	require.Error(t, clientErr, "the client got through")
	require.ErrorContains(t, errors.Join(serverErr, clientErr), why)
}
