package apiserver

import (
	"maps"
	"sync"
	"time"

	"github.com/depotctl/depot/bus"
)

// pulses are the signs of life that this replica has heard. They are never stored: a replica that has not listened
// for long enough does not know who is silent, and says nothing.
type pulses struct {
	mu        sync.Mutex
	listening time.Time // since when, without a gap
	builds    map[bus.BuildID]time.Time
	leases    map[bus.LeaseID]time.Time
	reports   map[bus.MachineID]report
	agents    map[bus.ConnectionID]time.Time
}

type report struct {
	bus.MachineReport
	at time.Time
}

func newPulses() *pulses {
	return &pulses{
		listening: time.Now(),
		builds:    map[bus.BuildID]time.Time{}, leases: map[bus.LeaseID]time.Time{},
		reports: map[bus.MachineID]report{}, agents: map[bus.ConnectionID]time.Time{},
	}
}

func (p *pulses) build(id bus.BuildID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.builds[id] = time.Now()
}

func (p *pulses) agent(id bus.ConnectionID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.agents[id] = time.Now()
}

// machine keeps a machine's report, and returns the leases that have connections.
func (p *pulses) machine(id bus.MachineID, r bus.MachineReport) []bus.LeaseID {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.reports[id] = report{r, now}
	var live []bus.LeaseID
	for _, l := range r.Live {
		if l.Connections > 0 {
			p.leases[l.Lease] = now
			live = append(live, l.Lease)
		}
	}
	return live
}

func (p *pulses) reportOf(id bus.MachineID) bus.MachineReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reports[id].MachineReport
}

// agentIsHere reports whether a connection's cloud-agent was heard lately.
func (p *pulses) agentIsHere(id bus.ConnectionID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.agents[id]) < 30*time.Second
}

// deaf forgets how long this replica has listened: it was paused or cut off, and may have missed anything.
func (p *pulses) deaf() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listening = time.Now()
}

// silence returns for how long nothing was heard of a build that was made age ago, as far as this replica can tell.
func (p *pulses) silence(b Build, age time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.listening
	later := func(t time.Time) {
		if t.After(last) {
			last = t
		}
	}
	later(p.builds[b.ID])
	for _, l := range b.Leases {
		later(p.leases[l.ID])
	}
	return min(time.Since(last), age)
}

// forget drops what nobody will ask for any more.
func (p *pulses) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := func(t time.Time) bool { return time.Since(t) > 10*time.Minute }
	maps.DeleteFunc(p.builds, func(_ bus.BuildID, t time.Time) bool { return old(t) })
	maps.DeleteFunc(p.leases, func(_ bus.LeaseID, t time.Time) bool { return old(t) })
	maps.DeleteFunc(p.agents, func(_ bus.ConnectionID, t time.Time) bool { return old(t) })
	maps.DeleteFunc(p.reports, func(_ bus.MachineID, r report) bool { return old(r.at) })
}
