package bus

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"regexp"
	"strings"
)

// Identifiers are a prefix that names the kind, a dash and 16 characters of lower-case base32 (80 random bits).
// They are DNS labels and single subject tokens: a dot or a wildcard never reaches a subject or a key.
type (
	// OrganizationID identifies an organization, the owner of projects, connections and users.
	OrganizationID string
	// ProjectID identifies a project, the trust boundary of machines and caches.
	ProjectID string
	// ConnectionID identifies a connection: one cloud account, region and zone set.
	ConnectionID string
	// BuildID identifies one request of a client for builders. The client makes it, so that asking again is harmless.
	BuildID string
	// LeaseID identifies a build's fenced right to one machine. It is the DNS name in the lease's server certificate.
	LeaseID string
	// MachineID identifies a machine: a VM, or a process of the local provider.
	MachineID string
	// VolumeID identifies a cache volume.
	VolumeID string
	// TokenID identifies a token. It is the public half of the token's text.
	TokenID string
)

// NewOrganizationID returns a random identifier.
func NewOrganizationID() OrganizationID { return OrganizationID(newID("org")) }

// NewProjectID returns a random identifier.
func NewProjectID() ProjectID { return ProjectID(newID("prj")) }

// NewConnectionID returns a random identifier.
func NewConnectionID() ConnectionID { return ConnectionID(newID("con")) }

// NewBuildID returns a random identifier.
func NewBuildID() BuildID { return BuildID(newID("bld")) }

// NewLeaseID returns a random identifier.
func NewLeaseID() LeaseID { return LeaseID(newID("lse")) }

// NewMachineID returns a random identifier.
func NewMachineID() MachineID { return MachineID(newID("mch")) }

// NewVolumeID returns a random identifier.
func NewVolumeID() VolumeID { return VolumeID(newID("vol")) }

// NewTokenID returns a random identifier.
func NewTokenID() TokenID { return TokenID(newID("tok")) }

// Validate refuses anything that New… would not have made.
func (id OrganizationID) Validate() error { return checkID("organization", "org", string(id)) }

// Validate refuses anything that New… would not have made.
func (id ProjectID) Validate() error { return checkID("project", "prj", string(id)) }

// Validate refuses anything that New… would not have made.
func (id ConnectionID) Validate() error { return checkID("connection", "con", string(id)) }

// Validate refuses anything that New… would not have made.
func (id BuildID) Validate() error { return checkID("build", "bld", string(id)) }

// Validate refuses anything that New… would not have made.
func (id LeaseID) Validate() error { return checkID("lease", "lse", string(id)) }

// Validate refuses anything that New… would not have made.
func (id MachineID) Validate() error { return checkID("machine", "mch", string(id)) }

// Validate refuses anything that New… would not have made.
func (id VolumeID) Validate() error { return checkID("volume", "vol", string(id)) }

// Validate refuses anything that New… would not have made.
func (id TokenID) Validate() error { return checkID("token", "tok", string(id)) }

var idEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

func newID(prefix string) string {
	var b [10]byte
	rand.Read(b[:]) // never fails: crypto/rand
	return prefix + "-" + strings.ToLower(idEncoding.EncodeToString(b[:]))
}

var (
	idPattern   = regexp.MustCompile(`^[a-z]{3}-[a-z2-7]{16}$`)
	namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

func checkID(kind, prefix, s string) error {
	if !idPattern.MatchString(s) || !strings.HasPrefix(s, prefix+"-") {
		return fmt.Errorf("%q is not a %s id (%s-… with 16 characters of a-z and 2-7)", s, kind, prefix)
	}
	return nil
}

// ValidateName checks the name of an organization, a project, a connection or a token: a DNS label.
func ValidateName(s string) error {
	if !namePattern.MatchString(s) {
		return fmt.Errorf("%q is not a name (1 to 63 of a-z, 0-9 and -, not at the ends)", s)
	}
	return nil
}
