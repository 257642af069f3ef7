package machineagent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
	"github.com/depotctl/depot/machineagent/front"
)

// oldest is the first version of BuildKit without the known ways out of its sandbox.
var oldest = [3]int{0, 28, 1}

// probe proves the way that clients will take: a full handshake through the machine's own listener, under an authority
// that never leaves this process, then an RPC to the daemon. It waits as long as ctx for the daemon to answer.
func (a *Agent) probe(ctx context.Context, address string) (version string, err error) {
	lease, dialConfig, err := probeLease(time.Now())
	if err != nil {
		return "", fmt.Errorf("make certificates for the probe: %w", err)
	}
	if err := a.front.Install(lease); err != nil {
		return "", fmt.Errorf("probe the front: %w", err)
	}
	defer a.front.End(lease.ID, "probe")
	for {
		version, err = askVersion(ctx, address, dialConfig)
		if err == nil {
			return version, checkVersion(version)
		}
		wait(ctx, 5*time.Millisecond)
		if ctx.Err() != nil {
			return "", fmt.Errorf("probe the daemon: %w", err)
		}
	}
}

// probeLease makes both ends of a lease that nobody else knows. Its authority is gone when it returns.
func probeLease(now time.Time) (front.Lease, *tls.Config, error) {
	id, deadline := string(bus.NewLeaseID()), now.Add(2*probing)
	authority, err := certs.NewAuthority(certs.Lease{ID: id, Build: "probe", Project: "probe", Organization: "probe"}, now, deadline)
	if err != nil {
		return front.Lease{}, nil, err
	}
	defer authority.Forget()
	server, serverLeaf, _, err := endOf(authority.SignServer)
	if err != nil {
		return front.Lease{}, nil, err
	}
	client, clientLeaf, pin, err := endOf(authority.SignClient)
	if err != nil {
		return front.Lease{}, nil, err
	}
	serverConfig, err := certs.ServerConfig(id, authority.CA(), serverLeaf, server, pin)
	if err != nil {
		return front.Lease{}, nil, err
	}
	clientConfig, err := certs.ClientConfig(id, authority.CA(), clientLeaf, client)
	return front.Lease{ID: id, Generation: 1, TLS: serverConfig, Deadline: deadline}, clientConfig, err
}

func endOf(sign func(csr string) (string, error)) (key *certs.Key, leaf, pin string, err error) {
	if key, err = certs.NewKey(); err != nil {
		return nil, "", "", err
	}
	csr, err := key.CSR()
	if err != nil {
		return nil, "", "", err
	}
	if leaf, err = sign(csr); err != nil {
		return nil, "", "", err
	}
	pin, err = certs.SPKI(csr)
	return key, leaf, pin, err
}

// askVersion makes one connection and one call. A connection that is refused is not tried again by the client library.
func askVersion(ctx context.Context, address string, cfg *tls.Config) (string, error) {
	dial := &tls.Dialer{Config: cfg}
	conn, err := dial.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	used := false
	c, err := client.New(ctx, "tcp://"+address, client.WithContextDialer(func(context.Context, string) (net.Conn, error) {
		if used {
			return nil, errors.New("the connection of the probe was closed")
		}
		used = true
		return conn, nil
	}))
	if err != nil {
		return "", err
	}
	defer c.Close()
	info, err := c.Info(ctx)
	if err != nil {
		return "", err
	}
	return info.BuildkitVersion.Version, nil
}

// checkVersion refuses a daemon with known holes. One that was built without a version is its builder's business.
func checkVersion(version string) error {
	var v [3]int
	if n, _ := fmt.Sscanf(version, "v%d.%d.%d", &v[0], &v[1], &v[2]); n < len(v) || v == [3]int{} {
		return nil
	}
	for i := range v {
		if v[i] > oldest[i] {
			return nil
		}
		if v[i] < oldest[i] {
			return fmt.Errorf("BuildKit %s is too old: v%d.%d.%d is the first that is safe to run", version, oldest[0], oldest[1], oldest[2])
		}
	}
	return nil
}
