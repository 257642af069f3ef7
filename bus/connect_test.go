package bus_test

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

func TestConnectSaysWhyACredentialIsRefused(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		o, c := s.Default(t)
		admit := func() bus.Token {
			return s.Admit(bus.Grant{Role: bus.RoleUser, Account: o.Account, Organization: o.ID})
		}
		revoked, expired := admit(), admit()
		s.Revoke(revoked.ID)
		s.Expire(expired.ID, time.Now().Add(-time.Second))
		for name, test := range map[string]struct {
			change func(*bus.Config)
			want   error
		}{
			"unknown token": {func(cfg *bus.Config) { cfg.Token = bus.NewToken() }, bus.ErrBadToken},
			"revoked token": {func(cfg *bus.Config) { cfg.Token = revoked }, bus.ErrRevokedToken},
			"expired token": {func(cfg *bus.Config) { cfg.Token = expired }, bus.ErrExpiredToken},
			"unknown nonce": {func(cfg *bus.Config) { cfg.Nonce = bus.LaunchNonce(c.Token, bus.NewMachineID(), 1) }, bus.ErrBadToken},
			"expired user":  {func(cfg *bus.Config) { cfg.User = s.Credential(t, c, bus.NewMachineID(), -time.Minute) }, bus.ErrExpiredToken},
			"user of a deleted account": {func(cfg *bus.Config) {
				gone := s.Connection(t, o.ID)
				cfg.User = s.Credential(t, gone, bus.NewMachineID(), time.Minute)
				require.NoError(t, s.Control.DeleteAccount(t.Context(), gone.Account))
			}, bus.ErrRevokedToken},
		} {
			t.Run(name, func(t *testing.T) {
				cfg := s.Config()
				test.change(&cfg)
				start := time.Now()
				_, err := bus.Connect(t.Context(), cfg)
				require.ErrorIs(t, err, test.want)
				require.Less(t, time.Since(start), 5*time.Second, "a refusal with a reason is final")
			})
		}
	})
}

func TestConnectNamesTheAbsentAPIServer(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		o, _ := s.Default(t)
		cfg := s.Config()
		cfg.Token = s.Admit(bus.Grant{Role: bus.RoleUser, Account: o.Account, Organization: o.ID})
		cfg.ConnectTimeout = 2 * time.Second
		_, err := bus.Connect(t.Context(), cfg)
		require.ErrorIs(t, err, bus.ErrNoAPIServer)

		connected := make(chan error, 1)
		cfg.ConnectTimeout = 30 * time.Second
		go func() {
			conn, err := bus.Connect(t.Context(), cfg)
			if err == nil {
				err = conn.Close()
			}
			connected <- err
		}()
		require.NoError(t, s.Control.ServeCallout(t.Context(), s.Authorize))
		require.NoError(t, <-connected, "the API server came in time")
	}, bustest.WithoutCallout())
}

func TestConnectNamesTheAddressWhereNothingListens(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	_, err = bus.Connect(t.Context(), bus.Config{URL: "nats://" + address, Token: bus.NewToken(), ConnectTimeout: 300 * time.Millisecond})
	require.ErrorIs(t, err, bus.ErrUnreachable)
	require.ErrorContains(t, err, address)
}

func TestConnectWantsOneCredential(t *testing.T) {
	t.Parallel()
	for _, cfg := range []bus.Config{{}, {Token: bus.NewToken(), Nonce: bus.LaunchNonce(bus.NewToken(), bus.NewMachineID(), 1)}} {
		_, err := bus.Connect(t.Context(), cfg)
		require.ErrorContains(t, err, "exactly one of Token, Nonce and User")
	}
}

func TestAnotherProtocolVersionIsRefusedWithTheSideToUpgrade(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	o, _ := s.Default(t)
	cfg := s.Config()
	cfg.Token = s.Admit(bus.Grant{Role: bus.RoleUser, Account: o.Account, Organization: o.ID})

	_, err := bus.ConnectSpeaking(t.Context(), cfg, bus.ProtocolVersion+1)
	require.ErrorIs(t, err, bus.ErrProtocol)
	require.ErrorContains(t, err, "upgrade the API server")

	s.Control.Speak(bus.ProtocolVersion + 1)
	_, err = bus.Connect(t.Context(), cfg)
	require.ErrorIs(t, err, bus.ErrProtocol)
	require.ErrorContains(t, err, "upgrade this program")
}

func TestConnectThroughAUnixSocketLooksUpNoHost(t *testing.T) {
	t.Parallel()
	s := bustest.New(t, bustest.WithListener())
	_, c := s.Default(t)
	path := filepath.Join(t.TempDir(), "bus.sock")
	forward(t, path, strings.TrimPrefix(s.URL, "nats://"))
	s.Connect(t, bus.Config{
		URL: "nats://bus.invalid:4222", Token: c.Token,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	})
}

// forward connects each client of the unix socket to the TCP address, until the test ends.
func forward(t *testing.T, path, address string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", address)
			if err != nil {
				_ = in.Close()
				continue
			}
			go pipe(in, out)
			go pipe(out, in)
		}
	}()
}

func pipe(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			_, _ = to.Write(buffer[:n])
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

func TestConnectOverTLSTrustsOnlyTheGivenRoots(t *testing.T) {
	t.Parallel()
	certFile, keyFile := selfSigned(t)
	trust, err := bus.NewTrust()
	require.NoError(t, err)
	e, err := bus.StartEmbedded(t.Context(), bus.EmbeddedConfig{Dir: t.TempDir(), Trust: trust, Listen: ":0", CertFile: certFile, KeyFile: keyFile})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	require.Contains(t, e.URL(), "tls://127.0.0.1:", "no host means loopback")

	_, err = bus.Connect(t.Context(), bus.Config{URL: e.URL(), Token: bus.NewToken()})
	require.ErrorContains(t, err, "unknown authority")

	control, err := bus.OpenControl(t.Context(), bus.ControlConfig{URL: e.URL(), CAFile: certFile, Trust: trust})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	require.NoError(t, control.ServeCallout(t.Context(), func(context.Context, bus.Credential) (bus.Grant, error) {
		return bus.Grant{}, bus.ErrRevokedToken
	}))
	_, err = bus.Connect(t.Context(), bus.Config{URL: e.URL(), CAFile: certFile, Token: bus.NewToken()})
	require.ErrorIs(t, err, bus.ErrRevokedToken, "the whole way over TLS")
}

func TestARevokedConnectionDoesNotComeBack(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		o, _ := s.Default(t)
		token := s.Admit(bus.Grant{Role: bus.RoleUser, Account: o.Account, Organization: o.ID})
		conn := s.WithToken(t, token)
		require.NoError(t, conn.NATS().ForceReconnect())
		require.Eventually(t, conn.Connected, 10*time.Second, 10*time.Millisecond)
		require.NoError(t, conn.Err(), "a good token comes back")

		s.Revoke(token.ID)
		require.NoError(t, s.Control.RevokeSessions(t.Context(), bus.ScopeOrganization, o.Account, string(o.ID)))
		waitDone(t, conn)
		require.ErrorIs(t, conn.Err(), bus.ErrRevokedToken)
		_, err := bus.ListProjects.Call(t.Context(), conn, bus.Empty{})
		require.ErrorIs(t, err, bus.ErrRevokedToken)
	})
}

func waitDone(t *testing.T, conn *bus.Conn) {
	t.Helper()
	select {
	case <-conn.Done():
	case <-time.After(time.Minute):
		t.Fatal("the connection has not ended")
	}
}

func TestARevokedMachineEndsByTheServersWordAlone(t *testing.T) {
	onEveryForm(t, func(t *testing.T, s *bustest.Server) {
		_, c := s.Default(t)
		conn := s.Machine(t, bus.NewMachineID())
		require.NoError(t, s.Control.RevokeSessions(t.Context(), bus.ScopeConnection, c.Account, string(c.ID)))
		waitDone(t, conn)
		require.ErrorIs(t, conn.Err(), bus.ErrRevokedToken)
	})
}

func TestCloseIsNoFailure(t *testing.T) {
	t.Parallel()
	conn := bustest.New(t).User(t)
	require.NoError(t, conn.Close())
	require.NoError(t, conn.Close())
	waitDone(t, conn)
	require.NoError(t, conn.Err())
	_, err := bus.ListProjects.Call(t.Context(), conn, bus.Empty{})
	require.ErrorIs(t, err, nats.ErrConnectionClosed)
}
