package machineagent

import (
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
	"github.com/depotctl/depot/machineagent/front"
)

// maxExpected bounds the keys that hints alone can cause to be made.
const maxExpected = 64

// leases is what the machine knows of its leases: a key for each, made here, and what the front was given.
type leases struct {
	front *front.Front
	log   *slog.Logger

	mu       sync.Mutex
	revision uint64 // of the newest record that an answer was made of
	held     map[bus.LeaseID]*heldLease
}

// heldLease is one lease with its key. The request is sent until a set of certificates for it is installed.
type heldLease struct {
	key        *certs.Key
	csr        string
	generation int  // installed; 0 means none
	named      bool // by an answer; until then only by a hint
}

func newLeases(f *front.Front, log *slog.Logger) *leases {
	return &leases{front: f, log: log, held: map[bus.LeaseID]*heldLease{}}
}

// newer notes the revision of an answer, and refuses one that is older than what was seen.
func (l *leases) newer(revision uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if revision < l.revision {
		return false
	}
	l.revision = revision
	return true
}

// expect makes a key for a lease that a hint named.
func (l *leases) expect(id bus.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.held) < maxExpected {
		l.hold(id)
	}
}

// hold returns the lease, with a key, and whether the key is new. It is called with the lock held.
func (l *leases) hold(id bus.LeaseID) (held *heldLease, made bool) {
	if held = l.held[id]; held != nil {
		return held, false
	}
	key, err := certs.NewKey()
	if err == nil {
		var csr string
		if csr, err = key.CSR(); err == nil {
			held = &heldLease{key: key, csr: csr}
			l.held[id] = held
			return held, true
		}
	}
	l.log.Error("cannot make a key", slog.String("lease", string(id)), slog.Any("err", err))
	return nil, false
}

// requests are those of the leases that have no certificates yet.
func (l *leases) requests() []bus.LeaseCSR {
	l.mu.Lock()
	defer l.mu.Unlock()
	requests := []bus.LeaseCSR{}
	for id, held := range l.held {
		if held.generation == 0 {
			requests = append(requests, bus.LeaseCSR{Lease: id, CSR: held.csr})
		}
	}
	slices.SortFunc(requests, func(a, b bus.LeaseCSR) int { return strings.Compare(string(a.Lease), string(b.Lease)) })
	return requests
}

// serving are the leases whose root is in the front. One that the front has ended by its deadline is not.
func (l *leases) serving() []bus.LeaseRef {
	l.mu.Lock()
	defer l.mu.Unlock()
	refs := []bus.LeaseRef{}
	for id := range l.held {
		if generation, ok := l.front.Generation(string(id)); ok {
			refs = append(refs, bus.LeaseRef{Lease: id, Generation: generation})
		}
	}
	slices.SortFunc(refs, func(a, b bus.LeaseRef) int { return strings.Compare(string(a.Lease), string(b.Lease)) })
	return refs
}

// obey makes the leases those of the answer. It reports whether the next question would be another one.
func (l *leases) obey(question bus.Instruct, answer bus.Instruction) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	named := map[bus.LeaseID]bool{}
	for _, grant := range answer.Leases {
		named[grant.Lease] = true
		changed = l.grant(question, grant) || changed
	}
	for _, id := range answer.Wanted {
		named[id] = true
		if held, made := l.hold(id); made {
			held.named, changed = true, true
		}
	}
	for id, held := range l.held {
		if named[id] {
			continue
		}
		// A lease that only a hint has named, after the question was asked, may be in the next answer.
		if !held.named && !slices.ContainsFunc(question.CSRs, func(r bus.LeaseCSR) bool { return r.Lease == id }) {
			continue
		}
		delete(l.held, id)
		l.front.End(string(id), "not in the instruction")
	}
	return changed
}

// grant installs the certificates of a lease, if they are for its key. If they are for one that this process does not
// have, because it was restarted, a new request voids them.
func (l *leases) grant(question bus.Instruct, g bus.LeaseGrant) (changed bool) {
	held, made := l.hold(g.Lease)
	if held == nil {
		return false
	}
	held.named = true
	if made || held.generation == g.Generation {
		return made
	}
	log := l.log.With(slog.String("lease", string(g.Lease)), slog.String("build", string(g.Build)), slog.Int("generation", g.Generation))
	cfg, err := certs.ServerConfig(string(g.Lease), g.CA, g.Certificate, held.key, g.ClientSPKI)
	if err != nil {
		sent := slices.Contains(question.CSRs, bus.LeaseCSR{Lease: g.Lease, CSR: held.csr})
		if sent {
			log.Warn("cannot use the certificates of a lease", slog.Any("err", err))
		}
		held.generation = 0 // ask for a set that fits
		return !sent
	}
	if err := l.front.Install(front.Lease{ID: string(g.Lease), Generation: g.Generation, TLS: cfg, Deadline: g.Deadline}); err != nil {
		log.Warn("cannot serve a lease", slog.Any("err", err))
		return false
	}
	held.generation = g.Generation
	log.Info("lease is served")
	return true
}
