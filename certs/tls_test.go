package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTLS_OnlyTheDiagonalOfLeasesAndMachinesConnects(t *testing.T) {
	t.Parallel()
	const n = 8
	pairs := make([]*pair, n)
	for i := range pairs {
		pairs[i] = newPair(t, testLease(i), time.Now().Add(time.Hour))
	}
	for i, server := range pairs {
		for j, client := range pairs {
			t.Run(fmt.Sprintf("machine %d client %d", i, j), func(t *testing.T) {
				t.Parallel()
				if i == j {
					requireConnects(t, server.server(t), client.client(t))
					return
				}
				// The client of lease j, as it is: it does not accept the machine.
				requireRefuses(t, server.server(t), client.client(t), "x509")
				// A liar, who knows lease i's public root and name but holds the key of lease j: the machine refuses.
				liar := client.client(t)
				liar.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &liar.Certificates[0], nil }
				liar.ServerName, liar.RootCAs, liar.VerifyConnection = server.lease.ID, server.client(t).RootCAs, nil
				requireRefuses(t, server.server(t), liar, "tls: failed to verify certificate")
			})
		}
	}
}

func TestTLS_RefusesWhatIsNotAFullModernHandshake(t *testing.T) {
	t.Parallel()
	p := newPair(t, testLease(1), time.Now().Add(time.Hour))
	for name, c := range map[string]struct {
		spoil func(*tls.Config)
		why   string
	}{
		"TLS 1.2":               {func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, "unsupported version"},
		"no client certificate": {func(c *tls.Config) { c.Certificates = nil }, "didn't provide a certificate"},
		"other ALPN":            {func(c *tls.Config) { c.NextProtos = []string{"smtp"} }, "no application protocol"},
		"other SNI": {func(c *tls.Config) {
			c.ServerName, c.InsecureSkipVerify, c.VerifyConnection = "lse-2", true, nil
		}, `it asked for "lse-2"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := p.client(t)
			c.spoil(client)
			requireRefuses(t, p.server(t), client, c.why)
		})
	}
}

// docker-buildx's remote driver offers no protocol, and stock BuildKit lets it in.
func TestTLS_AClientMayLeaveTheProtocolOpenAMachineMayNot(t *testing.T) {
	t.Parallel()
	p := newPair(t, testLease(1), time.Now().Add(time.Hour))
	client, server := p.client(t), p.server(t)
	client.NextProtos, client.VerifyConnection = nil, nil
	requireConnects(t, server, client)
	server.NextProtos = nil
	requireRefuses(t, server, p.client(t), `it speaks "", want h2`)
}

func TestTLS_SessionsAreNeverResumed(t *testing.T) {
	t.Parallel()
	p := newPair(t, testLease(1), time.Now().Add(time.Hour))
	server, client := p.server(t), p.client(t)
	client.SessionTicketsDisabled, client.ClientSessionCache = false, tls.NewLRUClientSessionCache(8)
	client.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.DidResume {
			return errors.New("resumed")
		}
		return nil
	}
	for range 5 {
		requireConnects(t, server, client)
	}
}

func TestTLS_AnotherKeyUnderTheSameRootIsNotTheLeasesClient(t *testing.T) {
	t.Parallel()
	p := newPair(t, testLease(1), time.Now().Add(time.Hour))
	other, err := SPKI(csrOf(t, newKey(t)))
	require.NoError(t, err)
	server, err := ServerConfig(p.lease.ID, p.ca, p.serverLeaf, p.serverKey, other)
	require.NoError(t, err)
	requireRefuses(t, server, p.client(t), "its key is not the one")
}

func TestTLS_CertificatesEnd(t *testing.T) {
	t.Parallel()
	p := newPair(t, testLease(1), time.Now().Add(time.Hour))
	begin, end := p.authority.root.NotBefore, p.authority.NotAfter()
	for name, c := range map[string]struct {
		at  time.Time
		why string
	}{
		"before its begin": {begin.Add(-time.Second), "expired or is not yet valid"},
		"at its begin":     {begin, ""},
		"at its end":       {end, ""},
		"after its end":    {end.Add(time.Second), "expired or is not yet valid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := func() time.Time { return c.at }
			server, client := p.server(t), p.client(t)
			server.Time = at // the machine judges the client's leaf
			if c.why == "" {
				requireConnects(t, server, client)
			} else {
				requireRefuses(t, server, client, c.why)
			}
			server.Time, client.Time = nil, at // the client judges the machine's
			if c.why == "" {
				requireConnects(t, server, client)
			} else {
				requireRefuses(t, server, client, c.why)
			}
		})
	}
}

func TestClientConfig_NamesEverythingThatIsMissing(t *testing.T) {
	t.Parallel()
	p := newPair(t, testLease(1), time.Now().Add(time.Hour))
	for missing, configure := range map[string]func() (*tls.Config, error){
		"server name": func() (*tls.Config, error) { return ClientConfig("", p.ca, p.clientPEM, p.clientKey) },
		"CA":          func() (*tls.Config, error) { return ClientConfig("lse-1", "", p.clientPEM, p.clientKey) },
		"certificate": func() (*tls.Config, error) { return ClientConfig("lse-1", p.ca, "", p.clientKey) },
		"key":         func() (*tls.Config, error) { return ClientConfig("lse-1", p.ca, p.clientPEM, nil) },
		"pin of the client's key": func() (*tls.Config, error) {
			return ServerConfig("lse-1", p.ca, p.serverLeaf, p.serverKey, "")
		},
	} {
		cfg, err := configure()
		require.Nil(t, cfg)
		var incomplete *IncompleteError
		require.ErrorAs(t, err, &incomplete)
		require.Equal(t, []string{missing}, incomplete.Missing)
	}
	_, err := ClientConfig("", "", "", nil)
	require.ErrorContains(t, err, "no server name, no CA, no certificate, no key")
}

func TestConfig_RefusesASetThatDoesNotBelongTogether(t *testing.T) {
	t.Parallel()
	p, other := newPair(t, testLease(1), time.Now().Add(time.Hour)), newPair(t, testLease(2), time.Now().Add(time.Hour))
	again := newPair(t, testLease(1), time.Now().Add(time.Hour)) // the next generation of the same lease
	for name, c := range map[string]struct {
		name, ca, leaf string
		key            *Key
		why            string
	}{
		"another lease's name":   {"lse-2", p.ca, p.clientPEM, p.clientKey, "is of lease lse-1, want lse-2"},
		"another lease's CA":     {"lse-1", other.ca, p.clientPEM, p.clientKey, "not signed by the CA"},
		"another generation":     {"lse-1", again.ca, p.clientPEM, p.clientKey, "not signed by the CA"},
		"another key":            {"lse-1", p.ca, p.clientPEM, p.serverKey, "for another key"},
		"the machine's leaf":     {"lse-1", p.ca, p.serverLeaf, p.serverKey, "is of a machine, want client"},
		"the leaf as CA":         {"lse-1", p.clientPEM, p.clientPEM, p.clientKey, "not signed by the CA"},
		"the CA as leaf":         {"lse-1", p.ca, p.ca, p.clientKey, "certificate has 0 URIs"},
		"two CAs":                {"lse-1", p.ca + other.ca, p.clientPEM, p.clientKey, "more than one"},
		"garbage as CA":          {"lse-1", "garbage", p.clientPEM, p.clientKey, "read CA"},
		"garbage as certificate": {"lse-1", p.ca, "garbage", p.clientKey, "read certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, err := ClientConfig(c.name, c.ca, c.leaf, c.key)
			require.Nil(t, cfg)
			require.ErrorContains(t, err, c.why)
		})
	}
}

func BenchmarkHandshake(b *testing.B) {
	p := newPair(b, testLease(1), time.Now().Add(time.Hour))
	server, client := p.server(b), p.client(b)
	for b.Loop() {
		serverErr, clientErr := connect(b.Context(), server, client)
		require.NoError(b, errors.Join(serverErr, clientErr))
	}
}
