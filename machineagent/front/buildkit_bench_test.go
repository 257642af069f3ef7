package front_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"

	"github.com/depotctl/depot/machineagent/front"
)

const payload = 256 << 20

// BenchmarkBuildKit moves a build context in and a tar export out of one real buildkitd: through its own TLS listener,
// a naive splice, and the front. cpu-s/GB is that of client, hop and daemon together.
//
//	DEPOT_TOOLS=$PWD/bin go test -run '^$' -bench BuildKit -benchtime 5x ./machineagent/front
func BenchmarkBuildKit(b *testing.B) {
	s := newSet(b, "lse-1", 1)
	socket, own, pid := startBuildkitd(b, s)
	m := startMachine(b, echo, func(cfg *front.Config) {
		cfg.Log = nil
		cfg.Dial = func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) }
	})
	require.NoError(b, m.Install(s.Lease))
	plain := listen(b, func(c net.Conn) { naive(b.Context(), tls.Server(c, s.TLS), socket) })
	dir := b.TempDir()
	for _, way := range []struct{ name, address string }{{"own", own}, {"naive", plain}, {"front", m.address}} {
		c, err := client.New(b.Context(), "tcp://"+way.address, client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&tls.Dialer{Config: s.client}).DialContext(ctx, "tcp", way.address)
		}))
		require.NoError(b, err)
		b.Cleanup(func() { _ = c.Close() })
		b.Run("upload/"+way.name, func(b *testing.B) {
			transfer(b, pid, func() { fill(b, filepath.Join(dir, "data")) }, func() { solve(b, c, dir, nil) })
		})
		b.Run("export/"+way.name, func(b *testing.B) {
			transfer(b, pid, func() {}, func() { solve(b, c, dir, io.Discard) })
		})
	}
}

func transfer(b *testing.B, pid int, prepare, move func()) {
	b.Helper()
	b.SetBytes(payload)
	var used time.Duration
	n := 0
	for b.Loop() {
		b.StopTimer()
		prepare()
		before := cpu(b) + cpuOf(b, pid)
		b.StartTimer()
		move()
		used += cpu(b) + cpuOf(b, pid) - before
		n++
	}
	b.ReportMetric(used.Seconds()/float64(n)/payload*1e9, "cpu-s/GB")
}

func fill(b *testing.B, path string) {
	b.Helper()
	block := make([]byte, 1<<20)
	f, err := os.Create(path)
	require.NoError(b, err)
	for range payload / len(block) {
		_, _ = rand.Read(block[:64])
		_, err := f.Write(block)
		require.NoError(b, err)
	}
	require.NoError(b, f.Close())
}

// solve sends the directory, or, when it is there already, exports it to out.
func solve(b *testing.B, c *client.Client, dir string, out io.Writer) {
	b.Helper()
	fs, err := fsutil.NewFS(dir)
	require.NoError(b, err)
	state, err := llb.Scratch().File(llb.Copy(llb.Local("context"), "/data", "/data")).Marshal(b.Context())
	require.NoError(b, err)
	opt := client.SolveOpt{LocalMounts: map[string]fsutil.FS{"context": fs}}
	if out != nil {
		opt.Exports = []client.ExportEntry{{Type: client.ExporterTar, Output: func(map[string]string) (io.WriteCloser, error) { return closer{out}, nil }}}
	}
	_, err = c.Solve(b.Context(), state, opt, nil)
	require.NoError(b, err)
}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }

// startBuildkitd starts a daemon that listens on a unix socket, and by TLS of its own for the client of the set.
func startBuildkitd(b *testing.B, s *set) (socket, address string, pid int) {
	b.Helper()
	program := filepath.Join(os.Getenv("DEPOT_TOOLS"), "buildkitd")
	if _, err := os.Stat(program); err != nil || os.Geteuid() != 0 {
		b.Skip("needs root, and buildkitd in DEPOT_TOOLS: run `make tools`")
	}
	dir := b.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	address, socket = l.Addr().String(), filepath.Join(dir, "sock")
	require.NoError(b, l.Close())
	leaf := s.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	require.NoError(b, err)
	for name, text := range map[string]string{
		"ca": s.authority.CA(), "cert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})),
		"key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"toml": fmt.Sprintf("root = %q\n[grpc]\naddress = [%q, %q]\n[grpc.tls]\nca = %q\ncert = %q\nkey = %q\n[otel]\nsocketPath = %q\n",
			dir+"/root", "unix://"+socket, "tcp://"+address, dir+"/ca", dir+"/cert", dir+"/key", dir+"/otel"),
	} {
		require.NoError(b, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	cmd := exec.Command(program, "--config", filepath.Join(dir, "toml"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(b, cmd.Start())
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	c, err := client.New(b.Context(), "unix://"+socket)
	require.NoError(b, err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(b.Context(), 30*time.Second)
	defer cancel()
	require.NoError(b, c.Wait(ctx))
	return socket, address, cmd.Process.Pid
}

// cpuOf returns the processor time of another process, which the kernel counts in hundredths of a second.
func cpuOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(b, err)
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	var ticks int
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		require.NoError(b, err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
