package apiserver

import (
	"reflect"
	"time"

	"github.com/depotctl/depot/bus"
)

// Timeouts holds every deadline of the API server. A zero field means its default; a negative one switches off the
// three that say so.
type Timeouts struct {
	// Acquire bounds the wait of a build for all its builders, unless the client asked for less or more: 5 min.
	Acquire time.Duration
	// Build bounds a whole build, unless the client asked for less or more: 6 h.
	Build time.Duration
	// MaxBuild is the most that a client may ask for: 24 h.
	MaxBuild time.Duration
	// Silence ends a build whose client and whose connections gave no sign of life for so long: 30 s.
	Silence time.Duration
	// Attempts is how many machines a build may try per architecture before it fails: 3.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles for each further one: 1 s.
	Backoff time.Duration

	// CreateVolume bounds the creation of a volume: 2 min.
	CreateVolume time.Duration
	// Want bounds the time for which a machine may be wanted and not launched, for lack of its volume: 5 min.
	Want time.Duration
	// Launch is from the action until the cloud shows the instance: 3 min.
	Launch time.Duration
	// Register is from then until the machine has proved who it is: 3 min.
	Register time.Duration
	// Start is from then until its daemon answers: 2 min.
	Start time.Duration
	// Drain bounds the time for which a machine without leases may still be draining: 1 min.
	Drain time.Duration
	// Stop bounds a clean stop: 3 min.
	Stop time.Duration
	// Fail is how long a failed machine waits for its builds to take notice before they lose their leases: 30 s.
	Fail time.Duration
	// Delete is how long a deletion may take before it is asked for again. It is longer than the window in which the
	// queue of actions drops duplicates: 15 min.
	Delete time.Duration
	// Missing is how long an inventory must have shown no instance before its machine counts as lost: 20 s.
	Missing time.Duration
	// Challenge is how long the bytes that a machine must sign are good for: 60 s.
	Challenge time.Duration
	// Credential is the life of a machine's credential for the bus: 1 h.
	Credential time.Duration

	// Idle is how long a machine without leases keeps running; negative means for ever, which is the default.
	Idle time.Duration
	// Stopped is how long a stopped machine is kept before it is deleted: 24 h.
	Stopped time.Duration
	// MaxAge is when a machine without leases is replaced by a new one: 7 days.
	MaxAge time.Duration

	// Settle is how long a record that has just changed is left to whoever changed it, before a scan takes it up: 2 s.
	Settle time.Duration
	// Grace is how old a lease must be before it may be found to belong to no build: 10 s.
	Grace time.Duration
	// Keep is how long the records of ended builds and deleted machines are kept: 7 days.
	Keep time.Duration
}

var defaultTimeouts = Timeouts{
	Acquire: 5 * time.Minute, Build: 6 * time.Hour, MaxBuild: 24 * time.Hour, Silence: 30 * time.Second, Attempts: 3, Backoff: time.Second,
	CreateVolume: 2 * time.Minute, Want: 5 * time.Minute, Launch: 3 * time.Minute, Register: 3 * time.Minute, Start: 2 * time.Minute,
	Drain: time.Minute, Stop: 3 * time.Minute, Fail: 30 * time.Second, Delete: 15 * time.Minute, Missing: 20 * time.Second,
	Challenge: 60 * time.Second, Credential: time.Hour,
	Idle: -1, Stopped: 24 * time.Hour, MaxAge: 7 * 24 * time.Hour,
	Settle: 2 * time.Second, Grace: 10 * time.Second, Keep: 7 * 24 * time.Hour,
}

// withDefaults fills the fields that are zero.
func (t Timeouts) withDefaults() Timeouts {
	v, d := reflect.ValueOf(&t).Elem(), reflect.ValueOf(defaultTimeouts)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			v.Field(i).Set(d.Field(i))
		}
	}
	return t
}

// moment is what a step may know of the world: the rules, and what time it is.
type moment struct {
	Timeouts
	now time.Time
}

// past reports whether d has passed since t. A negative d never passes.
func (at moment) past(t time.Time, d time.Duration) bool {
	return d >= 0 && !at.now.Before(t.Add(d))
}

// deadline returns when the build ends by itself, by the state it is in.
func (b Build) deadline() time.Time {
	switch b.State {
	case bus.BuildRequested, bus.BuildWaiting:
		if b.AcquireBy.Before(b.Deadline) {
			return b.AcquireBy
		}
		return b.Deadline
	case bus.BuildReady, bus.BuildRunning:
		return b.Deadline
	case bus.BuildSucceeded, bus.BuildFailed, bus.BuildCanceled, bus.BuildExpired:
	}
	return time.Time{}
}

// patience returns how long a machine may be in its state: what happens then is in its tick.
func (m Machine) patience(t Timeouts) time.Duration {
	switch m.State {
	case MachineWanted:
		return t.Want
	case MachineLaunching, MachineStarting:
		return t.Launch
	case MachineBooting:
		return t.Register
	case MachineRegistered:
		return t.Start
	case MachineServing:
		return t.MaxAge
	case MachineDraining:
		return t.Drain
	case MachineStopping:
		return t.Stop
	case MachineStopped:
		return t.Stopped
	case MachineFailed:
		return t.Fail
	case MachineDeleting:
		return t.Delete
	case MachineDeleted:
	}
	return -1
}

// patience returns how long a volume may be in its state; negative where nobody waits for it to change.
func (v Volume) patience(t Timeouts) time.Duration {
	switch v.State {
	case VolumeWanted, VolumeCreating:
		return t.CreateVolume
	case VolumeDeleting:
		return t.Delete
	case VolumeAvailable, VolumeAttached, VolumeDeleted:
	}
	return -1
}
