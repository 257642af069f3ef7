package cloudagent

import (
	"context"

	"github.com/depotctl/depot/bus"
)

// Provider is a cloud: what turns an action into machines and volumes. The words are EC2's, because it is the hardest to
// satisfy; package cloudtest holds the conformance suite that every implementation passes.
//
// Safety. Every method may be called again with the same arguments, by this process, by another one at the same time, or
// hours later, and has the effect of one call. A machine is one attempt: a call that carries an older attempt than the
// newest one that the provider knows of has no effect and is refused with bus.CodeConflict. Nothing that does not carry
// the tag of the connection is shown, used or changed: it is treated as if it did not exist.
//
// Errors. A *bus.Fault is a decision: it is reported as it is, and the action is done.
//   - CodeInvalid: the arguments can never be satisfied.
//   - CodeNotFound: the machine or volume does not exist (any more).
//   - CodeConflict: an old attempt, a volume attached elsewhere or still attached, a machine in the wrong state.
//   - CodeNoCapacity: the cloud has no room for it now, in any offering that may be used.
//   - CodeUnavailable: something that only an operator can provide is missing; the hint says what.
//
// Any other error is a failure whose outcome is unknown: the action is tried again.
type Provider interface {
	// List returns all machines and volumes of the connection, including machines that ended a short while ago (state
	// terminated). It fails rather than leave something out.
	List(ctx context.Context, connection bus.ConnectionID) (Listing, error)

	// CreateMachine launches a machine, with its volume attached when there is one. Before each launch call it announces
	// the offering (type, zone, subnet) that it is about to try, and does not launch when announce fails. It returns nil
	// when the machine exists, in whatever state, so that repeating it never starts a machine that was stopped. An attempt
	// that was deleted stays deleted (CodeConflict). An older attempt that still lives is ended first.
	CreateMachine(ctx context.Context, spec MachineSpec, announce func(ctx context.Context, offering string) error) error
	// StartMachine starts a stopped machine: same attempt, same user data, same root disk.
	StartMachine(ctx context.Context, m MachineRef) error
	// StopMachine shuts the machine down and returns when it has stopped. Its root disk and its volume stay.
	StopMachine(ctx context.Context, m MachineRef) error
	// DeleteMachine ends the machine, and every older attempt of it, for good. Its volume becomes available. Deleting what
	// is unknown succeeds, and forbids the attempt from then on.
	DeleteMachine(ctx context.Context, m MachineRef) error

	// CreateVolume makes an empty volume. An existing one is left as it is.
	CreateVolume(ctx context.Context, spec VolumeSpec) error
	// AttachVolume attaches a volume to a stopped machine. A volume is attached to at most one machine and a machine has at
	// most one volume (CodeConflict).
	AttachVolume(ctx context.Context, m MachineRef, volume bus.VolumeID) error
	// DetachVolume makes a volume of a stopped machine available. A running machine keeps its volume (CodeConflict): a
	// forced detach corrupts caches. What is not attached to m is left as it is.
	DetachVolume(ctx context.Context, m MachineRef, volume bus.VolumeID) error
	// DeleteVolume deletes a volume and what is on it. An attached one is refused (CodeConflict); an unknown one is no error.
	DeleteVolume(ctx context.Context, v VolumeRef) error
}

// Runner is implemented by a Provider that has something to do besides answering calls. Agent.Run runs it.
type Runner interface {
	// Run blocks until ctx ends, and returns nil then.
	Run(ctx context.Context) error
}

// MachineRef names one attempt of a machine of a connection.
type MachineRef struct {
	Connection bus.ConnectionID
	Machine    bus.MachineID
	Attempt    int
}

// MachineSpec is what a machine is launched from.
type MachineSpec struct {
	MachineRef
	Project      bus.ProjectID
	Architecture bus.Arch
	Volume       bus.VolumeID // to attach at launch; may be empty
	Nonce        bus.Nonce    // for the user data, and for nothing else
	BusURL       string       // where machines find the bus; a provider may have a way of its own
	BusCA        string       // PEM roots for a tls:// BusURL; empty means the system's
}

// VolumeRef names a volume of a connection.
type VolumeRef struct {
	Connection bus.ConnectionID
	Volume     bus.VolumeID
}

// VolumeSpec is what a volume is made from.
type VolumeSpec struct {
	VolumeRef
	Project      bus.ProjectID
	Architecture bus.Arch
	SizeGB       int
}

// Listing is what a connection has in its cloud.
type Listing struct {
	Machines []bus.MachineStatus
	Volumes  []bus.VolumeStatus
}

// Live returns the machines that exist, in any state: those that count against a limit.
func (l Listing) Live() []bus.MachineStatus {
	var live []bus.MachineStatus
	for _, m := range l.Machines {
		if m.State != bus.CloudTerminated {
			live = append(live, m)
		}
	}
	return live
}
