package stack_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/depotctl/config"
)

// separate is an installation whose parts are processes of their own around an external nats-server.
type separate struct {
	*installation
	monitor string // address of the nats-server's statistics
}

// newSeparate prepares it as an operator would: keys, configuration, first organization.
func newSeparate(t testing.TB) *separate {
	t.Helper()
	in := newInstallation(t)
	s := &separate{installation: in, monitor: freeAddress(t)}
	conf := filepath.Join(in.dir, "nats-server.conf")
	s.finish(t, "apiserver", "init", "--trust", s.trust(), "--config", conf, "--listen", in.listen, "--state", filepath.Join(in.dir, "nats"))
	f, err := os.OpenFile(conf, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = fmt.Fprintf(f, "http: %q\n", s.monitor)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	s.start(t, "nats-server", "-c", conf).says(t, `Server is ready`)
	s.finish(t, "apiserver", "bootstrap", "--trust", s.trust(), "--server", s.url(),
		"--user-token", s.token("user"), "--agent-token", s.token("agent"))
	text, err := os.ReadFile(s.token("user"))
	require.NoError(t, err)
	token, err := bus.ParseToken(string(text))
	require.NoError(t, err)
	file := config.File{Path: filepath.Join(in.dir, "config", "depot", "config.json")}
	require.NoError(t, file.Save(config.Config{Server: s.url(), Token: token}))
	return s
}

func (s *separate) trust() string            { return filepath.Join(s.dir, "trust") }
func (s *separate) url() string              { return "nats://" + s.listen }
func (s *separate) token(name string) string { return filepath.Join(s.dir, name+".token") }

func (s *separate) finish(t testing.TB, name string, args ...string) {
	t.Helper()
	p := s.start(t, name, args...)
	require.Zero(t, p.exitCode(t), "%s", p.out)
}

func (s *separate) apiserver(t testing.TB) *process {
	t.Helper()
	p := s.start(t, "apiserver", "run", "--trust", s.trust(), "--server", s.url())
	p.says(t, `api server is ready`)
	return p
}

func (s *separate) cloudagent(t testing.TB) *process {
	t.Helper()
	return s.start(t, "cloudagent", "--server", s.url(), "--token", s.token("agent"), "--state", filepath.Join(s.state, "local"))
}

func TestSeparate_TheSameBuildPasses(t *testing.T) {
	t.Parallel()
	s := newSeparate(t)
	defer s.killMachines(t)
	s.apiserver(t)
	s.cloudagent(t)
	context := counted(t)
	require.Equal(t, "1", s.count(t, context))
	require.Equal(t, "2", s.count(t, context, again(2)))
	machines := s.machines(t)
	require.Len(t, machines, 1)
	require.Len(t, s.instances(t), 1)
}

func TestSeparate_TwoAPIServersShareTheWork(t *testing.T) {
	t.Parallel()
	s := newSeparate(t)
	defer s.killMachines(t)
	first := s.apiserver(t)
	s.apiserver(t)
	s.cloudagent(t)
	context := counted(t)
	require.Equal(t, "1", s.count(t, context))
	first.kill()
	require.Equal(t, "2", s.count(t, context, again(2)), "one API server alone does not build")
	require.Len(t, s.machines(t), 1)
}

// A part that is killed at any stage of a build, and comes back, changes nothing about how the build ends.
func TestSeparate_KilledAtAnyStageOfABuildFinishesItAfterARestart(t *testing.T) {
	for _, stage := range stages {
		for _, part := range []string{"apiserver", "cloudagent"} {
			t.Run(part+" "+string(stage), func(t *testing.T) {
				s := newSeparate(t)
				defer s.killMachines(t)
				parts := map[string]func(testing.TB) *process{"apiserver": s.apiserver, "cloudagent": s.cloudagent}
				running := map[string]*process{"apiserver": s.apiserver(t), "cloudagent": s.cloudagent(t)}
				there := s.reached(t, stage)
				b := s.build(t, source(t, append(image, runStep("sleep", "10ms"))...))
				await(t, there, b)
				running[part].kill()
				parts[part](t)
				require.Zero(t, b.exitCode(t), "%s", b.out)
				s.requireOneEnd(t)
			})
		}
	}
}

// perBuild is how much of a build may enter the bus server, however large its context is.
const perBuild = 64 << 10

// traffic is payload at the nats-server. What goes out is a multiple of what comes in, because every record that changes is
// told to each API server that watches; but nothing goes out that has not come in.
type traffic struct {
	In  int64 `json:"in_bytes"`
	Out int64 `json:"out_bytes"`
}

func TestBus_CarriesNoBuildData(t *testing.T) {
	t.Parallel()
	s := newSeparate(t)
	defer s.killMachines(t)
	s.apiserver(t)
	s.cloudagent(t)
	small := source(t, append(image, "COPY Dockerfile /")...)
	first := s.build(t, small) // the machine starts
	require.Zero(t, first.exitCode(t), "%s", first.out)

	little := s.carried(t, small, `transferring context`)
	large := source(t, append(image, "COPY blob /")...)
	f, err := os.Create(filepath.Join(large, "blob"))
	require.NoError(t, err)
	_, err = io.CopyN(f, rand.Reader, 200e6)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	much := s.carried(t, large, `transferring context: 20[0-9.]*MB`)

	t.Logf("on the bus for a build with 200 MB of context: %+v bytes; with next to none: %+v", much, little)
	require.Less(t, much.In, int64(perBuild))
	require.Less(t, much.Out-little.Out, int64(perBuild), "what goes out grows with the context")
}

// carried returns what passed through the nats-server during a build, everything included that the parts say to each other
// meanwhile.
func (s *separate) carried(t testing.TB, context, said string) traffic {
	t.Helper()
	before := s.traffic(t)
	b := s.build(t, context)
	require.Zero(t, b.exitCode(t), "%s", b.out)
	require.Regexp(t, said, b.out.String())
	after := s.traffic(t)
	return traffic{In: after.In - before.In, Out: after.Out - before.Out}
}

func (s *separate) traffic(t testing.TB) traffic {
	t.Helper()
	resp, err := http.Get("http://" + s.monitor + "/varz")
	require.NoError(t, err)
	defer resp.Body.Close()
	var v traffic
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&v))
	return v
}

// killMachines ends the first process of every machine of the installation: the kernel ends the rest.
func (in *installation) killMachines(t testing.TB) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(in.state, "local", "machines", "*", "alive"))
	require.NoError(t, err)
	for _, f := range files {
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		var pid int
		if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &pid); err == nil && pid > 1 {
			process, err := os.FindProcess(pid)
			require.NoError(t, err)
			_ = process.Kill() // it may have ended
		}
	}
	eventually(t, "all machines have ended", func() bool { return len(in.instances(t)) == 0 })
}
