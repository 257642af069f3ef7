package apiserver

import (
	"time"

	"github.com/depotctl/depot/bus"
)

// Slot is the unit of exclusive decision on who serves a project and architecture: one machine and one volume at a
// time. Its key is <project>.<architecture>.
type Slot struct {
	Organization bus.OrganizationID `json:"organization"`
	Project      bus.ProjectID      `json:"project"`
	Connection   bus.ConnectionID   `json:"connection"`
	Architecture bus.Arch           `json:"architecture"`
	Machine      bus.MachineID      `json:"machine"`
	Volume       bus.VolumeID       `json:"volume"`
	Generation   int                `json:"generation"` // counts the machines
	Since        time.Time          `json:"since"`
}

func slotKey(p bus.ProjectID, a bus.Arch) string { return string(p) + "." + string(a) }

func (s Slot) key() string { return slotKey(s.Project, s.Architecture) }

// slotReplaced puts another machine, and another volume if one is named, into the slot: but only in the place of the
// machine that was found wanting. Whoever comes second finds the new one.
type slotReplaced struct {
	old    bus.MachineID
	next   bus.MachineID
	volume bus.VolumeID // empty: the slot's own
}

// step returns the slot after the event.
func (s Slot) step(ev slotReplaced, at moment) Slot {
	if s.Machine != ev.old {
		return s
	}
	s.Machine, s.Since = ev.next, at.now
	s.Generation++
	if ev.volume != "" {
		s.Volume = ev.volume
	}
	return s
}
