package bus

import (
	"errors"
	"fmt"
	"time"
)

// ActionKind is one item of the limited vocabulary that a cloud-agent may carry out. Adding one is a security
// decision: the exhaustive linter then points at every place that must know it.
type ActionKind string

// The whole vocabulary.
const (
	CreateMachine ActionKind = "machine.create"
	StartMachine  ActionKind = "machine.start"
	StopMachine   ActionKind = "machine.stop"
	DeleteMachine ActionKind = "machine.delete"
	CreateVolume  ActionKind = "volume.create"
	AttachVolume  ActionKind = "volume.attach"
	DetachVolume  ActionKind = "volume.detach"
	DeleteVolume  ActionKind = "volume.delete"
)

// Validate refuses whatever is outside the vocabulary.
func (k ActionKind) Validate() error {
	switch k {
	case CreateMachine, StartMachine, StopMachine, DeleteMachine, CreateVolume, AttachVolume, DetachVolume, DeleteVolume:
		return nil
	}
	return fmt.Errorf("%q is not an action", string(k))
}

// Action is one instruction to a cloud-agent. ID is deterministic (<resource>.<attempt>.<kind>), so that publishing it
// again is harmless; an Attempt older than one the agent has seen for that machine has no effect.
type Action struct {
	ID           string     `json:"id"`
	Kind         ActionKind `json:"kind"`
	Machine      MachineID  `json:"machine"` // empty for volume.create and volume.delete
	Attempt      int        `json:"attempt"` // of the machine; from 1
	Volume       VolumeID   `json:"volume"`  // machine.create: to be attached at launch, may be empty
	Project      ProjectID  `json:"project"`
	Architecture Arch       `json:"architecture"`
	SizeGB       int        `json:"size_gb"` // volume.create
	IssuedAt     time.Time  `json:"issued_at"`
}

// ActionID returns the deterministic id of an action on a machine or volume.
func ActionID[ID ~string](resource ID, attempt int, kind ActionKind) string {
	return fmt.Sprintf("%s.%d.%s", resource, attempt, kind)
}

// Validate checks that the fields which the kind needs are there.
func (m Action) Validate() error {
	errs := []error{m.Kind.Validate()}
	if m.ID == "" {
		errs = append(errs, errors.New("id is empty"))
	}
	needsMachine, needsVolume := false, false
	switch m.Kind {
	case CreateMachine:
		needsMachine = true
		errs = append(errs, m.Architecture.Validate(), m.Project.Validate())
	case StartMachine, StopMachine, DeleteMachine:
		needsMachine = true
	case CreateVolume:
		needsVolume = true
		errs = append(errs, m.Architecture.Validate(), m.Project.Validate())
		if m.SizeGB < 1 {
			errs = append(errs, fmt.Errorf("size_gb is %d, want at least 1", m.SizeGB))
		}
	case DeleteVolume:
		needsVolume = true
	case AttachVolume, DetachVolume:
		needsMachine, needsVolume = true, true
	}
	if needsMachine || m.Machine != "" {
		errs = append(errs, m.Machine.Validate(), validateAttempt(m.Attempt))
	}
	if needsVolume || m.Volume != "" {
		errs = append(errs, m.Volume.Validate())
	}
	return errors.Join(errs...)
}

// ActionResult reports how an action ended. Fault is nil when it was carried out (or had been already).
type ActionResult struct {
	Action  string     `json:"action"`
	Kind    ActionKind `json:"kind"`
	Machine MachineID  `json:"machine"`
	Attempt int        `json:"attempt"`
	Volume  VolumeID   `json:"volume"`
	Fault   *Fault     `json:"fault"`
	At      time.Time  `json:"at"`
}

// Validate checks the kind and the ids that are there.
func (m ActionResult) Validate() error {
	errs := []error{m.Kind.Validate(), optional(m.Machine), optional(m.Volume)}
	if m.Action == "" {
		errs = append(errs, errors.New("action is empty"))
	}
	if m.Fault != nil {
		errs = append(errs, m.Fault.Validate())
	}
	return errors.Join(errs...)
}

func validateAttempt(n int) error {
	if n < 1 {
		return fmt.Errorf("attempt is %d, want at least 1", n)
	}
	return nil
}

// LaunchIntent is reported, and acknowledged, before an agent launches a machine. The nonce itself goes into the
// machine's user data and nowhere else.
type LaunchIntent struct {
	Machine   MachineID `json:"machine"`
	Attempt   int       `json:"attempt"`
	NonceHash string    `json:"nonce_hash"` // NonceHash of the nonce
	Offering  string    `json:"offering"`   // what is about to be tried: type, zone, subnet
}

// Validate checks the form.
func (m LaunchIntent) Validate() error {
	return errors.Join(m.Machine.Validate(), validateAttempt(m.Attempt), validateHash("nonce_hash", m.NonceHash))
}

// CloudState is the state of a machine or volume as its cloud reports it, in EC2's words.
type CloudState string

// The states of machines (pending to terminated) and of volumes (creating to deleting).
const (
	CloudPending      CloudState = "pending"
	CloudRunning      CloudState = "running"
	CloudStopping     CloudState = "stopping"
	CloudStopped      CloudState = "stopped"
	CloudShuttingDown CloudState = "shutting-down"
	CloudTerminated   CloudState = "terminated"
	CloudCreating     CloudState = "creating"
	CloudAvailable    CloudState = "available"
	CloudInUse        CloudState = "in-use"
	CloudDeleting     CloudState = "deleting"
)

// Validate refuses an unknown state.
func (s CloudState) Validate() error {
	switch s {
	case CloudPending, CloudRunning, CloudStopping, CloudStopped, CloudShuttingDown, CloudTerminated, CloudCreating, CloudAvailable, CloudInUse, CloudDeleting:
		return nil
	}
	return fmt.Errorf("%q is not a state of a machine or volume", string(s))
}

// MachineStatus is one machine in an inventory.
type MachineStatus struct {
	Machine   MachineID  `json:"machine"`
	Attempt   int        `json:"attempt"`
	Instance  string     `json:"instance"` // the cloud's own id
	State     CloudState `json:"state"`
	Reason    string     `json:"reason"` // why it ended, where the cloud says so
	Project   ProjectID  `json:"project"`
	Volume    VolumeID   `json:"volume"`
	Addresses []string   `json:"addresses"` // hosts, private first
	Since     time.Time  `json:"since"`     // launch time
}

// VolumeStatus is one volume in an inventory.
type VolumeStatus struct {
	Volume  VolumeID   `json:"volume"`
	State   CloudState `json:"state"`
	Machine MachineID  `json:"machine"` // where it is attached
	Project ProjectID  `json:"project"`
	SizeGB  int        `json:"size_gb"`
}

// Inventory is the truth about the cloud: all machines and volumes that carry the connection's tag. An agent that
// could not list sends none; it never sends an empty one instead.
type Inventory struct {
	Version       string          `json:"version"`       // of the agent
	Architectures []Arch          `json:"architectures"` // that this connection can launch
	MaxMachines   int             `json:"max_machines"`
	Machines      []MachineStatus `json:"machines"`
	Volumes       []VolumeStatus  `json:"volumes"`
	At            time.Time       `json:"at"` // when listing began
}

// Validate checks ids and states.
func (m Inventory) Validate() error {
	errs := []error{validateArchitectures(m.Architectures)}
	for _, x := range m.Machines {
		errs = append(errs, x.Machine.Validate(), x.State.Validate(), optional(x.Project), optional(x.Volume))
	}
	for _, x := range m.Volumes {
		errs = append(errs, x.Volume.Validate(), x.State.Validate(), optional(x.Project), optional(x.Machine))
	}
	return errors.Join(errs...)
}
