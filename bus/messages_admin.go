package bus

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// ProjectCreate makes a project in the caller's organization.
type ProjectCreate struct {
	Name          string `json:"name"`
	Connection    string `json:"connection"`    // id or name; empty means the organization's only one
	Architectures []Arch `json:"architectures"` // the default first; empty means the connection's own
}

// Validate checks the name.
func (m ProjectCreate) Validate() error {
	return errors.Join(ValidateName(m.Name), validateArchitectures(m.Architectures))
}

// ProjectRef names a project by id or name; empty means the organization's default.
type ProjectRef struct {
	Project string `json:"project"`
}

// Validate accepts everything: an unknown name is a not_found.
func (m ProjectRef) Validate() error { return nil }

// ProjectView is a project as a member of its organization sees it.
type ProjectView struct {
	Project       ProjectID    `json:"project"`
	Name          string       `json:"name"`
	Connection    ConnectionID `json:"connection"`
	Architectures []Arch       `json:"architectures"` // the default first
	Default       bool         `json:"default"`
	CreatedAt     time.Time    `json:"created_at"`
}

// Validate checks the id.
func (m ProjectView) Validate() error { return m.Project.Validate() }

// ProjectList is all projects of an organization, by name.
type ProjectList struct {
	Projects []ProjectView `json:"projects"`
}

// Validate checks each project.
func (m ProjectList) Validate() error { return validateAll(m.Projects) }

// TokenCreate makes a token. The caller generates the secret and sends its hash: the token's text never travels.
type TokenCreate struct {
	Token      TokenID   `json:"token"`
	Hash       string    `json:"hash"` // TokenHash of the text
	Name       string    `json:"name"`
	Role       Role      `json:"role"`       // RoleUser or RoleCI; RoleAgent with Connection
	Project    string    `json:"project"`    // RoleCI only: the one project it may build
	Connection string    `json:"connection"` // RoleAgent only
	ExpiresAt  time.Time `json:"expires_at"` // zero means never
}

// Validate checks the form.
func (m TokenCreate) Validate() error {
	errs := []error{m.Token.Validate(), ValidateName(m.Name), validateHash("hash", m.Hash)}
	if !slices.Contains([]Role{RoleUser, RoleCI, RoleAgent}, m.Role) {
		errs = append(errs, fmt.Errorf("a token cannot have the role %q (%s, %s or %s)", string(m.Role), RoleUser, RoleCI, RoleAgent))
	}
	return errors.Join(errs...)
}

// TokenRef names a token.
type TokenRef struct {
	Token TokenID `json:"token"`
}

// Validate checks the id.
func (m TokenRef) Validate() error { return m.Token.Validate() }

// TokenView is a token without its secret.
type TokenView struct {
	Token      TokenID      `json:"token"`
	Name       string       `json:"name"`
	Role       Role         `json:"role"`
	Project    ProjectID    `json:"project"`
	Connection ConnectionID `json:"connection"`
	CreatedAt  time.Time    `json:"created_at"`
	ExpiresAt  time.Time    `json:"expires_at"` // zero means never
}

// Validate checks the id.
func (m TokenView) Validate() error { return m.Token.Validate() }

// TokenList is all tokens of an organization, by name.
type TokenList struct {
	Tokens []TokenView `json:"tokens"`
}

// Validate checks each token.
func (m TokenList) Validate() error { return validateAll(m.Tokens) }

// ListBuilds asks for the newest builds.
type ListBuilds struct {
	Project string `json:"project"` // id or name; empty means all that the caller may see
	Limit   int    `json:"limit"`   // 0 means 50; at most 500
}

// Validate checks the limit.
func (m ListBuilds) Validate() error {
	if m.Limit < 0 || m.Limit > 500 {
		return errors.New("limit is not between 0 and 500")
	}
	return nil
}

// BuildList is builds, the newest first, without connection fields.
type BuildList struct {
	Builds []BuildView `json:"builds"`
}

// Validate checks each build.
func (m BuildList) Validate() error { return validateAll(m.Builds) }

// MachineView is a machine as a member of its organization sees it.
type MachineView struct {
	Machine       MachineID    `json:"machine"`
	Project       ProjectID    `json:"project"`
	ProjectName   string       `json:"project_name"`
	Connection    ConnectionID `json:"connection"`
	Architecture  Arch         `json:"architecture"`
	Volume        VolumeID     `json:"volume"`
	State         string       `json:"state"`
	Reason        string       `json:"reason"`
	Builds        int          `json:"builds"` // leases it holds now
	CreatedAt     time.Time    `json:"created_at"`
	Since         time.Time    `json:"since"` // in this state
	DiskFreeBytes int64        `json:"disk_free_bytes"`
	CacheBytes    int64        `json:"cache_bytes"`
}

// Validate checks the id.
func (m MachineView) Validate() error { return m.Machine.Validate() }

// MachineList is all machines of an organization that are not deleted.
type MachineList struct {
	Machines []MachineView `json:"machines"`
}

// Validate checks each machine.
func (m MachineList) Validate() error { return validateAll(m.Machines) }
