package certs

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const (
	pemCertificate = "CERTIFICATE"
	pemRequest     = "CERTIFICATE REQUEST"

	// maxPEM is many times what this package makes, and little enough to parse for anybody.
	maxPEM = 8 << 10
)

// Key is the private key of one end of a lease. It has no encoding: it works in [ClientConfig] and [ServerConfig] of
// the process that made it, and nowhere else. It prints, logs and marshals as a placeholder.
type Key struct{ private *ecdsa.PrivateKey }

// NewKey makes an ECDSA P-256 key.
func NewKey() (*Key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return &Key{private}, nil
}

// CSR returns a certificate request in PEM. It names nobody: the authority decides what the certificate says.
func (k *Key) CSR() (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k.private)
	if err != nil {
		return "", fmt.Errorf("make certificate request: %w", err)
	}
	return encode(pemRequest, der), nil
}

const placeholder = "[private key]"

// String returns a placeholder.
func (k *Key) String() string { return placeholder }

// Format prints a placeholder for every verb.
func (k *Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, placeholder) }

// LogValue logs a placeholder.
func (k *Key) LogValue() slog.Value { return slog.StringValue(placeholder) }

// MarshalText refuses: a key that would travel is a mistake to be seen at once.
func (k *Key) MarshalText() ([]byte, error) { return nil, errors.New("a private key does not travel") }

// SPKI returns the hexadecimal SHA-256 of the SubjectPublicKeyInfo in a certificate or certificate request in PEM:
// the pin of a key, the same in both. The signature of a request is checked.
func SPKI(text string) (string, error) {
	if csr, err := parseRequest(text); err == nil {
		return pin(csr.RawSubjectPublicKeyInfo), nil
	}
	leaf, err := parseCertificate(text)
	if err != nil {
		return "", fmt.Errorf("read public key: %w", err)
	}
	return pin(leaf.RawSubjectPublicKeyInfo), nil
}

func pin(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// parseRequest reads one request, proves that its sender holds the key, and limits the kinds of key.
func parseRequest(text string) (*x509.CertificateRequest, error) {
	der, err := decode(pemRequest, text)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("parse certificate request: %w", err)
	}
	if err := checkKeyType(csr.PublicKey); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request is not signed by its own key: %w", err)
	}
	return csr, nil
}

func parseCertificate(text string) (*x509.Certificate, error) {
	der, err := decode(pemCertificate, text)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	return cert, nil
}

// checkKeyType keeps to two kinds of key that are strong, small and fast, so that nobody's request is work for us.
func checkKeyType(public any) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
		return fmt.Errorf("key is ECDSA %s, want P-256", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("key is %T, want ECDSA P-256 or Ed25519", public)
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// decode reads exactly one block: what comes before, after or in its header could be a message to another reader.
func decode(kind, text string) ([]byte, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("%d bytes of PEM, want at most %d", len(text), maxPEM)
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != kind || len(block.Headers) != 0 {
		return nil, fmt.Errorf("not a %s in PEM", kind)
	}
	if encode(kind, block.Bytes) != text {
		return nil, fmt.Errorf("more than one %s in PEM", kind)
	}
	return block.Bytes, nil
}
