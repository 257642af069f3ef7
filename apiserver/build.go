package apiserver

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/depotctl/depot/bus"
)

// Build is one request of a client for builders.
type Build struct {
	ID           bus.BuildID        `json:"id"`
	Organization bus.OrganizationID `json:"organization"`
	Project      bus.ProjectID      `json:"project"`
	ProjectName  string             `json:"project_name"`
	Token        bus.TokenID        `json:"token"` // who asked; the build ends when it is revoked
	State        bus.BuildState     `json:"state"`
	Reason       string             `json:"reason"`
	Leases       []BuildLease       `json:"leases"` // one per architecture, the default first
	ClientCSR    string             `json:"client_csr"`
	CreatedAt    time.Time          `json:"created_at"`
	AcquireBy    time.Time          `json:"acquire_by"`
	Deadline     time.Time          `json:"deadline"`
	ReadyAt      time.Time          `json:"ready_at"`
	RunningAt    time.Time          `json:"running_at"`
	EndedAt      time.Time          `json:"ended_at"`
}

// BuildLease is a build's side of a lease: which machine it is on, and whether that machine serves it. Machine is
// written before the lease is taken there, so that the end of the build always knows where to give it back.
type BuildLease struct {
	ID           bus.LeaseID   `json:"id"`
	Architecture bus.Arch      `json:"architecture"`
	Attempt      int           `json:"attempt"`
	Machine      bus.MachineID `json:"machine"`
	Serving      int           `json:"serving"`    // generation of the certificates that the machine serves; 0 means none yet
	NotBefore    time.Time     `json:"not_before"` // when a further attempt may begin
	Lost         bool          `json:"lost"`       // the machine is gone, after the client was told of it
	Reason       string        `json:"reason"`
}

// leaseID names the lease of an attempt. It is derived, so that whoever decides on a build twice takes one lease.
func leaseID(org bus.OrganizationID, build bus.BuildID, arch bus.Arch, attempt int) bus.LeaseID {
	sum := sha256.Sum256(fmt.Appendf(nil, "depot lease v1/%s/%s/%s/%d", org, build, arch, attempt))
	return bus.LeaseID("lse-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10])))
}

var buildTransitions = transitions[bus.BuildState]{
	{bus.BuildRequested, "placed", bus.BuildWaiting},
	{bus.BuildWaiting, "served", bus.BuildReady},
	{bus.BuildReady, "unserved", bus.BuildWaiting},
	{bus.BuildReady, "connected", bus.BuildRunning},
	{bus.BuildWaiting, "lost", bus.BuildFailed},

	{bus.BuildRequested, "finished", bus.BuildSucceeded},
	{bus.BuildRequested, "finished", bus.BuildFailed},
	{bus.BuildRequested, "finished", bus.BuildCanceled},
	{bus.BuildWaiting, "finished", bus.BuildSucceeded},
	{bus.BuildWaiting, "finished", bus.BuildFailed},
	{bus.BuildWaiting, "finished", bus.BuildCanceled},
	{bus.BuildReady, "finished", bus.BuildSucceeded},
	{bus.BuildReady, "finished", bus.BuildFailed},
	{bus.BuildReady, "finished", bus.BuildCanceled},
	{bus.BuildRunning, "finished", bus.BuildSucceeded},
	{bus.BuildRunning, "finished", bus.BuildFailed},
	{bus.BuildRunning, "finished", bus.BuildCanceled},

	{bus.BuildRequested, "canceled", bus.BuildCanceled},
	{bus.BuildWaiting, "canceled", bus.BuildCanceled},
	{bus.BuildReady, "canceled", bus.BuildCanceled},
	{bus.BuildRunning, "canceled", bus.BuildCanceled},

	{bus.BuildRequested, "deadline", bus.BuildExpired},
	{bus.BuildWaiting, "deadline", bus.BuildExpired},
	{bus.BuildReady, "deadline", bus.BuildExpired},
	{bus.BuildRunning, "deadline", bus.BuildExpired},
}

// buildEvent is what can happen to a build.
type buildEvent interface{ name() string }

type (
	// buildPlaced decides on the machine of a lease.
	buildPlaced struct {
		lease   bus.LeaseID
		machine bus.MachineID
	}
	// buildServed: the machine has installed the lease's root, for this generation of certificates.
	buildServed struct {
		lease      bus.LeaseID
		machine    bus.MachineID
		generation int
	}
	// buildUnserved: the certificates were made anew, and the machine has not installed them yet.
	buildUnserved struct {
		lease      bus.LeaseID
		generation int
	}
	// buildLost: the lease is worth nothing any more.
	buildLost struct {
		lease  bus.LeaseID
		reason string
		final  bool
	}
	// buildRefused: the machine that was decided on takes no leases any more.
	buildRefused struct {
		lease   bus.LeaseID
		machine bus.MachineID
	}
	// buildConnected: the client's connection was seen at the front.
	buildConnected struct{ lease bus.LeaseID }
	// buildFinished is the client's own word.
	buildFinished struct {
		state  bus.BuildState
		reason string
	}
	// buildCanceled ends the build on somebody else's word.
	buildCanceled struct{ reason string }
	// buildTick looks at the clock.
	buildTick struct {
		// stage is where the acquisition stands, for the reason of an expiry.
		stage string
	}
)

func (buildPlaced) name() string    { return "placed" }
func (buildServed) name() string    { return "served" }
func (buildUnserved) name() string  { return "unserved" }
func (buildLost) name() string      { return "lost" }
func (buildRefused) name() string   { return "refused" }
func (buildConnected) name() string { return "connected" }
func (buildFinished) name() string  { return "finished" }
func (buildCanceled) name() string  { return "canceled" }
func (buildTick) name() string      { return "deadline" }

// step returns the build after the event, and what is to be done about it. A build that has ended never changes.
func (b Build) step(ev buildEvent, at moment) (Build, []effect, error) {
	if b.State.Ended() {
		return b, b.releases(), nil
	}
	before := b.State
	b.Leases = slices.Clone(b.Leases)
	var effects []effect
	switch ev := ev.(type) {
	case buildPlaced:
		b.placed(ev)
	case buildServed:
		effects = b.served(ev, at)
	case buildUnserved:
		b.unserved(ev, at)
	case buildLost:
		effects = b.lost(ev, at)
	case buildRefused:
		effects = b.refused(ev)
	case buildConnected:
		effects = b.connected(ev, at)
	case buildFinished:
		effects = b.end(ev.state, ev.reason, at)
	case buildCanceled:
		effects = b.end(bus.BuildCanceled, ev.reason, at)
	case buildTick:
		effects = b.tick(ev, at)
	}
	return b, effects, buildTransitions.check(before, ev.name(), b.State)
}

func (b *Build) lease(id bus.LeaseID) *BuildLease {
	for i := range b.Leases {
		if b.Leases[i].ID == id {
			return &b.Leases[i]
		}
	}
	return nil
}

func (b Build) holds(id bus.LeaseID) bool { return !b.State.Ended() && b.lease(id) != nil }

// event makes a line of the build's story.
func (b Build) event(at moment, l *BuildLease, stage bus.Stage, message string) tell {
	e := bus.BuildEvent{Build: b.ID, Project: b.Project, Time: at.now, State: b.State, Stage: stage, Message: message}
	if l != nil {
		e.Architecture, e.Machine = l.Architecture, l.Machine
	}
	return tell{b.Organization, e}
}
