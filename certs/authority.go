package certs

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"
)

const (
	// Backdate is how far in the past a certificate begins, for peers whose clocks are behind.
	Backdate = 60 * time.Second
	// MaxLife bounds what a caller may ask for. A lease lives as long as one build.
	MaxLife = 7 * 24 * time.Hour
)

// ErrSpent is returned by an Authority that has signed this kind of leaf, or was told to forget its key.
var ErrSpent = errors.New("the authority of this lease has signed this kind of certificate, or has forgotten its key")

// Authority is the certificate authority of one lease. It signs one server leaf and one client leaf, then has no key.
type Authority struct {
	lease    Lease
	root     *x509.Certificate
	notAfter time.Time

	mu     sync.Mutex
	key    ed25519.PrivateKey // nil once forgotten; a byte slice, so that it can be cleared
	signed map[role]bool
}

// NewAuthority makes the authority of a lease. Its certificates are valid from Backdate before now until notAfter, in
// whole seconds as X.509 has them.
func NewAuthority(lease Lease, now, notAfter time.Time) (*Authority, error) {
	if err := lease.Validate(); err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	notBefore, notAfter := now.Add(-Backdate).UTC().Truncate(time.Second), notAfter.UTC().Truncate(time.Second)
	if life := notAfter.Sub(now); life <= 0 || life > MaxLife {
		return nil, fmt.Errorf("make authority: a life of %s is not within 0 and %s", life, MaxLife)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	template := rootTemplate(lease, notBefore, notAfter)
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	return &Authority{lease: lease, root: root, notAfter: notAfter, key: private, signed: map[role]bool{}}, nil
}

// rootTemplate is a root that cannot have intermediates, and whose word counts for names of this lease only.
func rootTemplate(l Lease, notBefore, notAfter time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: "depot lease " + l.ID},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            0,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},

		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{l.ID},
		PermittedURIDomains:         []string{l.Organization},
		ExcludedIPRanges:            []*net.IPNet{everyIP(net.IPv4len), everyIP(net.IPv6len)},
	}
}

func everyIP(length int) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, length), Mask: make(net.IPMask, length)}
}

// CA returns the root certificate in PEM.
func (a *Authority) CA() string { return encode(pemCertificate, a.root.Raw) }

// NotAfter returns when the root and its leaves end.
func (a *Authority) NotAfter() time.Time { return a.notAfter }

// SignServer signs the machine's leaf for the key of its certificate request. The second call returns ErrSpent.
func (a *Authority) SignServer(csr string) (string, error) { return a.sign(roleMachine, csr) }

// SignClient signs the client's leaf for the key of its certificate request. The second call returns ErrSpent.
func (a *Authority) SignClient(csr string) (string, error) { return a.sign(roleClient, csr) }

// Forget clears the key. It happens by itself once both leaves are signed; call it (deferred) for when they are not.
func (a *Authority) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forget()
}

func (a *Authority) forget() {
	clear(a.key)
	a.key = nil
}

func (a *Authority) sign(r role, text string) (string, error) {
	csr, err := parseRequest(text)
	if err != nil {
		return "", fmt.Errorf("sign certificate of the %s: %w", r, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.key == nil || a.signed[r] {
		return "", fmt.Errorf("sign certificate of the %s of lease %s: %w", r, a.lease.ID, ErrSpent)
	}
	der, err := x509.CreateCertificate(rand.Reader, a.leafTemplate(r), a.root, csr.PublicKey, crypto.Signer(a.key))
	if err != nil {
		return "", fmt.Errorf("sign certificate of the %s: %w", r, err)
	}
	a.signed[r] = true
	if a.signed[roleMachine] && a.signed[roleClient] {
		a.forget()
	}
	return encode(pemCertificate, der), nil
}

// leafTemplate takes nothing from a request. The random serial is x509's own.
func (a *Authority) leafTemplate(r role) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: a.lease.ID},
		NotBefore:             a.root.NotBefore,
		NotAfter:              a.root.NotAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{r.usage()},
		DNSNames:              dnsNames(a.lease.ID, r),
		URIs:                  []*url.URL{a.lease.uri(r)},
	}
}
