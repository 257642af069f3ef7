package apiserver

import (
	"github.com/depotctl/depot/bus"
)

// end is the only way out of a build's life. Whoever is first decides how it ended.
func (b *Build) end(state bus.BuildState, reason string, at moment) []effect {
	b.State, b.Reason, b.EndedAt = state, reason, at.now
	message := string(state)
	if reason != "" {
		message += ": " + reason
	}
	return append([]effect{b.event(at, nil, "", message)}, b.releases()...)
}

// releases gives back every lease that the build may hold.
func (b Build) releases() []effect {
	var effects []effect
	for _, l := range b.Leases {
		if l.Machine != "" {
			effects = append(effects, release{l.Machine, l.ID})
		}
	}
	return effects
}

// tick ends the build at its deadline, and names the stage in which the time went.
func (b *Build) tick(ev buildTick, at moment) []effect {
	if at.now.Before(b.deadline()) {
		return nil
	}
	waited := b.deadline().Sub(b.CreatedAt)
	reason := "the build's time of " + waited.String() + " is over"
	if b.State == bus.BuildRequested || b.State == bus.BuildWaiting {
		reason = "no builder within " + waited.String()
		if ev.stage != "" {
			reason += ": " + ev.stage
		}
	}
	return b.end(bus.BuildExpired, reason, at)
}
