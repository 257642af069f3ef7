package apiserver

import (
	"maps"
	"slices"
	"time"

	"github.com/depotctl/depot/bus"
)

// MachineState is where a machine is in its life.
type MachineState string

// The states of a machine. Nothing but MachineDeleted lasts for ever.
const (
	MachineWanted     MachineState = "wanted"     // decided on; waits for its volume
	MachineLaunching  MachineState = "launching"  // the cloud-agent has been told
	MachineBooting    MachineState = "booting"    // the cloud has an instance
	MachineRegistered MachineState = "registered" // it has proved who it is
	MachineServing    MachineState = "serving"    // its daemon answers
	MachineDraining   MachineState = "draining"   // takes no new leases
	MachineStopping   MachineState = "stopping"   // has none, shuts down
	MachineStopped    MachineState = "stopped"    // keeps its disk
	MachineStarting   MachineState = "starting"   // the cloud-agent has been told
	MachineFailed     MachineState = "failed"     // its builds are being told
	MachineDeleting   MachineState = "deleting"   // the cloud-agent has been told
	MachineDeleted    MachineState = "deleted"    // the cloud has no such instance
)

// Machine is a VM, or a process of the local provider. Its record is the unit of exclusive decision on its leases:
// whatever would stop it must win a compare-and-set against every lease that was taken meanwhile.
type Machine struct {
	ID           bus.MachineID      `json:"id"`
	Organization bus.OrganizationID `json:"organization"`
	Project      bus.ProjectID      `json:"project"`
	Connection   bus.ConnectionID   `json:"connection"`
	Architecture bus.Arch           `json:"architecture"`
	Volume       bus.VolumeID       `json:"volume"`
	CreatedAt    time.Time          `json:"created_at"`

	State  MachineState `json:"state"`
	Reason string       `json:"reason"`
	Final  bool         `json:"final"` // it failed for a reason that would meet its successor too
	Since  time.Time    `json:"since"` // in this state

	Attempt      int       `json:"attempt"`       // counts launches and starts; what carries an older one has no effect
	Launched     bool      `json:"launched"`      // an action may have been published, so there may be something to delete
	Retire       bool      `json:"retire"`        // when drained, delete rather than stop
	Instance     string    `json:"instance"`      // the cloud's own id
	Hosts        []string  `json:"hosts"`         // of the instance, as its cloud says
	MissingSince time.Time `json:"missing_since"` // since when, on the agent's clock, inventories lack it
	DeletedAt    time.Time `json:"deleted_at"`    // when, on the agent's clock, the deletion was carried out

	NonceHash    string    `json:"nonce_hash"` // of the launch nonce of this attempt
	NonceUsed    bool      `json:"nonce_used"` // it has bound a key
	Challenge    string    `json:"challenge"`  // outstanding; empty means none
	ChallengeEnd time.Time `json:"challenge_end"`
	IdentityKey  string    `json:"identity_key"` // bound at the first registration, PEM
	UserKey      string    `json:"user_key"`     // its public key on the bus

	Daemon    bus.DaemonStatus      `json:"daemon"`
	Addresses []string              `json:"addresses"` // host:port of the front, to be tried in order
	Leases    map[bus.LeaseID]Lease `json:"leases"`
	IdleSince time.Time             `json:"idle_since"` // when the last lease ended
}

var machineTransitions = transitions[MachineState]{
	{MachineWanted, "volume", MachineLaunching},
	{MachineLaunching, "observed", MachineBooting},
	{MachineLaunching, "done", MachineBooting},
	{MachineLaunching, "registered", MachineRegistered},
	{MachineBooting, "registered", MachineRegistered},
	{MachineRegistered, "reported", MachineServing},
	{MachineServing, "deadline", MachineDraining},
	{MachineDraining, "released", MachineStopping},
	{MachineDraining, "deadline", MachineStopping},
	{MachineDraining, "deadline", MachineDeleting},
	{MachineDraining, "released", MachineDeleting},
	{MachineStopping, "observed", MachineStopped},
	{MachineStopping, "done", MachineStopped},
	{MachineStopped, "taken", MachineStarting},
	{MachineStopped, "deadline", MachineDeleting},
	{MachineStarting, "observed", MachineBooting},
	{MachineStarting, "done", MachineBooting},
	{MachineStarting, "registered", MachineRegistered},

	{MachineWanted, "condemned", MachineFailed},
	{MachineWanted, "deadline", MachineFailed},
	{MachineLaunching, "condemned", MachineFailed},
	{MachineLaunching, "deadline", MachineFailed},
	{MachineLaunching, "done", MachineFailed},
	{MachineLaunching, "observed", MachineFailed},
	{MachineBooting, "condemned", MachineFailed},
	{MachineBooting, "deadline", MachineFailed},
	{MachineBooting, "observed", MachineFailed},
	{MachineBooting, "missing", MachineFailed},
	{MachineBooting, "goodbye", MachineFailed},
	{MachineBooting, "done", MachineFailed},
	{MachineRegistered, "condemned", MachineFailed},
	{MachineRegistered, "deadline", MachineFailed},
	{MachineRegistered, "observed", MachineFailed},
	{MachineRegistered, "missing", MachineFailed},
	{MachineRegistered, "goodbye", MachineFailed},
	{MachineRegistered, "reported", MachineFailed},
	{MachineServing, "condemned", MachineFailed},
	{MachineServing, "observed", MachineFailed},
	{MachineServing, "missing", MachineFailed},
	{MachineServing, "goodbye", MachineFailed},
	{MachineServing, "reported", MachineFailed},
	{MachineDraining, "condemned", MachineFailed},
	{MachineDraining, "observed", MachineFailed},
	{MachineDraining, "missing", MachineFailed},
	{MachineDraining, "goodbye", MachineFailed},
	{MachineDraining, "reported", MachineFailed},
	{MachineStopping, "condemned", MachineFailed},
	{MachineStopping, "deadline", MachineFailed},
	{MachineStopping, "observed", MachineFailed},
	{MachineStopping, "missing", MachineFailed},
	{MachineStopping, "done", MachineFailed},
	{MachineStopped, "condemned", MachineFailed},
	{MachineStopped, "observed", MachineFailed},
	{MachineStopped, "missing", MachineFailed},
	{MachineStarting, "condemned", MachineFailed},
	{MachineStarting, "deadline", MachineFailed},
	{MachineStarting, "done", MachineFailed},
	{MachineStarting, "observed", MachineFailed},
	{MachineStarting, "missing", MachineFailed},

	{MachineFailed, "released", MachineDeleting},
	{MachineFailed, "deadline", MachineDeleting},
	{MachineFailed, "deadline", MachineDeleted},
	{MachineFailed, "released", MachineDeleted},
	{MachineDeleting, "observed", MachineDeleted},
	{MachineDeleting, "missing", MachineDeleted},
	{MachineDeleting, "deadline", MachineFailed},
}

// machineEvent is what can happen to a machine.
type machineEvent interface{ name() string }

// step returns the machine after the event, and what is to be done about it. A deleted machine never changes.
func (m Machine) step(ev machineEvent, at moment) (Machine, []effect, error) {
	before := m
	m.Leases = maps.Clone(m.Leases)
	var effects []effect
	var err error
	switch ev := ev.(type) {
	case machineVolume:
		effects = m.launch(ev, at)
	case machineIntended:
		err = m.intended(ev)
	case machineDone:
		effects = m.done(ev, at)
	case machineObserved:
		effects = m.observed(ev, at)
	case machineMissing:
		effects = m.missing(ev, at)
	case machineCondemned:
		effects = m.fail(ev.reason, ev.final, at)
	case machineChallenged:
		err = m.challenged(ev, at)
	case machineRegistered:
		effects, err = m.registered(ev, at)
	case machineReported:
		effects = m.reported(ev, at)
	case machineTaken:
		effects, err = m.taken(ev, at)
	case machineCertified:
		effects = m.certified(ev)
	case machineReleased:
		effects = m.released(ev, at)
	case machineGoodbye:
		effects = m.goodbye(ev, at)
	case machineTick:
		effects = m.tick(at)
	}
	if err != nil {
		return before, nil, err
	}
	if before.State == MachineDeleted {
		return before, nil, nil
	}
	return m, effects, machineTransitions.check(before.State, ev.name(), m.State)
}

// enter is the only way into a state.
func (m *Machine) enter(s MachineState, reason string, at moment) {
	m.State, m.Reason, m.Since = s, reason, at.now
	m.MissingSince = time.Time{}
}

// in reports whether the machine is in one of the states.
func (m Machine) in(states ...MachineState) bool { return slices.Contains(states, m.State) }

// accepts reports whether a new lease may be taken on the machine.
func (m Machine) accepts() bool {
	return m.in(MachineWanted, MachineLaunching, MachineBooting, MachineRegistered, MachineServing, MachineStopped, MachineStarting)
}

// alive reports whether the leases that the machine has are worth something.
func (m Machine) alive() bool { return m.accepts() || m.State == MachineDraining }

// stage returns where the acquisition of a lease on this machine stands, until the lease itself serves.
func (m Machine) stage() bus.Stage {
	switch m.State {
	case MachineLaunching, MachineStarting:
		return bus.StageLaunching
	case MachineBooting:
		return bus.StageBooting
	case MachineRegistered:
		if m.Daemon.State != bus.DaemonStopped && m.Daemon.State != "" {
			return bus.StageStarting
		}
		return bus.StageRegistered
	case MachineServing, MachineDraining:
		return bus.StageStarting
	case MachineWanted, MachineStopping, MachineStopped, MachineFailed, MachineDeleting, MachineDeleted:
	}
	return bus.StageQueued
}

// tell adds the machine's stage to the story of every build that waits for it.
func (m Machine) tell(at moment, message string) []effect {
	var effects []effect
	for _, id := range slices.Sorted(maps.Keys(m.Leases)) {
		effects = append(effects, m.tellOne(id, at, message))
	}
	return effects
}

func (m Machine) tellOne(lease bus.LeaseID, at moment, message string) effect {
	return tell{m.Organization, bus.BuildEvent{
		Build: m.Leases[lease].Build, Project: m.Project, Time: at.now, State: bus.BuildWaiting,
		Architecture: m.Architecture, Machine: m.ID, Stage: m.stage(), Message: message,
	}}
}

// action is an instruction to the machine's cloud-agent. Its id is the same whenever it is derived.
func (m Machine) action(kind bus.ActionKind, at moment) act {
	return act{m.Connection, bus.Action{
		ID: bus.ActionID(m.ID, m.Attempt, kind), Kind: kind, Machine: m.ID, Attempt: m.Attempt, Volume: m.Volume,
		Project: m.Project, Architecture: m.Architecture, IssuedAt: at.now,
	}}
}
