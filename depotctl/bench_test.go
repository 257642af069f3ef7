package depotctl

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
)

// BenchmarkCachedBuild compares whole processes on one builder, in turns: depotctl, which acquires and secures its
// builder each time, and docker-buildx with a remote builder of one node that was set up by hand.
func BenchmarkCachedBuild(b *testing.B) {
	a := newAPI(b, newFront(b, sharedDaemon(b).socket))
	buildx, err := tool("docker-buildx")
	if err != nil {
		b.Skip("no docker-buildx: run `make tools`, then set DEPOT_TOOLS to the directory that it prints")
	}
	dir := b.TempDir()
	ours := filepath.Join(dir, "depotctl")
	out, err := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", ours, "./cmd/depotctl").CombinedOutput()
	require.NoError(b, err, string(out))
	env := append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME=", "XDG_STATE_HOME=", "DEPOT_SERVER="+a.bus.URL, "DEPOT_TOKEN="+a.token.Reveal())
	context := filepath.Join(dir, "context")
	require.NoError(b, os.MkdirAll(context, 0o755))
	require.NoError(b, os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(helloDockerfile), 0o644))
	require.NoError(b, os.WriteFile(filepath.Join(context, "hello"), []byte("world"), 0o644))
	run := func(program string, args ...string) time.Duration {
		cmd := exec.Command(program, args...)
		cmd.Env = env
		start := time.Now()
		out, err := cmd.CombinedOutput()
		took := time.Since(start)
		require.NoError(b, err, string(out))
		return took
	}
	run(buildx, append([]string{"create", "--name", "rem", "--driver", "remote", "tcp://" + a.front.address()}, a.handMade(b, dir)...)...)
	var theirs, depotctl []time.Duration
	for b.Loop() {
		theirs = append(theirs, run(buildx, "--builder", "rem", "build", "--progress=plain", context))
		depotctl = append(depotctl, run(ours, "build", "--progress=plain", context))
	}
	b.ReportMetric(median(theirs), "buildx-ms")
	b.ReportMetric(median(depotctl), "depotctl-ms")
	b.ReportMetric(median(depotctl)/median(theirs), "ratio")
	b.ReportMetric(0, "ns/op")
}

// handMade writes the certificates of a lease into files, which is the only form that buildx's remote driver reads.
func (a *api) handMade(b *testing.B, dir string) []string {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(b, err)
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(b, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(b, err)
	identity := certs.Lease{ID: string(bus.NewLeaseID()), Build: string(bus.NewBuildID()), Project: string(a.projects[0].Project), Organization: string(a.org.ID)}
	var view bus.LeaseView
	a.front.grant(b, &view, identity, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request})))
	a.front.mu.Lock()
	a.front.leases[identity.ID].VerifyConnection = nil // buildx offers no ALPN; for the time it takes this makes no difference
	a.front.mu.Unlock()
	opts := "servername=" + identity.ID
	for name, text := range map[string]string{
		"cacert": view.CA, "cert": view.Certificate, "key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
	} {
		path := filepath.Join(dir, name+".pem")
		require.NoError(b, os.WriteFile(path, []byte(text), 0o600))
		opts += "," + name + "=" + path
	}
	return []string{"--driver-opt", opts}
}

func median(all []time.Duration) float64 {
	slices.Sort(all)
	return float64(all[len(all)/2].Microseconds()) / 1000
}
