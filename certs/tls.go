package certs

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Protocol is what is spoken inside: gRPC. A peer that offers anything else is refused.
const Protocol = "h2"

// IncompleteError says what is missing from a set of certificates. Whoever gets it has not dialled and must not.
type IncompleteError struct{ Missing []string }

// Error names what is missing.
func (e *IncompleteError) Error() string {
	return "the certificates are incomplete: no " + strings.Join(e.Missing, ", no ")
}

// PeerError says why the other end of a connection, although its certificate chains to the lease's root, is refused.
type PeerError struct{ Reason error }

// Error gives the reason.
func (e *PeerError) Error() string { return "refuse peer: " + e.Reason.Error() }

// Unwrap returns the reason.
func (e *PeerError) Unwrap() error { return e.Reason }

// ClientConfig returns the configuration with which a client reaches the machine of one lease, and only that machine.
// serverName is the lease's id. Anything missing is an *IncompleteError; a certificate that is not for this key, lease
// and role is refused too, so that a mistake shows before the first byte is sent.
func ClientConfig(serverName, ca, certificate string, key *Key) (*tls.Config, error) {
	own, roots, err := material(serverName, ca, certificate, key, roleClient)
	if err != nil {
		return nil, fmt.Errorf("configure client of lease %s: %w", serverName, err)
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{Protocol},
		ServerName:             serverName,
		RootCAs:                roots,
		Certificates:           []tls.Certificate{own},
		SessionTicketsDisabled: true,
		VerifyConnection:       func(cs tls.ConnectionState) error { return checkPeer(cs, serverName, roleMachine) },
	}, nil
}

// ServerConfig returns the configuration with which a machine serves one lease, and only the client whose key has the
// pin clientSPKI (see [SPKI]). Every handshake is a full one, so whatever the caller adds by wrapping VerifyConnection
// is asked every time.
func ServerConfig(lease, ca, certificate string, key *Key, clientSPKI string) (*tls.Config, error) {
	own, roots, err := material(lease, ca, certificate, key, roleMachine)
	if err == nil && clientSPKI == "" {
		err = &IncompleteError{Missing: []string{"pin of the client's key"}}
	}
	if err != nil {
		return nil, fmt.Errorf("configure server of lease %s: %w", lease, err)
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{Protocol},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              roots,
		Certificates:           []tls.Certificate{own},
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := checkPeer(cs, lease, roleClient); err != nil {
				return err
			}
			switch {
			case cs.ServerName != lease:
				return &PeerError{fmt.Errorf("it asked for %q, want %s", cs.ServerName, lease)}
			case pin(cs.PeerCertificates[0].RawSubjectPublicKeyInfo) != clientSPKI:
				return &PeerError{errors.New("its key is not the one that the lease was given to")}
			}
			return nil
		},
	}, nil
}

// checkPeer runs after x509 has verified the chain, the time and, for a client, the name.
func checkPeer(cs tls.ConnectionState, lease string, want role) error {
	switch {
	case cs.DidResume:
		return &PeerError{errors.New("it resumed a session")}
	case cs.NegotiatedProtocol != Protocol && (want == roleMachine || cs.NegotiatedProtocol != ""):
		// A client may leave the protocol open, as docker-buildx does: the daemon asks for HTTP/2 in the first bytes.
		return &PeerError{fmt.Errorf("it speaks %q, want %s", cs.NegotiatedProtocol, Protocol)}
	case len(cs.VerifiedChains) == 0:
		return &PeerError{errors.New("it is not verified")}
	}
	if err := checkLeaf(cs.PeerCertificates[0], lease, want); err != nil {
		return &PeerError{err}
	}
	return nil
}

// material checks one end's own set for completeness and consistency.
func material(lease, ca, certificate string, key *Key, r role) (tls.Certificate, *x509.CertPool, error) {
	missing := &IncompleteError{}
	for _, part := range []struct {
		name string
		none bool
	}{{"server name", lease == ""}, {"CA", ca == ""}, {"certificate", certificate == ""}, {"key", key == nil || key.private == nil}} {
		if part.none {
			missing.Missing = append(missing.Missing, part.name)
		}
	}
	if len(missing.Missing) > 0 {
		return tls.Certificate{}, nil, missing
	}
	root, err := parseCertificate(ca)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("read CA: %w", err)
	}
	leaf, err := parseCertificate(certificate)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("read certificate: %w", err)
	}
	if err := checkLeaf(leaf, lease, r); err != nil {
		return tls.Certificate{}, nil, err
	}
	if public, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !key.private.PublicKey.Equal(public) {
		return tls.Certificate{}, nil, errors.New("the certificate is for another key")
	}
	// Only the signature: whether the time is right is the peer's judgement, by the peer's clock.
	if err := leaf.CheckSignatureFrom(root); err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("the certificate is not signed by the CA: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key.private, Leaf: leaf}, roots, nil
}
