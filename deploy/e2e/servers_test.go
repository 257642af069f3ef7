package e2e

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// hostAddress gives the host an address that is not loopback's 127.0.0.0/8, so that machines reach it, and that exists
// even where there is no network. It is from the range for benchmarks (RFC 2544) and is removed with the test.
func hostAddress(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("an address on the loopback interface needs root: run the tests as root")
	}
	var b [2]byte
	_, err := rand.Read(b[:])
	require.NoError(t, err)
	address := fmt.Sprintf("198.18.%d.%d", b[0], 1+b[1]%250)
	command(t, "", "ip", "address", "add", address+"/32", "dev", "lo")
	t.Cleanup(func() { command(t, "", "ip", "address", "del", address+"/32", "dev", "lo") })
	return address
}

// command runs a program of the host to its end.
func command(t testing.TB, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...) // short, and also used when the test's context has ended
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
}

// serve runs a program of the host until the test ends, and waits until something listens at the address.
func serve(t testing.TB, network, address, name string, args ...string) {
	t.Helper()
	log := &buffer{}
	cmd := exec.Command(name, args...) // the cleanup ends it
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // it was asked to end
	}()
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Signal(os.Interrupt), log.String())
		select {
		case <-exited:
		case <-time.After(20 * time.Second):
			require.NoError(t, cmd.Process.Kill())
			<-exited
		}
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial(network, address) // a local address
		if err == nil {
			require.NoError(t, conn.Close())
		}
		return err == nil
	}, patience, 50*time.Millisecond, "%s: %s", name, log)
}

// startRegistry runs Debian's docker-registry, without TLS.
func startRegistry(t testing.TB, address string) {
	t.Helper()
	path := program(t, "docker-registry", "install Debian's docker-registry, which `make test` does")
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `version: 0.1
log: {level: error}
storage:
  filesystem: {rootdirectory: %s}
http: {addr: %s}
`, filepath.Join(dir, "data"), address), 0o600))
	serve(t, "tcp", address, path, "serve", config)
}

// startGit serves a repository with one commit, whose Dockerfile lies in the root and in sub/.
func startGit(t testing.TB, host string) string {
	t.Helper()
	git := program(t, "git", "install git, which `make test` does")
	base := t.TempDir()
	work := filepath.Join(base, "work")
	for name, text := range map[string]string{
		"Dockerfile": "FROM scratch\nCOPY hello /\n", "hello": "from git",
		"sub/Dockerfile": "FROM scratch\nCOPY hello /\n", "sub/hello": "from git/sub",
	} {
		path := filepath.Join(work, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	command(t, work, git, "init", "--quiet", "--initial-branch=main")
	command(t, work, git, "add", ".")
	command(t, work, git, "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "-m", "one")
	command(t, base, git, "clone", "--quiet", "--bare", "work", "repo.git")
	address := freeAddress(t, host)
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	serve(t, "tcp", address, git, "daemon", "--export-all", "--reuseaddr", "--base-path="+base, "--listen="+host, "--port="+port)
	return "git://" + address + "/repo.git"
}

// startEngine runs a Docker engine that runs no containers; it returns its DOCKER_HOST.
func startEngine(t testing.TB) string {
	t.Helper()
	path := program(t, "dockerd", "install Debian's docker.io, which `make test` does")
	dir, err := os.MkdirTemp("", "depot-docker-") //nolint:usetesting // paths of unix sockets are short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	socket := filepath.Join(dir, "d.sock")
	serve(t, "unix", socket, path, "--host", "unix://"+socket, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--storage-driver=vfs")
	return "unix://" + socket
}

// startAgent runs an SSH agent with one key; it returns its socket.
func startAgent(t testing.TB) string {
	t.Helper()
	agent := program(t, "ssh-agent", "install openssh-client, which `make test` does")
	dir, err := os.MkdirTemp("", "depot-ssh-") //nolint:usetesting // paths of unix sockets are short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	socket, key := filepath.Join(dir, "s"), filepath.Join(dir, "key")
	serve(t, "unix", socket, agent, "-D", "-a", socket)
	command(t, dir, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	add := exec.CommandContext(t.Context(), "ssh-add", "-q", key)
	add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
	out, err := add.CombinedOutput()
	require.NoError(t, err, string(out))
	return socket
}
