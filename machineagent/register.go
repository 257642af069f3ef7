package machineagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/depotctl/depot/bus"
)

const (
	// askTimeout bounds one question to the API server.
	askTimeout = 10 * time.Second
	// The wait between attempts to connect begins with minPause and doubles up to maxPause.
	minPause = 50 * time.Millisecond
	maxPause = 10 * time.Second
)

// busConfig is how the bus is reached, without a credential.
func (a *Agent) busConfig() (bus.Config, error) {
	cfg := bus.Config{URL: a.data.BusURL}
	if a.cfg.Bus != nil {
		cfg = *a.cfg.Bus
	}
	cfg.Name, cfg.Version, cfg.Log = "machineagent", a.cfg.Version, a.log
	if socket := a.data.BusSocket; socket != "" {
		cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
	}
	if a.data.BusCA != "" {
		cfg.CAFile = filepath.Join(a.data.StateDir, "bus-ca.pem")
		if err := writeFile(cfg.CAFile, []byte(a.data.BusCA)); err != nil {
			return bus.Config{}, fmt.Errorf("write roots of the bus: %w", err)
		}
	}
	return cfg, nil
}

// converse keeps a connection to the bus and talks over it, until ctx ends. It fails only when the bus has refused
// the machine for long and nobody uses it: then the machine is not wanted any more, and nobody will tell it.
func (a *Agent) converse(ctx context.Context) error {
	var refusedSince time.Time
	pause := minPause
	for ; ctx.Err() == nil; wait(ctx, pause) {
		begin := time.Now()
		conn, err := a.connect(ctx)
		if err == nil {
			refusedSince = time.Time{}
			a.talk(ctx, conn)
		} else if ctx.Err() == nil {
			a.log.Warn("cannot connect to the bus", slog.Any("err", err))
		}
		if pause = min(2*pause, maxPause); err == nil && time.Since(begin) > maxPause {
			pause = minPause
		}
		switch {
		case !isRefusal(err):
			refusedSince = time.Time{}
		case refusedSince.IsZero():
			refusedSince = time.Now()
		case time.Since(refusedSince) > a.cfg.RefusedFor && len(a.front.Live()) == 0:
			return fmt.Errorf("refused for %s: %w", a.cfg.RefusedFor, err)
		}
	}
	return nil
}

func isRefusal(err error) bool {
	for _, refusal := range []error{bus.ErrBadToken, bus.ErrExpiredToken, bus.ErrRevokedToken, bus.CodeForbidden, bus.CodeNotFound} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// connect connects with the credential that the machine has, else registers to get one.
func (a *Agent) connect(ctx context.Context) (*bus.Conn, error) {
	if user, ok := a.identity.current(time.Now()); ok {
		conn, err := a.connectAs(ctx, user)
		if err == nil || !isRefusal(err) {
			return conn, err
		}
		a.log.Warn("the credential is refused; registering again", slog.Any("err", err))
	}
	if err := a.register(ctx); err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	user, ok := a.identity.current(time.Now())
	if !ok {
		return nil, errors.New("register: the credential is for no longer than it takes to use it; is the clock right?")
	}
	return a.connectAs(ctx, user)
}

func (a *Agent) connectAs(ctx context.Context, user *bus.UserCredential) (*bus.Conn, error) {
	cfg := a.bus
	cfg.User = user
	return bus.Connect(ctx, cfg)
}

// register proves who the machine is: by the nonce of its launch, which lets it in no further than this, by its key
// on a fresh challenge, and by what the platform says. The first time binds the key to the machine; later ones prove it.
func (a *Agent) register(ctx context.Context) error {
	nonce, err := bus.ParseNonce(a.data.Nonce)
	if err != nil {
		return err
	}
	cfg := a.bus
	cfg.Nonce = nonce
	conn, err := bus.Connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	challenge, err := bus.ChallengeMachine.Call(ctx, conn, bus.Empty{})
	if err != nil {
		return err
	}
	evidence, err := a.attestor.Attest(ctx)
	if err != nil {
		return fmt.Errorf("get evidence from the platform: %w", err)
	}
	claim, err := a.identity.claim(challenge.Challenge, evidence, a.cfg.Version)
	if err != nil {
		return err
	}
	credential, err := bus.RegisterMachine.Call(ctx, conn, claim)
	if err != nil {
		return err
	}
	a.log.Info("registered", slog.Int("attempt", a.data.Attempt))
	return a.identity.keep(credential)
}

// talk talks over one connection until it ends, and over those that replace it when the credential is renewed.
func (a *Agent) talk(ctx context.Context, conn *bus.Conn) {
	for conn != nil {
		a.setConnection(conn)
		next, err := a.session(ctx, conn)
		if next == nil {
			a.setConnection(nil)
		}
		_ = conn.Close()
		if err != nil && ctx.Err() == nil {
			a.log.Warn("conversation ended", slog.Any("err", err))
		}
		conn = next
	}
}

// errRenewed ends a session whose successor is connected already.
var errRenewed = errors.New("the credential was renewed")

// session is the conversation over one connection. It returns the next connection if there is one.
func (a *Agent) session(ctx context.Context, conn *bus.Conn) (*bus.Conn, error) {
	parts, ctx := errgroup.WithContext(ctx)
	if err := bus.HintMachine.Subscribe(ctx, conn, a.hear); err != nil {
		return nil, fmt.Errorf("subscribe to hints: %w", err)
	}
	a.opened.Do(func() { close(a.ready) })
	var next *bus.Conn
	parts.Go(func() error { return a.instruct(ctx, conn) })
	parts.Go(func() error { return a.reportAlways(ctx, conn) })
	parts.Go(func() error {
		if next = a.renew(ctx, conn); next != nil {
			return errRenewed
		}
		return nil
	})
	parts.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-conn.Done():
			return errors.Join(errors.New("the bus has closed the connection"), conn.Err())
		}
	})
	if err := parts.Wait(); !errors.Is(err, errRenewed) {
		return next, err
	}
	return next, nil
}

// renew waits for two thirds of the credential's life, gets a new one and connects with it, while the present
// connection goes on: nothing is missed in between.
func (a *Agent) renew(ctx context.Context, conn *bus.Conn) *bus.Conn {
	pause := time.Until(a.identity.credential.ExpiresAt) * 2 / 3
	for {
		wait(ctx, pause)
		if ctx.Err() != nil {
			return nil
		}
		next, err := a.renewed(ctx, conn)
		if err == nil {
			return next
		}
		// Until the old one expires there is time; then the connection ends, and the machine registers again.
		a.log.Warn("cannot renew the credential", slog.Any("err", err))
		pause = min(maxPause, max(time.Second, time.Until(a.identity.credential.ExpiresAt)/4))
	}
}

func (a *Agent) renewed(ctx context.Context, conn *bus.Conn) (*bus.Conn, error) {
	callCtx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	credential, err := bus.RenewMachine.Call(callCtx, conn, bus.Empty{})
	if err != nil {
		return nil, err
	}
	next, err := a.connectAs(ctx, &bus.UserCredential{Machine: a.data.Machine, JWT: credential.JWT, Sign: a.identity.user.Sign})
	if err != nil {
		return nil, err
	}
	a.log.Debug("credential renewed", slog.Time("until", credential.ExpiresAt))
	if stored := a.identity.keep(credential); stored != nil {
		a.log.Warn("credential not stored", slog.Any("err", stored))
	}
	return next, nil
}

func (a *Agent) setConnection(c *bus.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn = c
}

func (a *Agent) connection() *bus.Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.conn
}
