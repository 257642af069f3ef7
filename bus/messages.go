package bus

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// ProtocolVersion is the version of the messages in this package. Peers that speak another one are refused by Hello,
// with a line that says which side to upgrade.
const ProtocolVersion = 1

// Message is what every payload on the bus implements. Validate is called before a message is sent and after it is
// decoded; an invalid one is refused, never half understood.
type Message interface{ Validate() error }

// Arch is a processor architecture in Go's and Docker's spelling.
type Arch string

// The architectures that a machine may have.
const (
	AMD64 Arch = "amd64"
	ARM64 Arch = "arm64"
)

// Validate refuses an unknown architecture.
func (a Arch) Validate() error {
	switch a {
	case AMD64, ARM64:
		return nil
	}
	return fmt.Errorf("%q is not an architecture (%s or %s)", string(a), AMD64, ARM64)
}

// Empty is the payload of requests and replies that carry nothing.
type Empty struct{}

// Validate accepts everything.
func (Empty) Validate() error { return nil }

// Hello is the first request of every connection: it compares protocol versions and tells the caller who it is.
type Hello struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"` // of the program, for people
}

// Validate requires a protocol version.
func (m Hello) Validate() error {
	if m.Protocol < 1 {
		return fmt.Errorf("protocol is %d, want at least 1", m.Protocol)
	}
	return nil
}

// Welcome answers Hello.
type Welcome struct {
	Protocol     int            `json:"protocol"`
	Version      string         `json:"version"`
	Role         Role           `json:"role"`
	Organization OrganizationID `json:"organization"`
	Connection   ConnectionID   `json:"connection"`
	Project      ProjectID      `json:"project"` // the only project of a RoleCI token
}

// Validate requires a protocol version.
func (m Welcome) Validate() error { return Hello{Protocol: m.Protocol}.Validate() }

// BuildState is the state of a build, as in the design: requested, waiting, ready, running, then exactly one end.
type BuildState string

// The states of a build.
const (
	BuildRequested BuildState = "requested"
	BuildWaiting   BuildState = "waiting"
	BuildReady     BuildState = "ready"
	BuildRunning   BuildState = "running"
	BuildSucceeded BuildState = "succeeded"
	BuildFailed    BuildState = "failed"
	BuildCanceled  BuildState = "canceled"
	BuildExpired   BuildState = "expired"
)

// Ended reports whether the state is terminal.
func (s BuildState) Ended() bool {
	switch s {
	case BuildSucceeded, BuildFailed, BuildCanceled, BuildExpired:
		return true
	case BuildRequested, BuildWaiting, BuildReady, BuildRunning:
	}
	return false
}

// Validate refuses an unknown state.
func (s BuildState) Validate() error {
	switch s {
	case BuildRequested, BuildWaiting, BuildReady, BuildRunning, BuildSucceeded, BuildFailed, BuildCanceled, BuildExpired:
		return nil
	}
	return fmt.Errorf("%q is not a build state", string(s))
}

// Stage is where the acquisition of one builder stands. Every wait of a client ends by naming one.
type Stage string

// The stages, in their order. StageConnecting is the client's own; the API server reports the others.
const (
	StageQueued     Stage = "queued"
	StageLaunching  Stage = "launching machine"
	StageBooting    Stage = "booting"
	StageRegistered Stage = "registered"
	StageStarting   Stage = "starting BuildKit"
	StageServing    Stage = "serving"
	StageConnecting Stage = "connecting"
)

// Validate refuses an unknown stage.
func (s Stage) Validate() error {
	switch s {
	case StageQueued, StageLaunching, StageBooting, StageRegistered, StageStarting, StageServing, StageConnecting:
		return nil
	}
	return fmt.Errorf("%q is not a stage", string(s))
}

// BuildCreate asks for builders. Asking again with the same Build returns the same answer.
type BuildCreate struct {
	Build          BuildID `json:"build"`
	Project        string  `json:"project"`         // id or name; empty means the organization's default
	Architectures  []Arch  `json:"architectures"`   // empty means the project's default one
	CSR            string  `json:"csr"`             // PEM; the client's key never leaves the client
	TimeoutSeconds int     `json:"timeout_seconds"` // of the whole build; 0 means the project's default
	AcquireSeconds int     `json:"acquire_seconds"` // until all builders serve; 0 means the server's default
}

// Validate checks the form; whether the project exists is the API server's business.
func (m BuildCreate) Validate() error {
	errs := []error{m.Build.Validate(), validateArchitectures(m.Architectures), validatePEM("csr", m.CSR)}
	if m.TimeoutSeconds < 0 || m.AcquireSeconds < 0 {
		errs = append(errs, errors.New("a timeout is negative"))
	}
	return errors.Join(errs...)
}

// BuildRef names a build: in requests about it, and as the pointer in the queue of build requests.
type BuildRef struct {
	Build BuildID `json:"build"`
}

// Validate checks the id.
func (m BuildRef) Validate() error { return m.Build.Validate() }

// BuildFinish is the client's word on how its build ended. The first end wins; a later one changes nothing.
type BuildFinish struct {
	Build  BuildID    `json:"build"`
	State  BuildState `json:"state"`  // succeeded, failed or canceled
	Reason string     `json:"reason"` // one line, at most 1 KiB; no step output
}

// Validate refuses a state that a client cannot give.
func (m BuildFinish) Validate() error {
	if err := m.Build.Validate(); err != nil {
		return err
	}
	if len(m.Reason) > 1024 {
		return errors.New("reason is longer than 1 KiB")
	}
	switch m.State {
	case BuildSucceeded, BuildFailed, BuildCanceled:
		return nil
	case BuildRequested, BuildWaiting, BuildReady, BuildRunning, BuildExpired:
	}
	return fmt.Errorf("a client cannot end a build as %q", m.State)
}

// LeaseView is what a client is told about one lease. The connection fields are set once it serves, and only in the
// answer to the client's own GetBuild: never in an event.
type LeaseView struct {
	Lease        LeaseID   `json:"lease"`
	Architecture Arch      `json:"architecture"`
	Attempt      int       `json:"attempt"`
	Machine      MachineID `json:"machine"`
	Stage        Stage     `json:"stage"`
	Reason       string    `json:"reason"`
	Addresses    []string  `json:"addresses"`   // host:port, to be tried in order
	ServerName   string    `json:"server_name"` // SNI and DNS SAN: the lease id
	CA           string    `json:"ca"`          // PEM
	Certificate  string    `json:"certificate"` // PEM, for the CSR of BuildCreate
}

// BuildView is the state of a build as its owner may see it.
type BuildView struct {
	Build        BuildID        `json:"build"`
	Organization OrganizationID `json:"organization"`
	Project      ProjectID      `json:"project"`
	ProjectName  string         `json:"project_name"`
	State        BuildState     `json:"state"`
	Reason       string         `json:"reason"`
	Leases       []LeaseView    `json:"leases"` // the default architecture first
	CreatedAt    time.Time      `json:"created_at"`
	ReadyAt      time.Time      `json:"ready_at"`
	EndedAt      time.Time      `json:"ended_at"`
	Deadline     time.Time      `json:"deadline"`
}

// Validate checks ids and states.
func (m BuildView) Validate() error {
	errs := []error{m.Build.Validate(), m.Project.Validate(), m.State.Validate()}
	for _, l := range m.Leases {
		errs = append(errs, l.Lease.Validate(), l.Architecture.Validate(), l.Stage.Validate())
	}
	return errors.Join(errs...)
}

// BuildEvent is one line of a build's story. It is a hint for people and a wake-up for clients, never a decision.
type BuildEvent struct {
	Build        BuildID    `json:"build"`
	Project      ProjectID  `json:"project"`
	Time         time.Time  `json:"time"`
	State        BuildState `json:"state"`
	Architecture Arch       `json:"architecture"` // empty when it is about the whole build
	Machine      MachineID  `json:"machine"`
	Stage        Stage      `json:"stage"` // empty when the build has ended
	Message      string     `json:"message"`
}

// Validate checks ids and states.
func (m BuildEvent) Validate() error {
	return errors.Join(m.Build.Validate(), m.Project.Validate(), m.State.Validate(), optional(m.Architecture), optional(m.Machine), optional(m.Stage))
}

// BuildLive is a client's sign of life for its build: a core message, every 5 s, never stored.
type BuildLive struct {
	Build BuildID `json:"build"`
}

// Validate checks the id.
func (m BuildLive) Validate() error { return m.Build.Validate() }

// BuildEvents is the replay of a build's events.
type BuildEvents struct {
	Events []BuildEvent `json:"events"`
}

// Validate checks each event.
func (m BuildEvents) Validate() error { return validateAll(m.Events) }

// validateArchitectures accepts each architecture once; none is fine.
func validateArchitectures(all []Arch) error {
	for i, a := range all {
		if err := a.Validate(); err != nil {
			return err
		}
		if slices.Contains(all[:i], a) {
			return fmt.Errorf("architecture %s is there twice", a)
		}
	}
	return nil
}

// maxPEM is more than a certificate or a request of depot's kinds ever needs.
const maxPEM = 16 << 10

// validatePEM bounds what a peer may make others parse and store.
func validatePEM(field, text string) error {
	if text == "" || len(text) > maxPEM {
		return fmt.Errorf("%s has %d bytes, want 1 to %d", field, len(text), maxPEM)
	}
	return nil
}

var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

func validateHash(field, text string) error {
	if !sha256Hex.MatchString(text) {
		return fmt.Errorf("%s is not 64 hexadecimal digits", field)
	}
	return nil
}

// optional validates what may be empty.
func optional[T interface {
	~string
	Message
}](v T) error {
	if v == "" {
		return nil
	}
	return v.Validate()
}

func validateAll[M Message](all []M) error {
	for i, m := range all {
		if err := m.Validate(); err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
	}
	return nil
}
