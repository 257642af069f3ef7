package apiserver

import "github.com/depotctl/depot/bus"

// effect is something that a step wants done once its record is written. Each may be done again and again: it is
// re-derived from the record until its outcome is seen, so a crash between the write and the effect heals by itself.
type effect interface{ effect() }

type (
	// act asks the cloud-agent of a connection for an action, under a deterministic id.
	act struct {
		connection bus.ConnectionID
		action     bus.Action
	}
	// inquire asks the cloud-agent of a connection for its inventory.
	inquire struct{ connection bus.ConnectionID }
	// hint wakes a machine up.
	hint struct {
		connection bus.ConnectionID
		machine    bus.MachineID
		lease      bus.LeaseID // may be empty
	}
	// tell adds a line to a build's story.
	tell struct {
		organization bus.OrganizationID
		event        bus.BuildEvent
	}
	// lose tells a build that its lease is worth nothing any more.
	lose struct {
		build  bus.BuildID
		lease  bus.LeaseID
		reason string
		final  bool // another machine would fare no better
	}
	// release takes a lease off its machine.
	release struct {
		machine bus.MachineID
		lease   bus.LeaseID
	}
	// free gives a volume back for the next machine.
	free struct {
		volume  bus.VolumeID
		machine bus.MachineID
	}
	// unserve tells a build that its certificates were made anew.
	unserve struct {
		build      bus.BuildID
		lease      bus.LeaseID
		generation int
	}
	// place looks for machines for the leases of a build that have none.
	place struct{ build bus.BuildID }
	// fill brings volume and machine of a slot forward.
	fill struct{ slot string }
)

func (act) effect()     {}
func (inquire) effect() {}
func (hint) effect()    {}
func (tell) effect()    {}
func (lose) effect()    {}
func (release) effect() {}
func (free) effect()    {}
func (unserve) effect() {}
func (place) effect()   {}
func (fill) effect()    {}
