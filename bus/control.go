package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// oldestServer is the first server without known holes in what depot relies on.
var oldestServer = [3]int{2, 14, 0}

// closeGrace is how long Close lets handlers go on before their contexts end.
const closeGrace = 5 * time.Second

// ControlConfig is the configuration of an API server's connection.
type ControlConfig struct {
	URL           string    // of an external server; ignored with Server
	Server        *Embedded // in this process
	CAFile        string    // PEM roots for tls://; empty means the system's
	Trust         *Trust
	Replicas      int // of streams and buckets: 1 or 3; 0 means 1
	Name, Version string
	Log           *slog.Logger
}

// Control is the API server's connection: to the accounts CONTROL, AUTH and SYS.
type Control struct {
	nc       *nats.Conn // account CONTROL
	js       jetstream.JetStream
	auth     *nats.Conn // account AUTH
	sys      *nats.Conn // account SYS
	trust    *Trust
	replicas int
	version  string
	protocol int
	log      *slog.Logger

	life     context.Context // ends with Close
	end      context.CancelFunc
	handling context.Context // ends some time later, so that handlers can finish
	abort    context.CancelFunc
	guarded  atomic.Int64 // requests that the guard dropped or refused
	mu       sync.Mutex
	closing  bool
	work     sync.WaitGroup // handlers and background pushes
	closings sync.WaitGroup // connections that are open
	once     sync.Once
}

// OpenControl connects with the rights of the installation's trust, and brings accounts and streams to the form that
// this program's table wants. Without a deadline in ctx it tries for 10 s.
func OpenControl(ctx context.Context, cfg ControlConfig) (*Control, error) {
	c, err := openControl(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open the bus for the API server: %w", err)
	}
	return c, nil
}

func openControl(ctx context.Context, cfg ControlConfig) (*Control, error) {
	if cfg.Trust == nil {
		return nil, errors.New("no trust is given")
	}
	if cfg.Replicas == 0 {
		cfg.Replicas = 1
	}
	if cfg.Replicas != 1 && cfg.Replicas != 3 {
		return nil, fmt.Errorf("want 1 or 3 replicas, not %d", cfg.Replicas)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	c := &Control{trust: cfg.Trust, replicas: cfg.Replicas, version: cfg.Version, protocol: ProtocolVersion, log: logger(cfg.Log)}
	c.life, c.end = context.WithCancel(context.Background())
	c.handling, c.abort = context.WithCancel(context.Background())
	if err := c.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Control) open(ctx context.Context, cfg ControlConfig) (err error) {
	if c.sys, err = c.dial(ctx, cfg, accountSYS); err != nil {
		return err
	}
	if err := checkServerVersion(c.sys.ConnectedServerVersion()); err != nil {
		return err
	}
	if err := c.pushInfrastructure(ctx); err != nil {
		return err
	}
	if c.auth, err = c.dial(ctx, cfg, accountAUTH); err != nil {
		return err
	}
	if c.nc, err = c.dial(ctx, cfg, accountCONTROL); err != nil {
		return err
	}
	if c.js, err = jetstream.New(c.nc); err != nil {
		return err
	}
	return c.ensureStreams(ctx)
}

func (c *Control) dial(ctx context.Context, cfg ControlConfig, account string) (*nats.Conn, error) {
	signed, key, err := c.trust.infrastructureUser(account)
	if err != nil {
		return nil, err
	}
	opts := append(commonOptions(cfg.Name, string(RoleAPI)),
		nats.UserJWT(func() (string, error) { return signed, nil }, key.Sign),
		nats.IgnoreAuthErrorAbort(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.log.Warn("bus error", "account", account, "err", err)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			c.log.Info("bus connection lost", "account", account, "err", err)
		}),
		nats.ClosedHandler(func(*nats.Conn) { c.closings.Done() }),
	)
	if cfg.Server != nil {
		opts = append(opts, nats.InProcessServer(inProcess{cfg.Server.server}))
	}
	if cfg.CAFile != "" {
		opts = append(opts, nats.RootCAs(cfg.CAFile))
	}
	for attempt := 0; ; attempt++ {
		nc, err := nats.Connect(cfg.URL, append(opts, dialTimeout(ctx))...)
		if err == nil {
			c.closings.Add(1)
			return nc, nil
		}
		if sleep(ctx, backoff(attempt, 50*time.Millisecond, time.Second)) != nil {
			return nil, controlDialError(cfg, err)
		}
	}
}

func controlDialError(cfg ControlConfig, err error) error {
	if errors.Is(err, nats.ErrAuthorization) {
		return fmt.Errorf("%w: the server at %s does not trust this key material; was it started with the configuration made from the same trust?", ErrForbidden, cfg.URL)
	}
	return fmt.Errorf("%w: %s: %w", ErrUnreachable, cfg.URL, err)
}

func checkServerVersion(version string) error {
	var have [3]int
	core, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), "-")
	for i, part := range strings.SplitN(core, ".", 3) {
		n, err := strconv.Atoi(part)
		if err != nil {
			return fmt.Errorf("bus server has version %q, which cannot be compared; want at least %d.%d.%d", version, oldestServer[0], oldestServer[1], oldestServer[2])
		}
		have[i] = n
	}
	for i, want := range oldestServer {
		if have[i] != want {
			if have[i] < want {
				return fmt.Errorf("bus server is nats-server %s, which has known security holes; upgrade it to %d.%d.%d or newer", version, oldestServer[0], oldestServer[1], oldestServer[2])
			}
			break
		}
	}
	return nil
}

// goWork runs f in a goroutine for which Close waits; after Close it runs nothing.
func (c *Control) goWork(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		c.work.Go(f)
	}
}

// Close takes no more requests, waits for the handlers that run, and closes the three connections.
func (c *Control) Close() error {
	c.once.Do(func() {
		c.mu.Lock()
		c.closing = true
		c.mu.Unlock()
		c.end()
		defer time.AfterFunc(closeGrace, c.abort).Stop()
		c.work.Wait()
		for _, nc := range []*nats.Conn{c.auth, c.nc, c.sys} {
			if nc == nil {
				continue
			}
			if err := nc.Drain(); err != nil {
				nc.Close()
			}
		}
		c.closings.Wait()
		c.abort()
	})
	return nil
}
