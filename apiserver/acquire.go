package apiserver

import (
	"fmt"
	"slices"
	"time"

	"github.com/depotctl/depot/bus"
)

// newBuild is a build as it is asked for, before anything is decided.
func newBuild(m bus.BuildCreate, from bus.Caller, p Project, archs []bus.Arch, at moment) Build {
	b := Build{
		ID: m.Build, Organization: from.Organization, Project: p.ID, ProjectName: p.Name, Token: from.Token,
		State: bus.BuildRequested, ClientCSR: m.CSR, CreatedAt: at.now,
		AcquireBy: at.now.Add(orDefault(m.AcquireSeconds, at.Acquire)),
		Deadline:  at.now.Add(min(orDefault(m.TimeoutSeconds, at.Build), at.MaxBuild)),
	}
	for _, arch := range archs {
		b.Leases = append(b.Leases, BuildLease{ID: leaseID(b.Organization, b.ID, arch, 1), Architecture: arch, Attempt: 1})
	}
	return b
}

func orDefault(seconds int, d time.Duration) time.Duration {
	if seconds <= 0 {
		return d
	}
	return time.Duration(seconds) * time.Second
}

// placed is decided once per attempt: a lease that has a machine keeps it.
func (b *Build) placed(ev buildPlaced) {
	if l := b.lease(ev.lease); l != nil && l.Machine == "" {
		l.Machine = ev.machine
		if b.State == bus.BuildRequested {
			b.State = bus.BuildWaiting
		}
	}
}

// served makes the build ready once every lease serves.
func (b *Build) served(ev buildServed, at moment) []effect {
	l := b.lease(ev.lease)
	if l == nil || l.Machine == "" || l.Machine != ev.machine || l.Lost || ev.generation <= l.Serving {
		return nil
	}
	l.Serving, l.Reason = ev.generation, ""
	if b.State == bus.BuildWaiting && !slices.ContainsFunc(b.Leases, func(l BuildLease) bool { return l.Serving == 0 }) {
		b.State, b.ReadyAt = bus.BuildReady, at.now
	}
	return []effect{b.event(at, l, bus.StageServing, "builder is ready")}
}

// unserved takes a lease back to waiting when its machine has lost the key and made a new one.
func (b *Build) unserved(ev buildUnserved, at moment) {
	l := b.lease(ev.lease)
	if l == nil || l.Serving == 0 || l.Serving >= ev.generation {
		return
	}
	l.Serving, l.Reason = 0, "the machine made a new key"
	if b.State == bus.BuildReady {
		b.State, b.AcquireBy = bus.BuildWaiting, at.now.Add(at.Acquire)
	}
}

// lost starts the next attempt while the client does not know the machine; later the client decides.
func (b *Build) lost(ev buildLost, at moment) []effect {
	l := b.lease(ev.lease)
	if l == nil || l.Machine == "" || l.Lost {
		return nil
	}
	old := release{l.Machine, l.ID}
	if b.State == bus.BuildReady || b.State == bus.BuildRunning {
		l.Lost, l.Reason = true, ev.reason
		return []effect{b.event(at, l, bus.StageQueued, "machine lost: "+ev.reason), old}
	}
	if ev.final || l.Attempt >= at.Attempts {
		reason := ev.reason
		if l.Attempt > 1 {
			reason = fmt.Sprintf("%d attempts, the last: %s", l.Attempt, ev.reason)
		}
		return b.end(bus.BuildFailed, "no builder for "+string(l.Architecture)+": "+reason, at)
	}
	told := b.event(at, l, bus.StageQueued, "machine lost, trying another: "+ev.reason)
	next := l.Attempt + 1
	*l = BuildLease{
		ID: leaseID(b.Organization, b.ID, l.Architecture, next), Architecture: l.Architecture, Attempt: next,
		NotBefore: at.now.Add(at.Backoff << (l.Attempt - 1)), Reason: ev.reason,
	}
	return []effect{told, old, place{b.ID}}
}

// refused looks for another machine without counting an attempt: the lease was never taken.
func (b *Build) refused(ev buildRefused) []effect {
	l := b.lease(ev.lease)
	if l == nil || l.Machine != ev.machine || l.Lost || b.State == bus.BuildReady || b.State == bus.BuildRunning {
		return nil
	}
	l.Machine, l.Serving = "", 0
	return []effect{release{ev.machine, ev.lease}, place{b.ID}}
}

func (b *Build) connected(ev buildConnected, at moment) []effect {
	l := b.lease(ev.lease)
	if l == nil || b.State != bus.BuildReady {
		return nil
	}
	b.State, b.RunningAt = bus.BuildRunning, at.now
	return []effect{b.event(at, l, bus.StageServing, "client is connected")}
}
