package certs

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAuthority_SignsOneLeafOfEachKind(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority(testLease(1), time.Now(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	csr := csrOf(t, newKey(t))
	key := a.key

	_, err = a.SignServer(csr)
	require.NoError(t, err)
	_, err = a.SignServer(csr)
	require.ErrorIs(t, err, ErrSpent)
	require.NotNil(t, a.key, "the client's leaf is still to be signed")

	_, err = a.SignClient(csr)
	require.NoError(t, err)
	_, err = a.SignClient(csr)
	require.ErrorIs(t, err, ErrSpent)
	require.Nil(t, a.key)
	require.Equal(t, make(ed25519.PrivateKey, ed25519.PrivateKeySize), key, "the key's bytes are cleared")
}

func TestAuthority_SignsNothingOnceItForgot(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority(testLease(1), time.Now(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	key := a.key
	a.Forget()
	a.Forget()
	require.Equal(t, make(ed25519.PrivateKey, ed25519.PrivateKeySize), key)
	_, err = a.SignServer(csrOf(t, newKey(t)))
	require.ErrorIs(t, err, ErrSpent)
	require.NotEmpty(t, a.CA(), "the certificate is public, and stays")
}

func TestAuthority_SignsOnceUnderARace(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority(testLease(1), time.Now(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	csr := csrOf(t, newKey(t))
	var signed atomic.Int32
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			if _, err := a.SignClient(csr); err == nil {
				signed.Add(1)
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 1, signed.Load())
}

func TestAuthority_RefusedRequestDoesNotSpendIt(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority(testLease(1), time.Now(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	_, err = a.SignServer("nonsense")
	require.Error(t, err)
	_, err = a.SignServer(csrOf(t, newKey(t)))
	require.NoError(t, err)
}

func TestAuthority_WritesStrictLeaves(t *testing.T) {
	t.Parallel()
	now := time.Now()
	p := newPair(t, testLease(7), now.Add(time.Hour))
	ca, err := parseCertificate(p.ca)
	require.NoError(t, err)
	require.True(t, ca.IsCA)
	require.True(t, ca.MaxPathLenZero)
	require.Equal(t, []string{"lse-7"}, ca.PermittedDNSDomains)
	require.Equal(t, []string{"org-a"}, ca.PermittedURIDomains)
	serials := map[string]bool{}
	for _, want := range []struct {
		text string
		role role
		dns  []string
		uri  string
	}{
		{p.serverLeaf, roleMachine, []string{"lse-7"}, "depot://org-a/prj-a/bld-7/lse-7/machine"},
		{p.clientPEM, roleClient, nil, "depot://org-a/prj-a/bld-7/lse-7/client"},
	} {
		leaf, err := parseCertificate(want.text)
		require.NoError(t, err)
		require.NoError(t, checkLeaf(leaf, "lse-7", want.role))
		require.NoError(t, leaf.CheckSignatureFrom(ca))
		require.Equal(t, want.dns, leaf.DNSNames)
		require.Equal(t, want.uri, leaf.URIs[0].String())
		require.Equal(t, []x509.ExtKeyUsage{want.role.usage()}, leaf.ExtKeyUsage)
		require.Equal(t, x509.KeyUsageDigitalSignature, leaf.KeyUsage)
		require.False(t, leaf.IsCA)
		require.WithinDuration(t, now.Add(-Backdate), leaf.NotBefore, 2*time.Second)
		require.Equal(t, p.authority.NotAfter(), leaf.NotAfter)
		require.WithinDuration(t, now.Add(time.Hour), leaf.NotAfter, time.Second)
		require.Greater(t, leaf.SerialNumber.BitLen(), 64, "serials are random")
		serials[leaf.SerialNumber.String()] = true
		lease, err := LeaseOf(leaf)
		require.NoError(t, err)
		require.Equal(t, testLease(7), lease)
	}
	require.Len(t, serials, 2)
}

func TestAuthority_CopiesOnlyThePublicKeyOfARequest(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "root of the world", Organization: []string{"evil"}},
		DNSNames:    []string{"lse-other", "example.com"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		URIs:        []*url.URL{{Scheme: "depot", Host: "org-b", Path: "/prj-b/bld-b/lse-b/client"}},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA: true
		},
	}, key.private)
	require.NoError(t, err)
	a, err := NewAuthority(testLease(1), time.Now(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	text, err := a.SignClient(encode(pemRequest, der))
	require.NoError(t, err)
	leaf, err := parseCertificate(text)
	require.NoError(t, err)
	require.NoError(t, checkLeaf(leaf, "lse-1", roleClient))
	require.Equal(t, "CN=lse-1", leaf.Subject.String())
	require.True(t, key.private.PublicKey.Equal(leaf.PublicKey))
}

func TestAuthority_RefusesRequests(t *testing.T) {
	t.Parallel()
	good := csrOf(t, newKey(t))
	request := func(key any) string {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		require.NoError(t, err)
		return encode(pemRequest, der)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	der, err := decode(pemRequest, good)
	require.NoError(t, err)
	stolen := append([]byte(nil), der...)
	stolen[len(stolen)-1] ^= 1
	for name, bad := range map[string]struct{ csr, why string }{
		"empty":            {"", "not a CERTIFICATE REQUEST"},
		"not PEM":          {"hello", "not a CERTIFICATE REQUEST"},
		"certificate":      {newPair(t, testLease(1), time.Now().Add(time.Hour)).clientPEM, "not a CERTIFICATE REQUEST"},
		"two requests":     {good + good, "more than one"},
		"text before":      {"please\n" + good, "more than one"},
		"header":           {strings.Replace(good, "-----\n", "-----\nA: b\n\n", 1), "not a CERTIFICATE REQUEST"},
		"too long":         {good + strings.Repeat("x", maxPEM), "at most"},
		"trailing DER":     {encode(pemRequest, append(append([]byte(nil), der...), 0)), "parse certificate request"},
		"broken signature": {encode(pemRequest, stolen), "certificate request"},
		"ECDSA P-384":      {request(p384), "P-384, want P-256"},
		"RSA":              {request(rsaKey), "want ECDSA P-256 or Ed25519"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, err := NewAuthority(testLease(1), time.Now(), time.Now().Add(time.Hour))
			require.NoError(t, err)
			_, err = a.SignClient(bad.csr)
			require.ErrorContains(t, err, bad.why)
			_, err = SPKI(bad.csr)
			if name != "certificate" {
				require.Error(t, err)
			}
		})
	}
}

func TestAuthority_AcceptsEd25519Requests(t *testing.T) {
	t.Parallel()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(t, err)
	a, err := NewAuthority(testLease(1), time.Now(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	_, err = a.SignClient(encode(pemRequest, der))
	require.NoError(t, err)
}

func TestNewAuthority_RefusesNamesAndLives(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, bad := range map[string]struct {
		lease    Lease
		notAfter time.Time
		why      string
	}{
		"ended already": {testLease(1), now.Add(-time.Second), "a life of"},
		"for ever":      {testLease(1), now.Add(MaxLife + time.Minute), "a life of"},
		"no names":      {Lease{}, now.Add(time.Hour), "organization \"\" is not a DNS label"},
		"wildcard":      {Lease{ID: "*", Build: "b", Project: "p", Organization: "o"}, now.Add(time.Hour), "lease \"*\""},
		"dot":           {Lease{ID: "a.b", Build: "b", Project: "p", Organization: "o"}, now.Add(time.Hour), "lease \"a.b\""},
		"slash":         {Lease{ID: "a", Build: "b/c", Project: "p", Organization: "o"}, now.Add(time.Hour), "build \"b/c\""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := NewAuthority(bad.lease, now, bad.notAfter)
			require.ErrorContains(t, err, bad.why)
		})
	}
}

func TestKey_HasNoWayOut(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	secret, err := key.private.Bytes()
	require.NoError(t, err)
	for _, shown := range []string{fmt.Sprint(key), fmt.Sprintf("%v %+v %#v %s %x %d", key, key, key, key, key, key), key.LogValue().String(), key.String()} {
		require.Contains(t, shown, placeholder)
		require.NotContains(t, shown, fmt.Sprintf("%x", secret))
	}
	_, err = json.Marshal(map[string]any{"key": key})
	require.ErrorContains(t, err, "does not travel")
}

func TestSPKI_IsTheSameInRequestAndCertificate(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	csr := csrOf(t, key)
	a, err := NewAuthority(testLease(1), time.Now(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	leaf, err := a.SignClient(csr)
	require.NoError(t, err)
	fromRequest, err := SPKI(csr)
	require.NoError(t, err)
	fromLeaf, err := SPKI(leaf)
	require.NoError(t, err)
	require.Equal(t, fromRequest, fromLeaf)
	require.Len(t, fromLeaf, 64)
}

func BenchmarkAuthority(b *testing.B) {
	key, err := NewKey()
	require.NoError(b, err)
	csr, err := key.CSR()
	require.NoError(b, err)
	for b.Loop() {
		a, err := NewAuthority(testLease(1), time.Now(), time.Now().Add(time.Hour))
		require.NoError(b, err)
		_, err = a.SignServer(csr)
		require.NoError(b, err)
		_, err = a.SignClient(csr)
		require.NoError(b, err)
	}
}
