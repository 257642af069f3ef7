package bus_test

import (
	"fmt"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

// A wrong account token position is silent until an import fails. Here the exports that come out of the table are
// written down once by hand, as an independent check.
func TestExportsDemandTheImportersOwnKey(t *testing.T) {
	t.Parallel()
	var got []string
	for _, e := range bus.Exports() {
		got = append(got, fmt.Sprintf("%s %s at %d %s", e.Type, e.Subject, e.AccountTokenPosition, e.ResponseType))
	}
	require.ElementsMatch(t, []string{
		"service org.*.api.> at 2 Singleton",
		"stream org.*.ev.> at 2 ",
		"service conn.*.api.> at 2 Singleton",
		"stream conn.*.ctl.> at 2 ",
		"service $JS.API.CONSUMER.MSG.NEXT.ACTIONS.* at 7 Stream",
		"service $JS.API.CONSUMER.INFO.ACTIONS.* at 6 Singleton",
		"service $JS.ACK.ACTIONS.*.> at 4 Singleton",
		"service $JS.ACK.*.*.ACTIONS.*.> at 6 Singleton",
		"service refused.*.api.> at 2 Singleton",
	}, got)
}

func TestTenantsHaveNoMoreThanTheirImports(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	o, c := s.Default(t)
	for account, imports := range map[string]int{o.Account: 2, c.Account: 6, s.Trust.AccountKeys()["REFUSED"]: 1} {
		claims, err := s.Control.Claims(t.Context(), account)
		require.NoError(t, err)
		require.Len(t, claims.Imports, imports)
		require.Empty(t, claims.Exports)
		require.Zero(t, claims.Limits.LeafNodeConn, "the server's check of reserved replies is for clients only")
		require.True(t, claims.Limits.DisallowBearer)
		require.Zero(t, claims.Limits.DiskStorage+claims.Limits.MemoryStorage, "no JetStream of its own")
		require.Len(t, claims.SigningKeys, 1)
		for _, i := range claims.Imports {
			require.Contains(t, string(i.Subject), account)
			require.NotContains(t, string(i.LocalSubject), "$JS.API", "under that name two would answer")
			require.Equal(t, i.LocalSubject == "api.>", i.Share, "who asks is written into each request")
			require.True(t, i.Type == jwt.Service || i.Type == jwt.Stream)
		}
	}
}

func TestServersWithKnownHolesAreRefused(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{
		"2.14.0": "", "2.14.9": "", "2.15.2": "", "3.0.0": "", "v2.15.0-RC.1": "",
		"2.13.9": "upgrade it to 2.14.0", "2.12.7": "upgrade it to 2.14.0", "1.99.99": "upgrade it to 2.14.0", "": "cannot be compared", "2.x": "cannot be compared",
	} {
		err := bus.CheckServerVersion(version)
		if want == "" {
			require.NoError(t, err, version)
			continue
		}
		require.ErrorContains(t, err, want, version)
	}
}
