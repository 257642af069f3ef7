package apiserver

import (
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// TestCanary_NoSecretIsOnTheBus taps every message of CONTROL, which includes every write to every record and stream,
// while a build goes through its life, and looks for what must not be there.
func TestCanary_NoSecretIsOnTheBus(t *testing.T) {
	t.Parallel()
	w := newWorld(t, quick)
	var mu sync.Mutex
	var heard strings.Builder
	var writes int
	require.NoError(t, w.bus.Control.Tap(t.Context(), func(h bus.Heard) {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(h.Subject, "$KV.machines.") {
			writes++
		}
		heard.WriteString(h.Subject + " ")
		heard.Write(h.Data)
		heard.WriteByte('\n')
	}))
	x := w.tenant(t, "acme")
	cloud := w.cloud(t, x)
	c := w.client(t, x.user)
	ci := c.token(t, bus.RoleCI, x.Project)
	v := c.untilState(t, c.create(t).Build, bus.BuildReady)
	m := cloud.machine(v.Leases[0].Machine)
	m.loseKeys()
	m.wake("")
	c.until(t, v.Build, func(n bus.BuildView) bool { return n.State == bus.BuildReady && n.Leases[0].CA != v.Leases[0].CA })
	c.finish(t, v.Build)
	_, err := bus.RevokeToken.Call(patiently(t), c.conn, bus.TokenRef{Token: ci.ID})
	require.NoError(t, err)
	seed, err := m.user.Seed()
	require.NoError(t, err)

	mu.Lock()
	defer mu.Unlock()
	all := heard.String()
	require.NotZero(t, writes, "the tap hears the records")
	require.Contains(t, all, "BEGIN CERTIFICATE", "and what is in them")
	require.NotRegexp(t, `PRIVATE KEY`, all)
	for name, secret := range map[string]string{
		"user's token": x.user.Reveal(), "agent's token": x.agent.Reveal(), "CI token": ci.Reveal(),
		"launch nonce": m.nonce.Reveal(), "machine's seed": seed.Reveal(),
	} {
		for _, part := range strings.FieldsFunc(secret, func(r rune) bool { return r == '_' || r == '.' }) {
			if len(part) > 30 {
				require.NotContains(t, all, part, name)
			}
		}
	}
}
