package apiserver

import (
	"time"

	"github.com/depotctl/depot/bus"
)

// VolumeState is where a cache volume is in its life.
type VolumeState string

// The states of a volume.
const (
	VolumeWanted    VolumeState = "wanted"
	VolumeCreating  VolumeState = "creating"
	VolumeAvailable VolumeState = "available" // rests until a machine wants it
	VolumeAttached  VolumeState = "attached"  // belongs to one machine, from before its launch until it is gone
	VolumeDeleting  VolumeState = "deleting"
	VolumeDeleted   VolumeState = "deleted"
)

// Volume is the cache disk of a project and architecture. It outlives machines. Its record is the unit of exclusive
// decision on who may attach it.
type Volume struct {
	ID           bus.VolumeID       `json:"id"`
	Organization bus.OrganizationID `json:"organization"`
	Project      bus.ProjectID      `json:"project"`
	Connection   bus.ConnectionID   `json:"connection"`
	Architecture bus.Arch           `json:"architecture"`
	SizeGB       int                `json:"size_gb"`
	State        VolumeState        `json:"state"`
	Reason       string             `json:"reason"`
	Final        bool               `json:"final"`
	Since        time.Time          `json:"since"`
	Machine      bus.MachineID      `json:"machine"` // that it belongs to
	CreatedAt    time.Time          `json:"created_at"`
}

var volumeTransitions = transitions[VolumeState]{
	{VolumeWanted, "asked", VolumeCreating},
	{VolumeCreating, "done", VolumeAvailable},
	{VolumeCreating, "seen", VolumeAvailable},
	{VolumeAvailable, "claimed", VolumeAttached},
	{VolumeAttached, "freed", VolumeAvailable},
	{VolumeWanted, "deadline", VolumeDeleting},
	{VolumeCreating, "deadline", VolumeDeleting},
	{VolumeCreating, "done", VolumeDeleting},
	{VolumeDeleting, "done", VolumeDeleted},
}

type volumeEvent interface{ name() string }

type (
	// volumeAsked hands the creation to the cloud-agent.
	volumeAsked struct{}
	// volumeDone: an action on the volume has ended.
	volumeDone struct {
		kind  bus.ActionKind
		fault *bus.Fault
	}
	// volumeSeen: the cloud shows the volume.
	volumeSeen struct{ status bus.VolumeStatus }
	// volumeClaimed gives the volume to a machine, if nobody has it.
	volumeClaimed struct{ machine bus.MachineID }
	// volumeFreed: the machine that had it is gone.
	volumeFreed struct{ machine bus.MachineID }
	// volumeTick looks at the clock.
	volumeTick struct{}
)

func (volumeAsked) name() string   { return "asked" }
func (volumeDone) name() string    { return "done" }
func (volumeSeen) name() string    { return "seen" }
func (volumeClaimed) name() string { return "claimed" }
func (volumeFreed) name() string   { return "freed" }
func (volumeTick) name() string    { return "deadline" }

// newVolume is a volume as a slot wants it.
func newVolume(id bus.VolumeID, s Slot, sizeGB int, at moment) Volume {
	return Volume{
		ID: id, Organization: s.Organization, Project: s.Project, Connection: s.Connection, Architecture: s.Architecture,
		SizeGB: sizeGB, State: VolumeWanted, Since: at.now, CreatedAt: at.now,
	}
}

// step returns the volume after the event, and what is to be done about it. A deleted volume never changes.
func (v Volume) step(ev volumeEvent, at moment) (Volume, []effect, error) {
	before := v.State
	if before == VolumeDeleted {
		return v, nil, nil
	}
	var effects []effect
	switch ev := ev.(type) {
	case volumeAsked:
		if v.State == VolumeWanted {
			effects = v.enter(VolumeCreating, "", at)
		}
	case volumeDone:
		effects = v.done(ev, at)
	case volumeSeen:
		if v.State == VolumeCreating && (ev.status.State == bus.CloudAvailable || ev.status.State == bus.CloudInUse) {
			effects = v.enter(VolumeAvailable, "", at)
		}
	case volumeClaimed:
		if v.State == VolumeAvailable {
			v.Machine = ev.machine
			effects = v.enter(VolumeAttached, "", at)
		}
	case volumeFreed:
		if v.State == VolumeAttached && v.Machine == ev.machine {
			v.Machine = ""
			effects = v.enter(VolumeAvailable, "", at)
		}
	case volumeTick:
		effects = v.tick(at)
	}
	return v, effects, volumeTransitions.check(before, ev.name(), v.State)
}

func (v *Volume) enter(s VolumeState, reason string, at moment) []effect {
	v.State, v.Reason, v.Since = s, reason, at.now
	return append(v.asks(at), fill{slotKey(v.Project, v.Architecture)})
}

// asks is what the state of the volume wants of the cloud-agent.
func (v Volume) asks(at moment) []effect {
	action := bus.Action{Volume: v.ID, Attempt: 1, Project: v.Project, Architecture: v.Architecture, SizeGB: v.SizeGB, IssuedAt: at.now}
	switch v.State {
	case VolumeCreating:
		action.Kind = bus.CreateVolume
	case VolumeDeleting:
		action.Kind = bus.DeleteVolume
	case VolumeWanted, VolumeAvailable, VolumeAttached, VolumeDeleted:
		return nil
	}
	action.ID = bus.ActionID(v.ID, action.Attempt, action.Kind)
	return []effect{act{v.Connection, action}}
}

func (v *Volume) done(ev volumeDone, at moment) []effect {
	switch {
	case v.State == VolumeCreating && ev.kind == bus.CreateVolume && ev.fault == nil:
		return v.enter(VolumeAvailable, "", at)
	case v.State == VolumeCreating && ev.kind == bus.CreateVolume:
		v.Final = isFinal(ev.fault)
		return v.enter(VolumeDeleting, reasonOf(ev.fault), at)
	case v.State == VolumeDeleting && ev.kind == bus.DeleteVolume && ev.fault == nil:
		return v.enter(VolumeDeleted, v.Reason, at)
	}
	return nil
}

func (v *Volume) tick(at moment) []effect {
	if !at.past(v.Since, v.patience(at.Timeouts)) {
		return v.asks(at)
	}
	switch v.State {
	case VolumeWanted, VolumeCreating:
		return v.enter(VolumeDeleting, "the cloud-agent did not create it within "+at.CreateVolume.String(), at)
	case VolumeDeleting:
		v.Since = at.now // asked for again
		return v.asks(at)
	case VolumeAvailable, VolumeAttached, VolumeDeleted:
	}
	return nil
}

// usable reports whether a machine may be made for the volume.
func (v Volume) usable() bool { return v.State != VolumeDeleting && v.State != VolumeDeleted }
