package depotctl

import (
	"slices"
	"sync"
	"time"

	"github.com/depotctl/depot/bus"
)

// span is one stage of the acquisition of one builder, as it is shown.
type span struct {
	stage  bus.Stage
	detail string
	from   time.Time
	to     time.Time // zero: it is the present one
}

// status is what a reservation knows. All times are this client's: clocks of other hosts are shown to nobody.
type status struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change
	begun    time.Time
	deadline time.Time // zero until the order is placed
	view     bus.BuildView
	known    bool                // the server has answered CreateBuild
	spans    map[bus.Arch][]span // "" holds what is about the whole build
	dialled  map[bus.LeaseID]bool
	message  string // about the server, not about a builder
	failure  error  // the acquisition is over
	taken    error  // the server's word that a builder which was dialled is no longer ours
	away     bool   // the connection has ended for good
}

func newStatus(now time.Time) status {
	return status{
		changed: make(chan struct{}), begun: now,
		spans:   map[bus.Arch][]span{"": {{stage: bus.StageQueued, from: now}}},
		dialled: map[bus.LeaseID]bool{},
	}
}

// update runs change under the lock and wakes everybody who waits.
func (s *status) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *status) start(now time.Time, acquireTimeout time.Duration) {
	s.update(func() {
		s.begun = now
		s.deadline = now.Add(acquireTimeout + acquireGrace)
		s.spans[""] = []span{{stage: bus.StageQueued, from: now}}
	})
}

func (s *status) started() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.deadline.IsZero()
}

func (s *status) exists() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

func (s *status) pace() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving() {
		return askRunning
	}
	return askWaiting
}

func (s *status) serving() bool {
	return s.known && (s.view.State == bus.BuildReady || s.view.State == bus.BuildRunning)
}

// hear takes an event for what it is: a line to show.
func (s *status) hear(e bus.BuildEvent, now time.Time) {
	if e.Stage == "" || e.Architecture == "" {
		return
	}
	s.update(func() { s.enter(e.Architecture, e.Stage, e.Message, now) })
}

// learn takes the server's answer for the truth.
func (s *status) learn(view bus.BuildView, now time.Time) {
	s.update(func() {
		s.message = ""
		s.view, s.known = view, true
		for _, l := range view.Leases {
			s.enter(l.Architecture, l.Stage, l.Reason, now)
		}
		switch {
		case view.State.Ended():
			err := endError(view)
			if s.failure == nil {
				s.failure = err
			}
			s.take(err)
		default:
			s.checkLeases()
		}
	})
}

// checkLeases notices that a builder which was dialled has been replaced: its build there is gone.
func (s *status) checkLeases() {
	for lease := range s.dialled {
		kept := slices.ContainsFunc(s.view.Leases, func(l bus.LeaseView) bool { return l.Lease == lease })
		if !kept || s.view.State == bus.BuildWaiting {
			s.take(lostError(s.view.Reason))
		}
	}
}

func (s *status) take(err error) {
	if s.taken == nil && len(s.dialled) > 0 {
		s.taken = err
	}
}

// enter moves one builder to a stage. Another reason in the same stage is news too.
func (s *status) enter(arch bus.Arch, stage bus.Stage, detail string, now time.Time) {
	spans, ok := s.spans[arch]
	if !ok {
		spans = []span{{stage: bus.StageQueued, from: s.begun}}
	}
	last := &spans[len(spans)-1]
	switch {
	case last.stage != stage:
		last.to = now
		spans = append(spans, span{stage: stage, detail: detail, from: now})
	case detail != "":
		last.detail = detail
	}
	s.spans[arch] = spans
}

func (s *status) note(message string) { s.update(func() { s.message = message }) }

// fail ends the acquisition.
func (s *status) fail(err error) {
	s.update(func() {
		if s.failure == nil {
			s.failure = err
		}
	})
}

// disconnect ends an acquisition that still waits. A build that already has its builders does not need the bus.
func (s *status) disconnect(err error) {
	s.update(func() {
		s.away = true
		if !s.serving() && s.failure == nil {
			s.failure = err
		}
	})
}

// dial notes that a lease is in use: from now on the server's word can end the build.
func (s *status) dial(lease bus.LeaseID) { s.update(func() { s.dialled[lease] = true }) }

// snapshot is one consistent look at a status.
type snapshot struct {
	changed  <-chan struct{}
	begun    time.Time
	deadline time.Time
	view     bus.BuildView
	serving  bool
	spans    []span
	message  string
	failure  error
	taken    error
}

// look returns what is known about one builder; arch "" means the build's first one.
func (s *status) look(arch bus.Arch) snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if arch == "" && len(s.view.Leases) > 0 {
		arch = s.view.Leases[0].Architecture
	}
	spans := s.spans[arch]
	if spans == nil {
		spans = s.spans[""]
	}
	return snapshot{
		changed: s.changed, begun: s.begun, deadline: s.deadline, view: s.view, serving: s.serving(),
		spans: slices.Clone(spans), message: s.message, failure: s.failure, taken: s.taken,
	}
}

// lease returns the lease of a builder; arch "" means the build's first one.
func (n snapshot) lease(arch bus.Arch) (bus.LeaseView, bool) {
	for _, l := range n.view.Leases {
		if arch == "" || l.Architecture == arch {
			return l, true
		}
	}
	return bus.LeaseView{}, false
}
