package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Config is the configuration of a tenant's connection.
type Config struct {
	URL    string    // nats://host:port or tls://…; ignored with Server
	Server *Embedded // in this process
	// Dial replaces the dialer, for example by one through a unix socket; the URL's host is then not looked up.
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	CAFile string // PEM roots for tls://; empty means the system's

	// Exactly one of these is the credential.
	Token Token
	Nonce Nonce
	User  *UserCredential

	Name           string        // of the program, for operators
	Version        string        // of the program, for people
	ConnectTimeout time.Duration // of the whole Connect, with all its retries; 0 means 10 s
	Log            *slog.Logger
}

// UserCredential is that of a registered machine: a JWT for a key that never leaves the machine.
type UserCredential struct {
	Machine MachineID
	JWT     string
	Sign    func(nonce []byte) ([]byte, error)
}

// Conn is a tenant's connection to the bus. It reconnects for ever, unless the API server refuses its credential.
type Conn struct {
	nc  *nats.Conn
	js  jetstream.JetStream // with the private API prefix
	log *slog.Logger

	self     string // what stands for {self} in subjects
	version  string
	protocol int
	denials  denials
	welcome  atomic.Pointer[Welcome]

	life   context.Context // ends with the connection
	finish context.CancelCauseFunc
	closed chan struct{} // the client library has stopped
	greets sync.WaitGroup
}

// Connect connects, retrying until the deadline, and says hello. Its error is ErrBadToken, ErrExpiredToken or
// ErrRevokedToken when the credential is refused, ErrProtocol when the versions do not match, ErrUnreachable when
// nothing listens at the address, and ErrNoAPIServer when the server runs but no API server admits the client.
func Connect(ctx context.Context, cfg Config) (*Conn, error) {
	return connect(ctx, cfg, ProtocolVersion)
}

func connect(ctx context.Context, cfg Config, protocol int) (*Conn, error) {
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	c := &Conn{log: logger(cfg.Log), version: cfg.Version, protocol: protocol, closed: make(chan struct{})}
	c.life, c.finish = context.WithCancelCause(context.Background())
	opts, err := c.options(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	if err := c.dial(ctx, cfg, opts); err != nil {
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	if err := c.greet(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	return c, nil
}

// dial connects and prepares JetStream. A refusal without a reason is repeated: it means that no API server answered.
func (c *Conn) dial(ctx context.Context, cfg Config, opts []nats.Option) error {
	var last error
	for attempt := 0; ; attempt++ {
		nc, err := nats.Connect(cfg.URL, append(opts, dialTimeout(ctx))...)
		if err == nil {
			c.nc = nc
			c.js, err = jetstream.NewWithAPIPrefix(nc, jsPrefix)
			return err
		}
		if last != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			return last // the deadline cut this attempt; an earlier one knows more
		}
		err = connectError(cfg, err)
		last = err
		if cfg.User != nil && errors.Is(err, errRefusedUser) {
			return userRefusal(cfg.User.JWT)
		}
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			return err // no retry makes a certificate good
		}
		if sleep(ctx, backoff(attempt, 50*time.Millisecond, time.Second)) != nil {
			return err
		}
	}
}

// errRefusedUser is a server's refusal of a user JWT, which no API server takes part in.
var errRefusedUser = errors.New("credential refused")

// connectError gives the client library's error the bus's meaning.
func connectError(cfg Config, err error) error {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		if cfg.User != nil {
			return errRefusedUser
		}
		return ErrNoAPIServer
	case errors.Is(err, nats.ErrMaxAccountConnectionsExceeded), errors.Is(err, nats.ErrMaxConnectionsExceeded):
		return Faultf(CodeNoCapacity, "the bus allows no more connections to this account")
	}
	if cfg.Server != nil {
		return fmt.Errorf("%w: in process: %w", ErrUnreachable, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrUnreachable, cfg.URL, err)
}

// userRefusal says why a server refuses a user JWT: by its own text it has expired, or else it was revoked.
func userRefusal(text string) error {
	claims, err := jwt.DecodeUserClaims(text)
	switch {
	case err != nil:
		return ErrBadToken
	case claims.Expires != 0 && claims.Expires <= time.Now().Unix():
		return ErrExpiredToken
	}
	return ErrRevokedToken
}

func (c *Conn) options(cfg Config) ([]nats.Option, error) {
	given := 0
	var credential nats.Option
	if !cfg.Token.IsZero() {
		given++
		c.self, credential = string(cfg.Token.ID), nats.Token(cfg.Token.Reveal())
	}
	if cfg.Nonce.Machine != "" {
		given++
		c.self, credential = string(cfg.Nonce.Machine), nats.Token(cfg.Nonce.Reveal())
	}
	if cfg.User != nil {
		given++
		text := cfg.User.JWT
		c.self, credential = string(cfg.User.Machine), nats.UserJWT(func() (string, error) { return text, nil }, cfg.User.Sign)
	}
	if given != 1 {
		return nil, fmt.Errorf("want exactly one of Token, Nonce and User, have %d", given)
	}
	opts := append(commonOptions(cfg.Name, c.self), credential,
		nats.ErrorHandler(c.asyncError),
		nats.ReconnectHandler(func(*nats.Conn) { c.reconnected() }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.log.Info("bus connection lost", "err", err) }),
		nats.ClosedHandler(func(nc *nats.Conn) { c.stopped(cfg.User, nc.LastError()) }),
	)
	if cfg.User == nil {
		// A refusal without a reason means that no API server answered. A user JWT is refused by the server alone.
		opts = append(opts, nats.IgnoreAuthErrorAbort())
	}
	switch {
	case cfg.Server != nil:
		opts = append(opts, nats.InProcessServer(inProcess{cfg.Server.server}))
	case cfg.Dial != nil:
		opts = append(opts, nats.SetCustomDialer(dialer(cfg.Dial)), nats.SkipHostLookup())
	}
	if cfg.CAFile != "" {
		opts = append(opts, nats.RootCAs(cfg.CAFile))
	}
	return opts, nil
}

// commonOptions are those of every connection: it reconnects for ever, with jitter, under a private inbox.
func commonOptions(name, self string) []nats.Option {
	return []nats.Option{
		nats.Name(name),
		nats.CustomInboxPrefix(inboxPrefix(self)),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(func(attempts int) time.Duration {
			return backoff(attempts, 100*time.Millisecond, 10*time.Second)
		}),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DrainTimeout(5 * time.Second),
	}
}

// dialTimeout gives one attempt what is left until the deadline, but not more than a dead host deserves.
func dialTimeout(ctx context.Context) nats.Option {
	left := 5 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		left = max(time.Millisecond, min(left, time.Until(deadline)))
	}
	return nats.Timeout(left)
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Dial implements the client library's interface.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return d(ctx, network, address)
}

// greet says hello and keeps the welcome.
func (c *Conn) greet(ctx context.Context) error {
	m, err := c.call(ctx, SayHello.Row(), Hello{Protocol: c.protocol, Version: c.version})
	if m != nil {
		if reason := refusals[m.Header.Get(headerRefused)]; reason != nil {
			if fault, ok := errors.AsType[*Fault](err); ok && errors.Is(reason, ErrProtocol) {
				return fmt.Errorf("%w: %s", reason, fault.Message)
			}
			return reason
		}
	}
	if errors.Is(err, CodeUnavailable) {
		return ErrNoAPIServer
	}
	if err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	welcome, err := decode[Welcome](replyTypeOf(SayHello.Row()), m)
	if err != nil {
		return fmt.Errorf("answer to hello: %w", err)
	}
	if welcome.Protocol != c.protocol {
		return fmt.Errorf("%w: %s", ErrProtocol, protocolMismatch(c.protocol, welcome.Protocol))
	}
	c.welcome.Store(&welcome)
	return nil
}

// reconnected says hello again: a credential that was revoked in the meantime is refused now, and stays refused.
func (c *Conn) reconnected() {
	c.greets.Go(func() {
		for attempt := 0; ; attempt++ {
			ctx, cancel := context.WithTimeout(c.life, defaultCall)
			err := c.greet(ctx)
			cancel()
			switch {
			case err == nil:
				c.log.Info("bus connection restored")
				return
			case refusalOf(err) != "":
				c.log.Error("bus connection refused", "err", err)
				c.finish(err)
				c.nc.Close()
				return
			}
			if sleep(c.life, backoff(attempt, time.Second, 10*time.Second)) != nil {
				return
			}
		}
	})
}

func (c *Conn) asyncError(_ *nats.Conn, _ *nats.Subscription, err error) {
	if subject, denied := deniedSubject(err); denied {
		c.denials.deny(subject)
		c.log.Warn("denied by the bus", "subject", subject)
		return
	}
	c.log.Warn("bus error", "err", err)
}

// stopped is called once, when the client library has given up or was closed.
func (c *Conn) stopped(user *UserCredential, last error) {
	reason := nats.ErrConnectionClosed
	if user != nil && errors.Is(connectError(Config{User: user}, last), errRefusedUser) {
		reason = userRefusal(user.JWT)
	}
	c.finish(reason) // the first reason stays
	close(c.closed)
}

// Welcome is what the API server answered to the last hello.
func (c *Conn) Welcome() Welcome { return *c.welcome.Load() }

// Connected reports whether the server is there now.
func (c *Conn) Connected() bool { return c.nc.IsConnected() }

// Done is closed when the connection has ended for good: closed, or its credential refused. Err says why.
func (c *Conn) Done() <-chan struct{} { return c.life.Done() }

// Err is nil while the connection lives, and also after Close.
func (c *Conn) Err() error {
	if err := context.Cause(c.life); !errors.Is(err, nats.ErrConnectionClosed) {
		return err
	}
	return nil
}

// ended is the error of operations on a connection that has ended.
func (c *Conn) ended() error {
	if err := c.Err(); err != nil {
		return err
	}
	return nats.ErrConnectionClosed
}

// Close sends what is buffered, lets handlers finish and waits until nothing of the connection is left.
func (c *Conn) Close() error {
	if err := c.nc.Drain(); err != nil {
		c.nc.Close()
	}
	<-c.closed
	c.greets.Wait()
	return nil
}
