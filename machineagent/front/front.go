package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config of a Front.
type Config struct {
	// Dial opens a connection to the daemon. Required. The connection should have CloseWrite.
	Dial func(ctx context.Context) (net.Conn, error)
	// Changed is called after a connection was opened or closed, or a lease ended by its deadline. It must not block.
	Changed func()
	// HandshakeTimeout bounds a handshake from the accept on. Default 5 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes bounds handshakes at once; what is above is closed unread. Default 256.
	MaxHandshakes int
	// MaxConnections bounds the connections of one lease at once. Default 256.
	MaxConnections int
	// Now is the clock that leases end by. Default time.Now.
	Now func() time.Time
	// Log is where it says what it does. Default: nowhere.
	Log *slog.Logger
}

// Lease is what the front needs to serve one lease.
type Lease struct {
	ID         string
	Generation int
	TLS        *tls.Config // of certs.ServerConfig
	Deadline   time.Time   // when the front ends it by itself
}

// Live says how many connections a lease has.
type Live struct {
	ID          string
	Connections int
}

// Front is the server. Leases may be installed before it serves.
type Front struct {
	cfg        Config
	handshakes chan struct{}

	mu     sync.Mutex
	leases map[string]*lease
	closed bool
}

// lease is an installed Lease. All but what was installed is guarded by Front.mu.
type lease struct {
	Lease
	tls   *tls.Config
	timer *time.Timer
	conns map[*stream]struct{}
	ended bool
}

// The reasons of a refusal, for the log: the client is told nothing.
var (
	errUnknownLease = errors.New("no such lease")
	errEndedLease   = errors.New("the lease has ended")
	errTooMany      = errors.New("too many connections")
	errClosed       = errors.New("the front is closed")
)

// New returns a front without leases.
func New(cfg Config) (*Front, error) {
	if cfg.Dial == nil {
		return nil, errors.New("configure front: Dial is missing")
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 5 * time.Second
	}
	if cfg.MaxHandshakes == 0 {
		cfg.MaxHandshakes = 256
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 256
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Front{cfg: cfg, handshakes: make(chan struct{}, cfg.MaxHandshakes), leases: map[string]*lease{}}, nil
}

// Install makes the front serve a lease. The same generation again changes nothing; a newer one replaces the older and
// cuts its connections, because its certificates are void; an older one is refused.
func (f *Front) Install(l Lease) error {
	if l.ID == "" || l.TLS == nil || l.TLS.VerifyConnection == nil {
		return errors.New("install lease: id or TLS configuration is missing")
	}
	remaining := l.Deadline.Sub(f.cfg.Now())
	if remaining <= 0 {
		return fmt.Errorf("install lease %s: %w", l.ID, errEndedLease)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("install lease %s: %w", l.ID, errClosed)
	}
	if old := f.leases[l.ID]; old != nil {
		switch {
		case old.Generation == l.Generation:
			return nil
		case old.Generation > l.Generation:
			return fmt.Errorf("install lease %s: generation %d is older than %d", l.ID, l.Generation, old.Generation)
		}
		f.end(old, "replaced by a newer generation")
	}
	installed := &lease{Lease: l, conns: map[*stream]struct{}{}}
	installed.tls = f.guard(installed)
	installed.timer = time.AfterFunc(remaining, func() { f.expire(installed) })
	f.leases[l.ID] = installed
	return nil
}

// guard adds the question whether the lease lives to its configuration. Records are written at full size from the
// start: most of what passes is bulk, and the front writes several at once anyway.
func (f *Front) guard(l *lease) *tls.Config {
	cfg := l.TLS.Clone()
	cfg.DynamicRecordSizingDisabled = true
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		f.mu.Lock()
		err := f.check(l)
		f.mu.Unlock()
		if err != nil {
			return err
		}
		return verify(cs)
	}
	return cfg
}

// check is the answer to "does this lease live?". It is called with the lock held.
func (f *Front) check(l *lease) error {
	if l.ended || !f.cfg.Now().Before(l.Deadline) {
		return errEndedLease
	}
	return nil
}

// End ends a lease: no handshake for it succeeds any more, and its connections are reset before End returns.
func (f *Front) End(id, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.leases[id]; l != nil {
		f.end(l, reason)
	}
}

func (f *Front) expire(l *lease) {
	f.mu.Lock()
	f.end(l, "deadline passed")
	f.mu.Unlock()
	f.cfg.Changed()
}

// end is called with the lock held.
func (f *Front) end(l *lease, reason string) {
	if l.ended {
		return
	}
	l.ended = true
	l.timer.Stop()
	if f.leases[l.ID] == l {
		delete(f.leases, l.ID)
	}
	for c := range l.conns {
		c.reset()
	}
	f.cfg.Log.Info("lease ended at the front", slog.String("lease", l.ID), slog.Int("generation", l.Generation),
		slog.Int("connections", len(l.conns)), slog.String("reason", reason))
}

// Generation returns the generation of an installed lease, or false.
func (f *Front) Generation(id string) (int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.leases[id]
	if l == nil {
		return 0, false
	}
	return l.Generation, true
}

// Connections returns how many connections a lease has.
func (f *Front) Connections(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.leases[id]; l != nil {
		return len(l.conns)
	}
	return 0
}

// Live returns every lease with its connections, by id.
func (f *Front) Live() []Live {
	f.mu.Lock()
	live := make([]Live, 0, len(f.leases))
	for id, l := range f.leases {
		live = append(live, Live{ID: id, Connections: len(l.conns)})
	}
	f.mu.Unlock()
	slices.SortFunc(live, func(a, b Live) int { return strings.Compare(a.ID, b.ID) })
	return live
}

// close ends every lease, for good.
func (f *Front) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, l := range f.leases {
		f.end(l, "the front closes")
	}
}

func (f *Front) find(id string) *lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leases[id]
}

// admit is the last word on a connection whose handshake is done: between the handshake's check and this one, under
// the lock that End takes, the lease may have ended.
func (f *Front) admit(l *lease, s *stream) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check(l); err != nil {
		return err
	}
	if len(l.conns) >= f.cfg.MaxConnections {
		return errTooMany
	}
	l.conns[s] = struct{}{}
	return nil
}

func (f *Front) forget(l *lease, s *stream) {
	f.mu.Lock()
	delete(l.conns, s)
	f.mu.Unlock()
	f.cfg.Changed()
}
