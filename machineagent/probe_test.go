package machineagent

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/machineagent/front"
)

func TestProbe_ComesBeforeReadyAndItsLeaseIsNobodysElse(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c)
	answer := make(chan struct{})
	h.launcher.hold = answer
	r := h.start(t, c)
	c.wait(t, "the daemon starts", func() bool { return c.lastDaemon().State == bus.DaemonStarting })
	require.Eventually(t, func() bool { return h.launcher.last() != nil && len(r.front.Live()) == 1 }, 10*time.Second, time.Millisecond)
	<-h.launcher.last().asked // the probe is connected, and waits

	probe := r.front.Live()[0].ID
	l := c.lease(t, time.Hour)
	c.hint(t, l.Lease)
	c.wait(t, "certificates", func() bool { return l.Generation == 1 })
	liar := c.client(t, l) // a client with a certificate of its own lease, posing as the probe
	liar.ServerName, liar.InsecureSkipVerify, liar.VerifyConnection = probe, true, nil
	liar.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &liar.Certificates[0], nil }
	require.Error(t, info(t.Context(), c.address(t), liar))
	require.Equal(t, bus.DaemonStarting, c.daemon().State, "ready before the probe was answered")
	c.change(func() { require.Zero(t, l.serving, "a lease serves before the daemon is ready") })

	close(answer)
	c.waitServing(t, l, 1)
	require.Equal(t, []front.Live{{ID: string(l.Lease)}}, r.front.Live(), "the probe's lease is gone")
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range c.asked {
		for _, ref := range q.Serving {
			require.NotEqual(t, probe, string(ref.Lease))
		}
	}
}

func TestProbe_RefusesABuildKitWithKnownHoles(t *testing.T) {
	t.Parallel()
	for version, ok := range map[string]bool{
		"v0.28.0": false, "v0.12.4": false, "v0.28.1": true, "v0.28.2-rc1": true, "v0.33.1": true, "v1.0.0": true, "v0.0.0+unknown": true, "": true,
	} {
		if err := checkVersion(version); ok {
			require.NoError(t, err, version)
		} else {
			require.ErrorContains(t, err, "too old", version)
		}
	}
}

func TestPlatforms_AreTheProcessorsOwnUnlessTheMachineIsOfAnother(t *testing.T) {
	t.Parallel()
	own := map[bool]int{}
	for _, arch := range []bus.Arch{bus.AMD64, bus.ARM64} {
		own[foreignPlatforms(arch) == nil]++
	}
	require.Equal(t, map[bool]int{true: 1, false: 1}, own)
}
