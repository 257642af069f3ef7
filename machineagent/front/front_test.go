package front_test

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/depotctl/depot/machineagent/front"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFront_OnlyTheDiagonalOfLeasesAndMachinesConnects(t *testing.T) {
	t.Parallel()
	const leases, machines = 20, 4 // each machine serves the leases i with i mod machines == its number
	sets, hosts := make([]*set, leases), make([]*machine, machines)
	for i := range hosts {
		hosts[i] = startMachine(t, echo)
	}
	for i := range sets {
		sets[i] = newSet(t, fmt.Sprintf("lse-%d", i), 1)
		require.NoError(t, hosts[i%machines].Install(sets[i].Lease))
	}
	for h, host := range hosts {
		for c := range sets {
			if c%machines == h {
				mustDial(t, host.address, sets[c].client)
			} else {
				requireRefused(t, host.address, sets[c].client)
			}
			// The client of one lease, posing as that of each other lease of the machine.
			for s := h; s < leases; s += machines {
				if s == c {
					continue
				}
				liar := sets[c].client.Clone()
				liar.ServerName, liar.RootCAs, liar.VerifyConnection = sets[s].ID, sets[s].client.RootCAs, nil
				liar.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &liar.Certificates[0], nil }
				requireRefused(t, host.address, liar)
			}
		}
		require.Equal(t, leases/machines, strings.Count(fmt.Sprint(host.Live()), "lse-"))
	}
}

func TestFront_RefusesWithoutSayingWhy(t *testing.T) {
	t.Parallel()
	m, s := startMachine(t, echo), newSet(t, "lse-1", 1)
	require.NoError(t, m.Install(s.Lease))
	for name, spoil := range map[string]func(*tls.Config){
		"unknown lease":  func(c *tls.Config) { c.ServerName = "lse-2" },
		"no lease":       func(c *tls.Config) { c.ServerName, c.InsecureSkipVerify = "", true },
		"TLS 1.2":        func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"no certificate": func(c *tls.Config) { c.Certificates = nil },
		"other ALPN":     func(c *tls.Config) { c.NextProtos = []string{"smtp"} },
	} {
		cfg := s.client.Clone()
		spoil(cfg)
		err := refusal(t, m.address, cfg)
		for _, revealing := range []string{"lse-", "lease", "unknown", "refuse peer"} {
			require.NotContains(t, err.Error(), revealing, name)
		}
	}
	require.Contains(t, m.log.String(), "no such lease")
	mustDial(t, m.address, s.client)
}

func TestFront_RefusesPlaintext(t *testing.T) {
	t.Parallel()
	reached := make(chan struct{}, 1)
	m := startMachine(t, func(*net.UnixConn) { reached <- struct{}{} })
	for _, hello := range []string{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "\x00\x00"} {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", m.address)
		require.NoError(t, err)
		_, err = io.WriteString(c, hello)
		require.NoError(t, err)
		tcp, ok := c.(*net.TCPConn)
		require.True(t, ok)
		require.NoError(t, tcp.CloseWrite())
		answer, _ := io.ReadAll(c)
		require.NotContains(t, string(answer), "HTTP")
		require.NoError(t, c.Close())
	}
	require.Empty(t, reached, "the daemon saw a connection")
}

func TestFront_NeverResumesASession(t *testing.T) {
	t.Parallel()
	m, s := startMachine(t, echo), newSet(t, "lse-1", 1)
	require.NoError(t, m.Install(s.Lease))
	cfg := s.client.Clone()
	cfg.SessionTicketsDisabled, cfg.ClientSessionCache = false, tls.NewLRUClientSessionCache(16)
	for range 20 {
		require.False(t, mustDial(t, m.address, cfg).ConnectionState().DidResume)
	}
}

func TestFront_EndCutsLiveConnectionsAndRefusesTheCertificate(t *testing.T) {
	t.Parallel()
	m, ended, other := startMachine(t, echo), newSet(t, "lse-1", 1), newSet(t, "lse-2", 1)
	require.NoError(t, m.Install(ended.Lease))
	require.NoError(t, m.Install(other.Lease))
	const n = 20
	conns, cut := make([]*tls.Conn, n), make(chan time.Time, n)
	for i := range conns {
		conns[i] = mustDial(t, m.address, ended.client)
		go func() {
			_, _ = conns[i].Read(make([]byte, 1))
			cut <- time.Now()
		}()
	}
	bystander := mustDial(t, m.address, other.client)
	require.Equal(t, []front.Live{{ID: "lse-1", Connections: n}, {ID: "lse-2", Connections: 1}}, m.Live())

	begin := time.Now()
	m.End("lse-1", "test")
	var worst time.Duration
	for range n {
		worst = max(worst, (<-cut).Sub(begin))
	}
	t.Logf("%d connections were cut within %s", n, worst)
	require.Less(t, worst, time.Second)
	for range 50 {
		requireRefused(t, m.address, ended.client)
	}
	require.NoError(t, ping(bystander), "another lease's connection goes on")
	require.Eventually(t, func() bool { return len(m.Live()) == 1 }, 5*time.Second, time.Millisecond)
}

func TestFront_EndDropsWhatIsNotDelivered(t *testing.T) {
	t.Parallel()
	wrote := make(chan struct{})
	m, s := startMachine(t, func(c *net.UnixConn) {
		data := make([]byte, 1<<20)
		for range 256 { // far more than all buffers on the way
			_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := c.Write(data); err != nil {
				break
			}
		}
		close(wrote)
		_, _ = c.Read(data)
	}), newSet(t, "lse-1", 1)
	require.NoError(t, m.Install(s.Lease))
	c, err := dial(t, m.address, s.client)
	require.NoError(t, err)
	<-wrote // the client has read nothing: everything is full
	m.End(s.ID, "test")
	_, err = io.Copy(io.Discard, c)
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestFront_DeadlineCutsByItself(t *testing.T) {
	t.Parallel()
	m, s := startMachine(t, echo), newSet(t, "lse-1", 1)
	s.Deadline = time.Now().Add(300 * time.Millisecond)
	require.NoError(t, m.Install(s.Lease))
	c := mustDial(t, m.address, s.client)
	_, err := c.Read(make([]byte, 1))
	require.Error(t, err)
	require.WithinDuration(t, s.Deadline, time.Now(), 500*time.Millisecond)
	requireRefused(t, m.address, s.client)
	require.ErrorContains(t, m.Install(s.Lease), "the lease has ended")
	require.Contains(t, m.log.String(), "deadline passed")
}

func TestFront_AsksTheClockOnEveryHandshake(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var skew time.Duration
	m := startMachine(t, echo, func(c *front.Config) {
		c.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(skew)
		}
	})
	s := newSet(t, "lse-1", 1)
	require.NoError(t, m.Install(s.Lease))
	mustDial(t, m.address, s.client)
	mu.Lock()
	skew = time.Hour // the clock was set; the timer has not noticed
	mu.Unlock()
	requireRefused(t, m.address, s.client)
}

func TestFront_NewerGenerationVoidsTheOlder(t *testing.T) {
	t.Parallel()
	m, first, second := startMachine(t, echo), newSet(t, "lse-1", 1), newSet(t, "lse-1", 2)
	require.NoError(t, m.Install(first.Lease))
	old := mustDial(t, m.address, first.client)
	require.NoError(t, m.Install(first.Lease), "the same again")
	require.NoError(t, ping(old), "changed nothing")

	require.NoError(t, m.Install(second.Lease))
	require.Error(t, ping(old))
	requireRefused(t, m.address, first.client)
	mustDial(t, m.address, second.client)
	require.ErrorContains(t, m.Install(first.Lease), "older")
	g, ok := m.Generation("lse-1")
	require.True(t, ok)
	require.Equal(t, 2, g)
}

func TestFront_HandshakesRacingWithTheEndNeverSurviveIt(t *testing.T) {
	t.Parallel()
	m := startMachine(t, echo)
	for round := range 20 {
		s := newSet(t, fmt.Sprintf("lse-%d", round), 1)
		require.NoError(t, m.Install(s.Lease))
		var all sync.WaitGroup
		start := make(chan struct{})
		conns := make([]*tls.Conn, 8)
		for i := range conns {
			all.Go(func() {
				<-start
				if c, err := dial(t, m.address, s.client); err == nil {
					conns[i] = c
				}
			})
		}
		close(start)
		m.End(s.ID, "test")
		all.Wait()
		for _, c := range conns {
			if c != nil {
				require.Error(t, ping(c))
			}
		}
	}
}

func TestFront_DeliversEveryByteAndEveryHalfClose(t *testing.T) {
	t.Parallel()
	const size = 5<<20 + 12345
	sum := make(chan [32]byte, 1)
	m, s := startMachine(t, func(c *net.UnixConn) { // reads to the end, only then answers
		h := sha256.New()
		_, _ = io.Copy(h, c)
		sum <- [32]byte(h.Sum(nil))
		data := make([]byte, size)
		_, _ = rand.Read(data)
		_, _ = c.Write(data)
		sum <- sha256.Sum256(data)
	}), newSet(t, "lse-1", 1)
	require.NoError(t, m.Install(s.Lease))
	c, err := dial(t, m.address, s.client)
	require.NoError(t, err)
	sent := make([]byte, size)
	_, _ = rand.Read(sent)
	for rest := sent; len(rest) > 0; { // in odd pieces
		n := min(len(rest), 1+int(rest[0])*97)
		_, err := c.Write(rest[:n])
		require.NoError(t, err)
		rest = rest[n:]
	}
	require.NoError(t, c.CloseWrite())
	require.Equal(t, sha256.Sum256(sent), <-sum)
	received, err := io.ReadAll(c)
	require.NoError(t, err, "the end is a TLS end, not a torn connection")
	require.Len(t, received, size)
	require.Equal(t, <-sum, sha256.Sum256(received))
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool { return m.Live()[0].Connections == 0 }, 5*time.Second, time.Millisecond)
}

func TestFront_SmallMessagesAreNotHeldBack(t *testing.T) {
	t.Parallel()
	m, s := startMachine(t, echo), newSet(t, "lse-1", 1)
	require.NoError(t, m.Install(s.Lease))
	c := mustDial(t, m.address, s.client)
	for size := 1; size <= 300<<10; size = size*3 + 1 { // across the sizes of records and blocks
		data := make([]byte, size)
		_, _ = rand.Read(data)
		go func() { _, _ = c.Write(data) }()
		got := make([]byte, size)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := io.ReadFull(c, got)
		require.NoError(t, err, "size %d", size)
		require.Equal(t, data, got)
	}
}

func TestFront_DaemonThatDiesEndsTheConnection(t *testing.T) {
	t.Parallel()
	die := make(chan struct{})
	m, s := startMachine(t, func(c *net.UnixConn) {
		_, _ = io.CopyN(c, c, 4)
		<-die
	}), newSet(t, "lse-1", 1)
	require.NoError(t, m.Install(s.Lease))
	c := mustDial(t, m.address, s.client)
	close(die)
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

func TestFront_WithoutADaemonItClosesTheConnectionOnly(t *testing.T) {
	t.Parallel()
	m := startMachine(t, echo, func(c *front.Config) { c.Dial = refuseDial })
	s := newSet(t, "lse-1", 1)
	require.NoError(t, m.Install(s.Lease))
	requireRefused(t, m.address, s.client)
	require.Contains(t, m.log.String(), "cannot reach the daemon")
	require.Equal(t, []front.Live{{ID: "lse-1"}}, m.Live(), "the lease goes on")
}

func TestFront_BoundsHandshakesAndTheirTime(t *testing.T) {
	t.Parallel()
	m := startMachine(t, echo, func(c *front.Config) { c.MaxHandshakes, c.HandshakeTimeout = 2, 500*time.Millisecond })
	s := newSet(t, "lse-1", 1)
	require.NoError(t, m.Install(s.Lease))
	idle := make([]net.Conn, 2)
	for i := range idle {
		var err error
		idle[i], err = (&net.Dialer{}).DialContext(t.Context(), "tcp", m.address)
		require.NoError(t, err)
		defer idle[i].Close()
	}
	requireRefused(t, m.address, s.client)
	for _, c := range idle {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := c.Read(make([]byte, 1))
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the front let an idle connection be")
	}
	mustDial(t, m.address, s.client)
}

func TestFront_BoundsConnectionsOfALease(t *testing.T) {
	t.Parallel()
	m := startMachine(t, echo, func(c *front.Config) { c.MaxConnections = 2 })
	s, other := newSet(t, "lse-1", 1), newSet(t, "lse-2", 1)
	require.NoError(t, m.Install(s.Lease))
	require.NoError(t, m.Install(other.Lease))
	first := mustDial(t, m.address, s.client)
	mustDial(t, m.address, s.client)
	requireRefused(t, m.address, s.client)
	mustDial(t, m.address, other.client)
	require.NoError(t, first.Close())
	require.Eventually(t, func() bool { return m.Live()[0].Connections == 1 }, 5*time.Second, time.Millisecond)
	mustDial(t, m.address, s.client)
	require.Positive(t, m.changes.Load())
}

func TestNew_NamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := front.New(front.Config{})
	require.ErrorContains(t, err, "Dial is missing")
	f, err := front.New(front.Config{Dial: refuseDial})
	require.NoError(t, err)
	require.ErrorContains(t, f.Install(front.Lease{ID: "lse-1"}), "TLS configuration is missing")
}
