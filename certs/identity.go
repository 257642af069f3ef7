package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
)

// Lease names what a set of certificates is for. All four are DNS labels.
type Lease struct {
	ID           string // SNI and DNS SAN of the machine's leaf
	Build        string
	Project      string
	Organization string
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Validate refuses anything that is not a DNS label, so that no name can reach into another part of a certificate.
func (l Lease) Validate() error {
	var errs []error
	for _, part := range []struct{ name, value string }{
		{"lease", l.ID}, {"build", l.Build}, {"project", l.Project}, {"organization", l.Organization},
	} {
		if !label.MatchString(part.value) {
			errs = append(errs, fmt.Errorf("%s %q is not a DNS label", part.name, part.value))
		}
	}
	return errors.Join(errs...)
}

// role is which end of a lease a leaf speaks for. It is the last element of the leaf's URI.
type role string

const (
	roleMachine role = "machine"
	roleClient  role = "client"
)

// usage is the one extended key usage that a leaf of this role has.
func (r role) usage() x509.ExtKeyUsage {
	if r == roleMachine {
		return x509.ExtKeyUsageServerAuth
	}
	return x509.ExtKeyUsageClientAuth
}

// uri returns the identity of one end: depot://<organization>/<project>/<build>/<lease>/<role>.
func (l Lease) uri(r role) *url.URL {
	return &url.URL{Scheme: "depot", Host: l.Organization, Path: "/" + l.Project + "/" + l.Build + "/" + l.ID + "/" + string(r)}
}

var uriPath = regexp.MustCompile(`^/([a-z0-9-]+)/([a-z0-9-]+)/([a-z0-9-]+)/(machine|client)$`)

// LeaseOf returns the identity in a leaf that this package signed, for logs and for people. It does not verify the leaf.
func LeaseOf(leaf *x509.Certificate) (Lease, error) {
	l, _, err := identity(leaf)
	return l, err
}

func identity(leaf *x509.Certificate) (Lease, role, error) {
	if len(leaf.URIs) != 1 {
		return Lease{}, "", fmt.Errorf("certificate has %d URIs, want 1", len(leaf.URIs))
	}
	u := leaf.URIs[0]
	m := uriPath.FindStringSubmatch(u.Path)
	if m == nil {
		return Lease{}, "", fmt.Errorf("certificate URI %q is not depot://<organization>/<project>/<build>/<lease>/<role>", u)
	}
	l, r := Lease{ID: m[3], Build: m[2], Project: m[1], Organization: u.Host}, role(m[4])
	if u.String() != l.uri(r).String() {
		return Lease{}, "", fmt.Errorf("certificate URI %q has more than an identity in it", u)
	}
	return l, r, l.Validate()
}

// checkLeaf requires that a leaf is what an Authority of this lease signs for this role, and nothing more. That it
// chains to the lease's root and is within its time is x509's business.
func checkLeaf(leaf *x509.Certificate, lease string, want role) error {
	l, r, err := identity(leaf)
	switch {
	case err != nil:
		return err
	case l.ID != lease:
		return fmt.Errorf("certificate is of lease %s, want %s", l.ID, lease)
	case r != want:
		return fmt.Errorf("certificate is of a %s, want %s", r, want)
	case leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		return errors.New("certificate may sign more than a handshake")
	case len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != want.usage() || len(leaf.UnknownExtKeyUsage) != 0:
		return fmt.Errorf("certificate is not for a %s alone", want)
	case len(leaf.IPAddresses) != 0 || len(leaf.EmailAddresses) != 0:
		return errors.New("certificate has names that no lease has")
	case !slices.Equal(leaf.DNSNames, dnsNames(lease, want)):
		return fmt.Errorf("certificate is for %q, want %q", leaf.DNSNames, dnsNames(lease, want))
	}
	return checkKeyType(leaf.PublicKey)
}

// dnsNames are the DNS names of a leaf: only a machine is dialled.
func dnsNames(lease string, r role) []string {
	if r == roleMachine {
		return []string{lease}
	}
	return nil
}
