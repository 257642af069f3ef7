package machineagent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

func TestAgent_ServesALeaseFromTheHintToTheClient(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	h.startReady(t, c)
	l := c.serve(t)
	require.NoError(t, info(t.Context(), c.address(t), c.client(t, l)))

	c.mu.Lock()
	defer c.mu.Unlock()
	require.Equal(t, 1, c.registrations)
	var states []bus.DaemonState
	for _, q := range c.asked {
		if n := len(states); n == 0 || states[n-1] != q.Daemon.State {
			states = append(states, q.Daemon.State)
		}
		require.NotEmpty(t, q.Addresses, "it listens before it speaks")
		if q.Daemon.State != bus.DaemonReady {
			require.Empty(t, q.Serving)
		}
	}
	require.Equal(t, []bus.DaemonState{bus.DaemonStopped, bus.DaemonStarting, bus.DaemonReady}, states)
	require.Equal(t, "v0.33.1", c.lastDaemon().Version)
}

func TestAgent_ServesALeaseWithoutAHint(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	l := c.lease(t, time.Hour) // before the machine is there
	newHost(t, c).start(t, c)
	c.waitServing(t, l, 1)
	require.NoError(t, info(t.Context(), c.address(t), c.client(t, l)))
}

func TestAgent_EndOfALeaseCutsItAndNoOther(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	newHost(t, c).startReady(t, c)
	ended, other := c.serve(t), c.serve(t)
	client := dialBuildKit(t, c.address(t), c.client(t, ended))
	_, err := client.Info(t.Context())
	require.NoError(t, err)
	bystander := dialBuildKit(t, c.address(t), c.client(t, other))
	_, err = bystander.Info(t.Context())
	require.NoError(t, err)

	begin := time.Now()
	c.end(t, ended)
	_, err = client.Info(t.Context())
	for err == nil {
		require.Less(t, time.Since(begin), time.Second, "a live connection goes on")
		_, err = client.Info(t.Context())
	}
	t.Logf("cut %s after the record changed", time.Since(begin))
	require.Error(t, info(t.Context(), c.address(t), c.client(t, ended)))
	_, err = bystander.Info(t.Context())
	require.NoError(t, err)
}

func TestAgent_ReportsDiskCacheAndConnections(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	newHost(t, c).startReady(t, c, func(cfg *Config) { cfg.ReportEvery = 50 * time.Millisecond })
	l := c.serve(t)
	live := func(connections int) func() bool {
		return func() bool {
			if len(c.reports) == 0 {
				return false
			}
			r := c.reports[len(c.reports)-1]
			return len(r.Live) == 1 && r.Live[0].Lease == l.Lease && r.Live[0].Connections == connections
		}
	}
	c.wait(t, "a report of the lease", live(0))
	client := dialBuildKit(t, c.address(t), c.client(t, l))
	_, err := client.Info(t.Context())
	require.NoError(t, err)
	c.wait(t, "a report of the connection", live(1))
	c.mu.Lock()
	r := c.reports[len(c.reports)-1]
	c.mu.Unlock()
	require.Positive(t, r.DiskFreeBytes)
	require.GreaterOrEqual(t, r.DiskTotalBytes, r.DiskFreeBytes)
	require.NoError(t, client.Close())
	c.wait(t, "a report that it ended", live(0))
}

func TestUsage_SumsWhatTheDaemonKeeps(t *testing.T) {
	t.Parallel()
	d, err := (&fakeLauncher{dir: t.TempDir()}).Launch(t.Context())
	require.NoError(t, err)
	u := &usage{dir: t.TempDir(), dial: d.Dial}
	require.NoError(t, u.measure(t.Context()))
	require.EqualValues(t, 1234, u.cache.Load())
	require.NoError(t, d.Stop(t.Context()))
	require.Error(t, u.measure(t.Context()))
	require.EqualValues(t, 1234, u.cache.Load(), "the last that was measured")
}

func TestAgent_RestartKeepsTheIdentityAndVoidsTheCertificates(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	first := h.startReady(t, c)
	l := c.serve(t)
	old, address := c.client(t, l), c.address(t)
	require.NoError(t, info(t.Context(), address, old))
	first.stop(t)
	require.Error(t, info(t.Context(), address, old))

	h.startReady(t, c)
	c.waitServing(t, l, 2)
	require.NoError(t, info(t.Context(), c.address(t), c.client(t, l)))
	require.Error(t, info(t.Context(), c.address(t), old), "the set of the first generation")
	c.mu.Lock()
	defer c.mu.Unlock()
	require.Equal(t, 1, c.registrations, "the credential was still good")
}

func TestAgent_LostKeyBetweenRequestAndAnswerLeadsToTheNextGeneration(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	first := h.startReady(t, c)
	committed, release := make(chan struct{}), make(chan struct{})
	c.change(func() {
		c.answering = func(q bus.Instruct) {
			if len(q.CSRs) > 0 {
				close(committed)
				<-release
			}
		}
	})
	l := c.lease(t, time.Hour)
	c.hint(t, l.Lease)
	<-committed // the set is in the record, the answer is not sent, and the machine dies
	first.cancel()
	first.wait(t)
	c.change(func() { c.answering = nil })
	close(release)

	h.startReady(t, c)
	c.waitServing(t, l, 2)
	require.NoError(t, info(t.Context(), c.address(t), c.client(t, l)))
}

func TestAgent_RegistersAgainWithTheBoundKeyWhenItsCredentialIsGone(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	h.startReady(t, c).stop(t)
	file := filepath.Join(h.data.StateDir, credentialFile)
	for name, spoil := range map[string]func() error{
		"lost":    func() error { return os.Remove(file) },
		"garbage": func() error { return os.WriteFile(file, []byte("{"), 0o600) },
		"expired": func() error {
			return os.WriteFile(file, []byte(`{"jwt":"x","expires_at":"2020-01-01T00:00:00Z"}`), 0o600)
		},
		"refused": func() error {
			return os.WriteFile(file, []byte(`{"jwt":"eyJ0eXAiOiJKV1QifQ.e30.AA","expires_at":"2120-01-01T00:00:00Z"}`), 0o600)
		},
	} {
		before := c.registered()
		require.NoError(t, spoil())
		h.startReady(t, c).stop(t)
		require.Equal(t, before+1, c.registered(), name)
	}
}

func TestAgent_ThatIsNotTheBoundOneIsRefusedAndGivesUp(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	newHost(t, c).startReady(t, c).stop(t)
	impostor := newHost(t, c) // knows the nonce, and has another key
	r := impostor.start(t, c, func(cfg *Config) { cfg.RefusedFor = time.Millisecond })
	r.wait(t)
	require.ErrorContains(t, r.err, "bound to another key")
	require.Nil(t, impostor.launcher.last(), "it started a daemon on the cache")
}

func TestAgent_WithAnUnknownNonceGivesUp(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	h.data.Nonce = bus.LaunchNonce(bus.NewToken(), c.machine, 1).Reveal()
	r := h.start(t, c, func(cfg *Config) { cfg.RefusedFor = time.Millisecond })
	r.wait(t)
	require.ErrorIs(t, r.err, bus.ErrBadToken)
}

func TestAgent_RenewsItsCredentialWithoutMissingAnything(t *testing.T) {
	t.Parallel()
	c := newControl(t, func(c *control) { c.life = 8 * time.Second })
	h := newHost(t, c)
	h.startReady(t, c)
	l := c.serve(t)
	client := dialBuildKit(t, c.address(t), c.client(t, l))
	c.wait(t, "two renewals", func() bool { return c.renewals >= 2 })
	_, err := client.Info(t.Context())
	require.NoError(t, err, "the lease's connection lives through it")
	second := c.serve(t)
	require.NoError(t, info(t.Context(), c.address(t), c.client(t, second)))
	require.Equal(t, 1, c.registered())
	require.NotContains(t, h.log.String(), "level=ERROR")
}

func TestAgent_IgnoresAnInstructionOlderThanOneItHasSeen(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	h.startReady(t, c)
	l := c.serve(t)
	client := dialBuildKit(t, c.address(t), c.client(t, l))
	var seen int
	c.change(func() { c.stale, seen = true, len(c.asked) })
	c.hint(t, "")
	c.wait(t, "a stale answer", func() bool { return len(c.asked) > seen })
	c.hint(t, "")
	c.wait(t, "the question after it", func() bool { return len(c.asked) > seen+1 })
	_, err := client.Info(t.Context())
	require.NoError(t, err)
	require.Contains(t, h.log.String(), "ignored an instruction from an old record")
}

func TestAgent_LeasesGoOnWithoutTheControlPlaneUntilTheirDeadline(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	h.startReady(t, c)
	long := c.serve(t)
	short := c.lease(t, 3*time.Second)
	c.hint(t, short.Lease)
	c.waitServing(t, short, 1)
	address, cfg := c.address(t), c.client(t, long)
	client := dialBuildKit(t, address, cfg)
	doomed := dialBuildKit(t, address, c.client(t, short))
	_, err := doomed.Info(t.Context())
	require.NoError(t, err)

	c.change(func() { c.silent = true })
	require.NoError(t, c.Embedded.Close())
	require.Eventually(t, func() bool { _, err := doomed.Info(t.Context()); return err != nil }, 10*time.Second, 10*time.Millisecond)
	require.WithinDuration(t, short.Deadline, time.Now(), 2*time.Second)
	_, err = client.Info(t.Context())
	require.NoError(t, err)
	require.NoError(t, info(t.Context(), address, cfg), "new connections too")
}

func TestAgent_StopsWhenToldTo(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	r := h.startReady(t, c)
	l := c.serve(t)
	address, cfg := c.address(t), c.client(t, l)
	client := dialBuildKit(t, address, cfg)
	_, err := client.Info(t.Context())
	require.NoError(t, err)
	c.want(t, bus.DesireStop)
	r.wait(t)
	require.NoError(t, r.err)
	require.Equal(t, []bus.MachineGoodbye{{Clean: true, Reason: "stopped as told"}}, c.heard())
	<-h.launcher.last().Done()
	_, err = client.Info(t.Context())
	require.Error(t, err)
	require.Error(t, info(t.Context(), address, cfg))
}

func TestAgent_StopsOnASignal(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	h.startReady(t, c).stop(t)
	require.Equal(t, []bus.MachineGoodbye{{Clean: true, Reason: "machine-agent was stopped"}}, c.heard())
	<-h.launcher.last().Done()
}

func TestAgent_ToldToStopBeforeItServesNeverTouchesTheCache(t *testing.T) {
	t.Parallel()
	c := newControl(t, func(c *control) { c.desire = bus.DesireStop })
	h := newHost(t, c)
	r := h.start(t, c)
	r.wait(t)
	require.NoError(t, r.err)
	require.Nil(t, h.launcher.last())
	require.Len(t, c.heard(), 1)
}

func TestAgent_DrainingKeepsLeases(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	newHost(t, c).startReady(t, c)
	l := c.serve(t)
	c.want(t, bus.DesireDrain)
	asked := 0
	c.change(func() { asked = len(c.asked) })
	c.hint(t, "")
	c.wait(t, "a question while draining", func() bool { return len(c.asked) > asked })
	require.NoError(t, info(t.Context(), c.address(t), c.client(t, l)))
}

func TestAgent_RestartsADaemonThatDiesAndSaysWhy(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	h.launcher.fail = errors.New("no such file")
	h.startReady(t, c)
	l := c.serve(t)
	h.launcher.last().end(errors.New("buildkitd ended: signal: killed: out of memory"))
	c.wait(t, "the daemon failed", func() bool { return c.lastDaemon().State == bus.DaemonFailed })
	c.wait(t, "the daemon is ready again", func() bool { return c.lastDaemon().State == bus.DaemonReady })
	require.NoError(t, info(t.Context(), c.address(t), c.client(t, l)), "the lease goes on")
	c.mu.Lock()
	defer c.mu.Unlock()
	var reasons []string
	for _, q := range c.asked {
		if q.Daemon.State == bus.DaemonFailed {
			reasons = append(reasons, q.Daemon.Reason)
		}
	}
	require.Contains(t, reasons, "no such file")
	require.Contains(t, reasons, "buildkitd ended: signal: killed: out of memory")
}

func TestAgent_HintsAreNotBelieved(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	r := h.startReady(t, c)
	forged := bus.NewLeaseID()
	for range 3 * maxExpected {
		c.hint(t, bus.NewLeaseID())
	}
	c.hint(t, forged)
	l := c.serve(t) // after all of them
	require.Len(t, r.front.Live(), 1)
	require.NotContains(t, r.front.Live(), string(forged))
	c.hint(t, "")
	c.wait(t, "what no answer named is forgotten", func() bool { return len(c.asked[len(c.asked)-1].CSRs) == 0 })
	require.NoError(t, info(t.Context(), c.address(t), c.client(t, l)))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range c.asked {
		require.LessOrEqual(t, len(q.CSRs), maxExpected+1)
	}
}

func TestAgent_TwoOnOneStateDirectoryAreRefused(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	h.startReady(t, c)
	r := h.start(t, c)
	r.wait(t)
	require.ErrorContains(t, r.err, "another machine-agent runs on "+h.data.StateDir)
}

func TestAgent_KeysStayWhereTheyBelong(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	h.startReady(t, c)
	c.serve(t)
	secrets := []string{"PRIVATE KEY", h.data.Nonce, c.nonce.Reveal()[len(c.nonce.Reveal())-43:]}
	for _, name := range []string{identityFile, userKeyFile} {
		path := filepath.Join(h.data.StateDir, name)
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		body := strings.Split(strings.TrimSpace(string(text)), "\n")
		secrets = append(secrets, body[min(1, len(body)-1)])
	}
	require.Len(t, secrets, 5)
	c.mu.Lock()
	sent := strings.Join(c.wire, "\n")
	c.mu.Unlock()
	require.Contains(t, sent, "CERTIFICATE REQUEST")
	for _, s := range secrets {
		require.NotContains(t, sent, s)
		require.NotContains(t, h.log.String(), s)
	}
	require.NoError(t, filepath.WalkDir(h.data.CacheDir, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		if d.Type().IsRegular() {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			for _, s := range secrets {
				require.NotContains(t, string(text), s, path)
			}
		}
		return nil
	}))
}

func TestNew_NamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := New(Config{})
	for _, want := range []string{"nonce is empty", "state_dir is empty", "buildkitd is empty"} {
		require.ErrorContains(t, err, want)
	}
	data := bus.UserData{
		Machine: bus.NewMachineID(), Attempt: 1, Architecture: bus.AMD64, Nonce: "n", BusURL: "nats://x", StateDir: "s", CacheDir: "/c",
		Listen: "127.0.0.1:0", Attestor: "tpm", Buildkitd: "/b", HostNetwork: true,
	}
	_, err = New(Config{UserData: data})
	require.ErrorContains(t, err, `"s" is not an absolute path`)
	data.StateDir = "/s"
	_, err = New(Config{UserData: data})
	require.ErrorContains(t, err, `no attestor "tpm" (there are nonce)`)
}
