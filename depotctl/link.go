package depotctl

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"google.golang.org/grpc"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
)

// The deadlines of the stage connecting.
const (
	reachTimeout   = 10 * time.Second       // of the whole stage: all addresses, again and again
	attemptTimeout = 5 * time.Second        // of one address
	headStart      = time.Second            // of an address before the next one is tried beside it
	reachPause     = 300 * time.Millisecond // between two rounds: a route or a listener may be a moment late
	helloTimeout   = 5 * time.Second        // of BuildKit's first bytes
	tcpKeepAlive   = 15 * time.Second
)

// link is an authenticated connection to one builder. Certificates and key stay in memory.
type link struct {
	lease   bus.LeaseView
	config  *tls.Config
	address string        // the one that answered
	spare   chan net.Conn // the connection that proved it, for the first caller of dial
	client  *client.Client
	pulse   *pulse
}

// connect reaches the lease's builder: the addresses in order, a TLS handshake that proves the builder, then its first
// bytes, which prove this client and BuildKit. In TLS 1.3 a client learns only by its first read that its certificate
// was refused; and an HTTP/2 server speaks first, so waiting for it costs no round trip.
func connect(ctx context.Context, lease bus.LeaseView, key *certs.Key) (*link, error) {
	config, err := certs.ClientConfig(lease.ServerName, lease.CA, lease.Certificate, key)
	if err != nil {
		return nil, failf(ExitUnreachable, "connect to the %s builder: %v", lease.Architecture, err).
			hint("run this again; if it goes on, see the log of the API server").because(err)
	}
	l := &link{lease: lease, config: config, spare: make(chan net.Conn, 1), pulse: newPulse()}
	conn, err := l.reach(ctx)
	if err != nil {
		return nil, err
	}
	if err := conn.hear(helloTimeout); err != nil {
		return nil, errors.Join(l.refused(err), conn.Close())
	}
	l.spare <- conn
	if l.client, err = l.newClient(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return l, nil
}

func (l *link) newClient(ctx context.Context) (*client.Client, error) {
	return client.New(context.WithoutCancel(ctx), "tcp://"+l.address,
		client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.dial(ctx) }),
		client.WithGRPCDialOption(grpc.WithAuthority(l.lease.ServerName)),
		// No tracer delegate: when buildx has flushed its spans it would close this client, and the end of the
		// connection could no longer be told from the loss of the builder.
	)
}

// dial hands out the connection that reach made, then makes new ones to the same address.
func (l *link) dial(ctx context.Context) (net.Conn, error) {
	select {
	case conn := <-l.spare:
		return conn, nil
	default:
		return l.handshake(ctx, l.address)
	}
}

// reach tries the addresses, each with a head start before the next, in rounds until one answers or time is up. What
// answers with the wrong certificate ends it at once: trying again cannot make it right.
func (l *link) reach(ctx context.Context) (*liveConn, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	if len(l.lease.Addresses) == 0 {
		return nil, l.unreachable(errors.New("it has no address"))
	}
	for {
		conn, address, err := l.round(ctx)
		if err == nil {
			l.address = address
			return conn, nil
		}
		if isCertificateError(err) {
			return nil, l.impostor(err)
		}
		timer := time.NewTimer(reachPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
				return nil, cause
			}
			return nil, l.unreachable(err)
		}
	}
}

type attempt struct {
	address string
	conn    *liveConn
	err     error
}

// round tries every address once. The first handshake that succeeds wins; later ones are closed.
func (l *link) round(ctx context.Context) (*liveConn, string, error) {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan attempt, len(l.lease.Addresses))
	started, failed := 0, make([]error, 0, len(l.lease.Addresses))
	defer func() {
		cancel()
		go func(open int) { // ends with the attempts, which end with ctx
			for range open {
				if a := <-results; a.conn != nil {
					_ = a.conn.Close()
				}
			}
		}(started - len(failed))
	}()
	next := time.NewTimer(0)
	defer next.Stop()
	for len(failed) < len(l.lease.Addresses) {
		select {
		case <-next.C:
		case a := <-results:
			if a.err == nil {
				started-- // this one is not closed
				return a.conn, a.address, nil
			}
			failed = append(failed, fmt.Errorf("%s: %w", a.address, a.err))
		}
		if started < len(l.lease.Addresses) {
			address := l.lease.Addresses[started]
			started++
			go func() { results <- l.attempt(ctx, address) }()
			next.Reset(headStart)
		}
	}
	return nil, "", errors.Join(failed...)
}

func (l *link) attempt(ctx context.Context, address string) attempt {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	conn, err := l.handshake(ctx, address)
	return attempt{address: address, conn: conn, err: err}
}

func (l *link) handshake(ctx context.Context, address string) (*liveConn, error) {
	dialer := net.Dialer{KeepAlive: tcpKeepAlive}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, plain(err)
	}
	conn := tls.Client(raw, l.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return &liveConn{Conn: conn, pulse: l.pulse}, nil
}

// plain drops the part of a dial error that the caller prints itself.
func plain(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		if op.Timeout() {
			return errors.New("no answer")
		}
		return op.Err
	}
	return err
}

// close ends the connection: every RPC on it fails.
func (l *link) close() {
	l.pulse.retire()
	_ = l.client.Close() // there is nobody to tell
	select {
	case conn := <-l.spare:
		_ = conn.Close()
	default:
	}
}

func (l *link) name() string {
	return fmt.Sprintf("%s builder (machine %s)", l.lease.Architecture, l.lease.Machine)
}

func (l *link) unreachable(err error) *Error {
	return failf(ExitUnreachable, "cannot reach the %s in stage %s: %s", l.name(), bus.StageConnecting, strings.ReplaceAll(err.Error(), "\n", "; ")).
		hint("usual causes: a security group or firewall that does not let this host in; an address that is not routed from here; a machine that is gone\n" +
			"look at it with `depotctl list machines`").because(err)
}

func (l *link) impostor(err error) *Error {
	return failf(ExitUnreachable, "what answers for the %s in stage %s is not that builder: %s", l.name(), bus.StageConnecting, strings.ReplaceAll(err.Error(), "\n", "; ")).
		hint("usual causes: a proxy that opens TLS between here and there; a clock that is wrong by more than a minute; an address that now belongs to another machine").because(err)
}

// refused explains a builder that was reached but does not speak.
func (l *link) refused(err error) error {
	if isAlert(err) {
		return failf(ExitUnreachable, "the %s at %s refuses this client's certificate: %v", l.name(), l.address, err).
			hint("the lease may have ended meanwhile: run this again; if it goes on, compare the clocks of this host and the builder").because(err)
	}
	return failf(ExitUnreachable, "the %s at %s accepts the connection but does not answer: %s", l.name(), l.address, oneLine(err.Error())).
		hint("run this again; if it goes on, see the log of the machine").because(err)
}

// isCertificateError reports whether somebody answered who is not the builder.
func isCertificateError(err error) bool {
	var (
		verification *tls.CertificateVerificationError
		peer         *certs.PeerError
		record       tls.RecordHeaderError
		hostname     x509.HostnameError
	)
	return errors.As(err, &verification) || errors.As(err, &peer) || errors.As(err, &record) || errors.As(err, &hostname) || isAlert(err)
}

// isAlert reports whether the peer has refused this end in TLS's own words.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}
