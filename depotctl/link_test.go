package depotctl

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
)

// leaseOn makes the client's half of a lease on f.
func leaseOn(t *testing.T, f *front) (bus.LeaseView, *certs.Key) {
	t.Helper()
	key, err := certs.NewKey()
	require.NoError(t, err)
	csr, err := key.CSR()
	require.NoError(t, err)
	view := bus.LeaseView{Lease: bus.NewLeaseID(), Architecture: bus.AMD64, Machine: bus.NewMachineID(), Stage: bus.StageServing}
	f.grant(t, &view, certs.Lease{ID: string(view.Lease), Build: string(bus.NewBuildID()), Project: string(bus.NewProjectID()), Organization: string(bus.NewOrganizationID())}, csr)
	return view, key
}

// silent listens and never says anything.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l.Addr().String()
}

func TestConnect_TakesTheNextAddressWhenOneIsDeadOrSilent(t *testing.T) {
	t.Parallel()
	f := newFront(t, sharedDaemon(t).socket)
	for name, first := range map[string]string{"refused": closedPort(t), "silent": silent(t), "unknown name": "no-such-host.invalid:1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lease, key := leaseOn(t, f)
			lease.Addresses = []string{first, f.address()}
			begun := time.Now()
			l, err := connect(t.Context(), lease, key)
			require.NoError(t, err)
			defer l.close()
			require.Equal(t, f.address(), l.address)
			require.Less(t, time.Since(begun), attemptTimeout, "a silent address has a head start, not a monopoly")
			_, err = l.client.Info(t.Context())
			require.NoError(t, err)
		})
	}
}

func TestConnect_PrefersTheFirstAddress(t *testing.T) {
	t.Parallel()
	f := newFront(t, sharedDaemon(t).socket)
	lease, key := leaseOn(t, f)
	lease.Addresses = []string{f.address(), silent(t)}
	l, err := connect(t.Context(), lease, key)
	require.NoError(t, err)
	defer l.close()
	require.Equal(t, f.address(), l.address)
}

func TestConnect_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := newFront(t, "/nowhere")
	lease, key := leaseOn(t, f)
	lease.Addresses = []string{silent(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, err := connect(ctx, lease, key)
	require.Error(t, err)
	require.Less(t, time.Since(begun), 2*time.Second)
}

func TestConnect_NamesEveryAddressThatItTried(t *testing.T) {
	t.Parallel()
	f := newFront(t, "/nowhere")
	lease, key := leaseOn(t, f)
	lease.Addresses = []string{closedPort(t), closedPort(t)}
	_, err := connect(t.Context(), lease, key)
	e := &Error{}
	require.ErrorAs(t, err, &e)
	require.Equal(t, ExitUnreachable, e.Code)
	for _, address := range lease.Addresses {
		require.Contains(t, e.Message, address+": connect: connection refused")
	}
	require.NotContains(t, e.Message, "\n")
}

func TestConnect_SaysThatBuildKitIsSilentBehindTheFront(t *testing.T) {
	t.Parallel()
	f := newFront(t, "/nowhere") // the front has a lease, but no daemon
	lease, key := leaseOn(t, f)
	_, err := connect(t.Context(), lease, key)
	require.ErrorContains(t, err, "accepts the connection but does not answer")
}

func TestConnect_RefusesAnIncompleteLeaseWithoutDialling(t *testing.T) {
	t.Parallel()
	f := newFront(t, "/nowhere")
	lease, key := leaseOn(t, f)
	lease.CA = ""
	_, err := connect(t.Context(), lease, key)
	require.ErrorContains(t, err, "the certificates are incomplete: no CA")
}
