package certs

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// forger holds a lease's key, as nobody does: it signs what an Authority never would, so that the verifiers are tested
// alone.
type forger struct {
	*Authority
	key *Key // of the forged leaf
}

func newForger(t *testing.T) *forger {
	t.Helper()
	a, err := NewAuthority(testLease(1), time.Now(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	return &forger{a, newKey(t)}
}

func (f *forger) leaf(t *testing.T, r role, spoil func(*x509.Certificate)) []byte {
	t.Helper()
	template := f.leafTemplate(r)
	spoil(template)
	der, err := x509.CreateCertificate(rand.Reader, template, f.root, &f.key.private.PublicKey, f.Authority.key)
	require.NoError(t, err)
	return der
}

// mutations are leaves that chain to the right root, signed by the right key, and are still not what a lease's peer has.
func mutations(r role) map[string]func(*x509.Certificate) {
	uri := func(text string) func(*x509.Certificate) {
		u, err := url.Parse(text)
		if err != nil {
			panic(err)
		}
		return func(c *x509.Certificate) { c.URIs = []*url.URL{u} }
	}
	m := map[string]func(*x509.Certificate){
		"expired":       func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) },
		"not yet valid": func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) },
		"is a CA":       func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign },
		"may sign":      func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign },
		"no key usage":  func(c *x509.Certificate) { c.KeyUsage = 0 },
		"both usages": func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		},
		"any usage":           func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
		"usage and any":       func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageAny) },
		"no usage":            func(c *x509.Certificate) { c.ExtKeyUsage = nil },
		"unknown usage":       func(c *x509.Certificate) { c.UnknownExtKeyUsage = append(c.UnknownExtKeyUsage, []int{1, 2, 3}) },
		"no URI":              func(c *x509.Certificate) { c.URIs = nil },
		"two URIs":            func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"URI of other org":    uri("depot://org-b/prj-a/bld-1/lse-1/" + string(r)),
		"URI of other lease":  uri("depot://org-a/prj-a/bld-1/lse-2/" + string(r)),
		"URI of no role":      uri("depot://org-a/prj-a/bld-1/lse-1/root"),
		"URI with no role":    uri("depot://org-a/prj-a/bld-1/lse-1"),
		"URI of other scheme": uri("spiffe://org-a/prj-a/bld-1/lse-1/" + string(r)),
		"URI with query":      uri("depot://org-a/prj-a/bld-1/lse-1/" + string(r) + "?x=1"),
		"URI with fragment":   uri("depot://org-a/prj-a/bld-1/lse-1/" + string(r) + "#x"),
		"URI with user":       uri("depot://root@org-a/prj-a/bld-1/lse-1/" + string(r)),
		"URI with port":       uri("depot://org-a:1/prj-a/bld-1/lse-1/" + string(r)),
		"URI with dots":       uri("depot://org-a/prj-a/../bld-1/lse-1/" + string(r)),
		"URI escaped":         uri("depot://org-a/prj-a/bld-1/lse%2D1/" + string(r)),
		"other DNS name":      func(c *x509.Certificate) { c.DNSNames = []string{"lse-2"} },
		"more DNS names":      func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "more.lse-1") },
		"wildcard DNS name":   func(c *x509.Certificate) { c.DNSNames = []string{"*.lse-1"} },
		"IP address":          func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} },
		"e-mail address":      func(c *x509.Certificate) { c.EmailAddresses = []string{"root@lse-1"} },
		"critical unknown": func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		},
	}
	if r == roleMachine {
		m["role of a client"] = func(c *x509.Certificate) { *c = *clientTemplate(c) }
		m["no DNS name"] = func(c *x509.Certificate) { c.DNSNames = nil }
	} else {
		m["role of a machine"] = uri("depot://org-a/prj-a/bld-1/lse-1/machine")
		m["DNS name"] = func(c *x509.Certificate) { c.DNSNames = []string{"lse-1"} }
	}
	return m
}

func clientTemplate(c *x509.Certificate) *x509.Certificate {
	client := (&Authority{lease: testLease(1), root: &x509.Certificate{NotBefore: c.NotBefore, NotAfter: c.NotAfter}}).leafTemplate(roleClient)
	client.DNSNames = c.DNSNames // so that it fails for its role, not for its name
	return client
}

func TestServerConfig_RefusesEveryMutatedClient(t *testing.T) {
	t.Parallel()
	for name, spoil := range mutations(roleClient) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newForger(t)
			server := f.server(t)
			requireConnects(t, server, f.rawClient(t, func(*x509.Certificate) {}))
			_, clientErr := connect(t.Context(), server, f.rawClient(t, spoil))
			require.Error(t, clientErr)
		})
	}
}

func TestClientConfig_RefusesEveryMutatedMachine(t *testing.T) {
	t.Parallel()
	for name, spoil := range mutations(roleMachine) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newForger(t)
			client := f.client(t)
			requireConnects(t, f.rawServer(t, func(*x509.Certificate) {}), client)
			_, clientErr := connect(t.Context(), f.rawServer(t, spoil), client)
			require.Error(t, clientErr)
		})
	}
}

// TestVerifiers_RefuseEveryFlippedByte changes each byte of a leaf in turn: all are covered by the signature.
func TestVerifiers_RefuseEveryFlippedByte(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	server, honest := f.server(t), f.rawClient(t, func(*x509.Certificate) {})
	roots := server.ClientCAs
	good := honest.Certificates[0].Certificate[0]
	accepted := 0
	for i := range good {
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			bad := append([]byte(nil), good...)
			bad[i] ^= flip
			leaf, err := x509.ParseCertificate(bad)
			if err != nil {
				continue
			}
			_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			if err == nil {
				accepted++
			}
		}
	}
	require.Zero(t, accepted, "of %d mutations", 3*len(good))
}

func (f *forger) server(t *testing.T) *tls.Config {
	t.Helper()
	key := newKey(t)
	leaf, err := f.SignServer(csrOf(t, key))
	require.NoError(t, err)
	pinned, err := SPKI(csrOf(t, f.key))
	require.NoError(t, err)
	cfg, err := ServerConfig(f.lease.ID, f.CA(), leaf, key, pinned)
	require.NoError(t, err)
	return cfg
}

func (f *forger) client(t *testing.T) *tls.Config {
	t.Helper()
	key := newKey(t)
	leaf, err := f.SignClient(csrOf(t, key))
	require.NoError(t, err)
	cfg, err := ClientConfig(f.lease.ID, f.CA(), leaf, key)
	require.NoError(t, err)
	return cfg
}

func (f *forger) rawClient(t *testing.T, spoil func(*x509.Certificate)) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(f.root)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{Protocol}, ServerName: f.lease.ID, RootCAs: roots,
		Certificates: []tls.Certificate{{Certificate: [][]byte{f.leaf(t, roleClient, spoil)}, PrivateKey: f.key.private}},
	}
}

func (f *forger) rawServer(t *testing.T, spoil func(*x509.Certificate)) *tls.Config {
	t.Helper()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{Protocol}, ClientAuth: tls.RequireAnyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{f.leaf(t, roleMachine, spoil)}, PrivateKey: f.key.private}},
	}
}

func TestLeaseOf_ReadsOnlyWhatAnAuthorityWrote(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	for name, spoil := range mutations(roleClient) {
		leaf, err := x509.ParseCertificate(f.leaf(t, roleClient, spoil))
		require.NoError(t, err, name)
		if lease, err := LeaseOf(leaf); err == nil {
			require.NoError(t, lease.Validate(), "%s: %+v", name, lease)
		}
	}
}
