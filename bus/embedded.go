package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
)

// authTimeout is how long a client may take to be admitted, in seconds. Above about 2 s the server's first ping comes
// first, and a client whose token nobody checks sees a protocol error instead of a refusal.
const authTimeout = 1.5

// maxAccountJWT bounds the claims of one account, in bytes.
const maxAccountJWT = 1 << 20

// maxStore is what the streams' limits may add up to. It is a number of ours, and not the server's share of what the disk
// has left: with that, a disk that fills up would keep a server from starting with the state that it has.
const maxStore = 64 << 30

// EmbeddedConfig is the configuration of a bus server inside this process.
type EmbeddedConfig struct {
	Dir    string // state: accounts and streams
	Trust  *Trust
	Listen string // host:port; empty means in process only, no host means loopback, port 0 means any free one

	CertFile string // PEM, with KeyFile: clients connect with tls://
	KeyFile  string
	Log      *slog.Logger
}

// Embedded is a bus server inside this process: the same server with the same trust as an external one.
type Embedded struct {
	server *server.Server
	tls    bool
	once   sync.Once
}

// StartEmbedded starts a server and waits until it takes connections.
func StartEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Embedded, error) {
	if cfg.Trust == nil || cfg.Dir == "" {
		return nil, errors.New("start bus server: Dir and Trust are required")
	}
	opts, err := serverOptions(cfg)
	if err != nil {
		return nil, fmt.Errorf("start bus server: %w", err)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("start bus server: %w", err)
	}
	s.SetLoggerV2(serverLog{logger(cfg.Log)}, false, false, false)
	s.Start() // returns when the server runs; in a goroutine it would race ReadyForConnections
	e := &Embedded{server: s, tls: opts.TLSConfig != nil}
	if !s.ReadyForConnections(10 * time.Second) {
		return nil, errors.Join(errors.New("start bus server: not ready after 10 s (is the address in use? see the log)"), e.Close())
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func serverOptions(cfg EmbeddedConfig) (*server.Options, error) {
	operator, err := jwt.DecodeOperatorClaims(cfg.Trust.operator)
	if err != nil {
		return nil, fmt.Errorf("read operator: %w", err)
	}
	resolver, err := server.NewDirAccResolver(filepath.Join(cfg.Dir, "jwt"), maxAccountJWT, 2*time.Minute, server.RenameDeleted)
	if err != nil {
		return nil, fmt.Errorf("open accounts: %w", err)
	}
	jwts, err := cfg.Trust.infrastructureJWTs()
	if err != nil {
		return nil, err
	}
	for account, signed := range jwts {
		if err := resolver.Store(account, signed); err != nil {
			return nil, fmt.Errorf("store account: %w", err)
		}
	}
	opts := &server.Options{
		ServerName:             "depot",
		DontListen:             cfg.Listen == "",
		NoSigs:                 true,
		JetStream:              true,
		StoreDir:               filepath.Join(cfg.Dir, "js"),
		SyncAlways:             true,
		JetStreamMaxStore:      maxStore,
		DisableJetStreamBanner: true,
		TrustedOperators:       []*jwt.OperatorClaims{operator},
		SystemAccount:          cfg.Trust.accounts[accountSYS].public,
		AccountResolver:        resolver,
		DefaultSentinel:        cfg.Trust.sentinel,
		AuthTimeout:            authTimeout,
		MaxPayload:             maxPayload,
	}
	if cfg.Listen == "" {
		return opts, nil
	}
	if opts.Host, opts.Port, err = splitListen(cfg.Listen); err != nil {
		return nil, err
	}
	if cfg.CertFile != "" {
		certificate, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load certificate: %w", err)
		}
		opts.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13}
		opts.TLSTimeout = 5
	}
	return opts, nil
}

// splitListen reads host:port. Without a host it is loopback: nothing listens to the world unless it is told to.
func splitListen(listen string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(listen)
	if err != nil {
		return "", 0, fmt.Errorf("listen address: %w", err)
	}
	if port, err = strconv.Atoi(text); err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("listen address: %q is not a port", text)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return host, port, nil
}

// URL is the address of the listener, or "" without one.
func (e *Embedded) URL() string {
	addr := e.server.Addr()
	if addr == nil {
		return ""
	}
	if e.tls {
		return "tls://" + addr.String()
	}
	return "nats://" + addr.String()
}

// Close stops the server and waits until it has stopped. What was acknowledged is on disk.
func (e *Embedded) Close() error {
	e.once.Do(func() {
		e.server.Shutdown()
		e.server.WaitForShutdown()
	})
	return nil
}

// Traffic returns the bytes that the server has received from its clients and sent to them, payloads only.
func (e *Embedded) Traffic() (in, out int64) {
	v, err := e.server.Varz(nil)
	if err != nil {
		return 0, 0
	}
	return v.InBytes, v.OutBytes
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// serverLog passes the server's own log on. Its notices are a program's small talk, so they are debug lines here.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(format string, v ...any) { l.write(slog.LevelDebug, format, v) }
func (l serverLog) Warnf(format string, v ...any)   { l.write(slog.LevelWarn, format, v) }
func (l serverLog) Errorf(format string, v ...any)  { l.write(slog.LevelError, format, v) }
func (l serverLog) Fatalf(format string, v ...any)  { l.write(slog.LevelError, format, v) }
func (l serverLog) Debugf(format string, v ...any)  { l.write(slog.LevelDebug, format, v) }
func (l serverLog) Tracef(format string, v ...any)  { l.write(slog.LevelDebug, format, v) }

func (l serverLog) write(level slog.Level, format string, v []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, "bus server", "line", fmt.Sprintf(format, v...))
	}
}
