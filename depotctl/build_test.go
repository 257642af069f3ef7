package depotctl

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

const helloDockerfile = "FROM scratch\nCOPY hello /hello\n"

func TestBuild_ExportsTheResultOfARealBuild(t *testing.T) {
	t.Parallel()
	a := newAPI(t, newFront(t, sharedDaemon(t).socket))
	p := a.depotctl(t, "build", "-o", "out", ".").write(t, "Dockerfile", helloDockerfile).write(t, "hello", "world")
	require.Equal(t, ExitOK, p.run(t))

	text, err := os.ReadFile(filepath.Join(p.cmd.Dir, "out", "hello"))
	require.NoError(t, err)
	require.Equal(t, "world", string(text))
	require.Equal(t, bus.BuildFinish{Build: a.waitBuild().Build, State: bus.BuildSucceeded}, a.waitEnd())
	require.Contains(t, p.stderr.String(), "[depot] builder")
}

func TestBuild_ShowsEveryStageWithItsTime(t *testing.T) {
	t.Parallel()
	a := newAPI(t, newFront(t, sharedDaemon(t).socket))
	p := a.depotctl(t, "build", "--project", "cold", ".").write(t, "Dockerfile", helloDockerfile).write(t, "hello", "world")
	require.Equal(t, ExitOK, p.run(t))
	log := p.stderr.String()
	for _, stage := range []string{"queued", "launching machine", "booting", "registered", "starting BuildKit", "connecting to 127.0.0.1:"} {
		require.Regexp(t, `(?m)^#\d+ `+stage+`.* done$`, log)
	}
	require.Contains(t, log, "machine booting", "the message of an event is a line of the log")
}

func TestBuild_AsksForTheArchitecturesOfItsPlatforms(t *testing.T) {
	t.Parallel()
	a := newAPI(t, newFront(t, sharedDaemon(t).socket))
	a.arm = newFront(t, ownDaemon(t).socket) // one build has one ref on all its daemons, so two need to be two
	for name, c := range map[string]struct {
		args  []string
		want  []bus.Arch
		title string
	}{
		"none: the project decides": {nil, nil, "[depot] builder"},
		"one machine builds two":    {[]string{"--platform", "linux/amd64,linux/386"}, []bus.Arch{bus.AMD64}, "[depot] amd64 builder"},
		"two machines":              {[]string{"--platform", "linux/arm64,linux/amd64"}, []bus.Arch{bus.ARM64, bus.AMD64}, "[depot] arm64 builder"},
		"arm only":                  {[]string{"--platform", "linux/arm64"}, []bus.Arch{bus.ARM64}, "[depot] arm64 builder"},
	} {
		t.Run(name, func(t *testing.T) {
			p := a.depotctl(t, append(append([]string{"build"}, c.args...), ".")...).write(t, "Dockerfile", helloDockerfile).write(t, "hello", "world")
			require.Equal(t, ExitOK, p.run(t))
			require.Equal(t, c.want, a.waitBuild().Architectures)
			require.Contains(t, p.stderr.String(), c.title)
		})
	}
}

func TestBuild_FailingStepIsBuildxsOwnFailure(t *testing.T) {
	t.Parallel()
	a := newAPI(t, newFront(t, sharedDaemon(t).socket))
	p := a.depotctl(t, "build", ".").withTool(t).write(t, "Dockerfile", "FROM scratch\nCOPY tool /tool\nRUN [\"/tool\", \"exit\", \"7\"]\n")
	require.Equal(t, ExitFailed, p.run(t))
	require.Contains(t, p.stderr.String(), "about to fail")
	require.Contains(t, p.stderr.String(), `>>> RUN ["/tool", "exit", "7"]`)
	require.Contains(t, p.lastLine(), `ERROR: failed to build: failed to solve: process "/tool exit 7" did not complete successfully: exit code: 7`)
	end := a.waitEnd()
	require.Equal(t, bus.BuildFailed, end.State)
	require.Equal(t, "a step ended with exit code 7", end.Reason, "no word of the Dockerfile travels")
}

func TestBuild_HungBuilderEndsItWithin15Seconds(t *testing.T) {
	t.Parallel()
	d := ownDaemon(t)
	a := newAPI(t, newFront(t, d.socket))
	p := sleeping(t, a)
	d.signal(t, syscall.SIGSTOP)
	hung := time.Now()
	require.Equal(t, ExitLost, p.wait(t))
	require.Less(t, time.Since(hung), 15*time.Second)
	require.Contains(t, p.lastLine(), "depotctl: the builder was lost during the build: the amd64 builder")
	require.Contains(t, p.lastLine(), "has not answered for 1")
	require.Equal(t, bus.BuildFailed, a.waitEnd().State)
}

func TestBuild_KilledBuilderEndsItAtOnce(t *testing.T) {
	t.Parallel()
	d := ownDaemon(t)
	a := newAPI(t, newFront(t, d.socket))
	p := sleeping(t, a)
	d.signal(t, syscall.SIGKILL)
	killed := time.Now()
	require.Equal(t, ExitLost, p.wait(t))
	require.Less(t, time.Since(killed), 5*time.Second)
	require.Contains(t, p.lastLine(), "depotctl: the builder was lost during the build")
}

func TestBuild_BusyBuilderIsNotTakenForDead(t *testing.T) {
	t.Parallel()
	d := ownDaemon(t)
	a := newAPI(t, newFront(t, d.socket))
	p := a.depotctl(t, "build", ".").withTool(t).write(t, "Dockerfile", "FROM scratch\nCOPY tool /tool\nRUN [\"/tool\", \"spin\", \"16s\"]\n")
	require.Equal(t, ExitOK, p.run(t), "64 busy threads on every processor, and not a byte of output, for longer than the watchdog's limit")
}

func TestBuild_CutLeaseNamesTheServersReason(t *testing.T) {
	t.Parallel()
	f := newFront(t, sharedDaemon(t).socket)
	a := newAPI(t, f)
	p := sleeping(t, a)
	build := a.waitBuild().Build
	a.change(build, func(s *scripted) {
		s.view.State, s.view.Reason = bus.BuildFailed, "machine mch-x was terminated by the cloud"
	})
	f.cut("")
	require.Equal(t, ExitLost, p.wait(t))
	require.Equal(t, "depotctl: the builder was lost during the build: machine mch-x was terminated by the cloud", p.lastLine())
}

func TestBuild_CancelFromElsewhereEndsIt(t *testing.T) {
	t.Parallel()
	a := newAPI(t, newFront(t, sharedDaemon(t).socket))
	p := sleeping(t, a)
	build := string(a.waitBuild().Build)
	require.Equal(t, ExitOK, a.depotctl(t, "cancel", build).run(t))
	require.Equal(t, ExitCanceled, p.wait(t))
	require.Equal(t, "depotctl: build "+build+" was canceled: canceled by a user", p.lastLine())
}

func TestBuild_CtrlCCancelsItEverywhere(t *testing.T) {
	t.Parallel()
	a := newAPI(t, newFront(t, sharedDaemon(t).socket))
	p := sleeping(t, a)
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.Equal(t, ExitCanceled, p.wait(t))
	require.Equal(t, "depotctl: canceled", p.lastLine())
	require.Equal(t, bus.BuildCanceled, a.waitEnd().State)
}

func TestBuild_CtrlCWhileWaitingForABuilderCancelsIt(t *testing.T) {
	t.Parallel()
	a := newAPI(t, newFront(t, sharedDaemon(t).socket))
	p := a.depotctl(t, "build", "--project", "stuck", ".").write(t, "Dockerfile", helloDockerfile).start(t)
	p.sees(t, "booting")
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.Equal(t, ExitCanceled, p.wait(t))
	require.Equal(t, bus.BuildCanceled, a.waitEnd().State)
}

func TestBuild_SecondCtrlCKills(t *testing.T) {
	t.Parallel()
	d := ownDaemon(t)
	a := newAPI(t, newFront(t, d.socket))
	p := sleeping(t, a)
	d.signal(t, syscall.SIGSTOP) // so that the cancellation has to wait
	for range 2 {
		require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
		time.Sleep(200 * time.Millisecond) //nolint:forbidigo // two signals at once are one signal
	}
	pressed := time.Now()
	require.Equal(t, ExitCanceled, p.wait(t))
	require.Less(t, time.Since(pressed), 2*time.Second)
}

func TestBuild_OutlivesTheBus(t *testing.T) {
	t.Parallel()
	a := newAPI(t, newFront(t, sharedDaemon(t).socket))
	p := a.depotctl(t, "build", ".").withTool(t).write(t, "Dockerfile", "FROM scratch\nCOPY tool /tool\nRUN [\"/tool\", \"sleep\", \"8s\"]\n").start(t)
	p.sees(t, "sleeping")
	require.NoError(t, a.bus.Embedded.Close())
	require.Equal(t, ExitOK, p.wait(t))
	require.Contains(t, p.stderr.String(), "warning: the server could not be told that the build has succeeded")
}

func TestBuild_AcquireTimeoutNamesTheStage(t *testing.T) {
	t.Parallel()
	a := newAPI(t, newFront(t, sharedDaemon(t).socket))
	p := a.depotctl(t, "build", "--project", "stuck", "--acquire-timeout", "1s", ".").write(t, "Dockerfile", helloDockerfile)
	require.Equal(t, ExitTimeout, p.run(t))
	require.Regexp(t, `^depotctl: no builder after 6s \(stage booting, machine mch-[a-z2-7]{16}: waiting for the machine to register\)$`, p.lastLine())
	require.Equal(t, bus.BuildFailed, a.waitEnd().State)
}

func TestBuild_SaysThatItLives(t *testing.T) {
	t.Parallel()
	a := newAPI(t, newFront(t, sharedDaemon(t).socket))
	a.depotctl(t, "build", "--project", "stuck", ".").write(t, "Dockerfile", helloDockerfile).start(t)
	build := a.waitBuild().Build
	require.Eventually(t, func() bool {
		live := 0
		a.change(build, func(s *scripted) { live = s.live })
		return live > 0
	}, 10*time.Second, 50*time.Millisecond)
}

// sleeping starts a build and returns when its step runs.
func sleeping(t *testing.T, a *api) *program {
	t.Helper()
	p := a.depotctl(t, "build", "--no-cache", ".").withTool(t).
		write(t, "Dockerfile", "FROM scratch\nCOPY tool /tool\nRUN [\"/tool\", \"sleep\", \"300s\"]\n").start(t)
	p.sees(t, "sleeping")
	return p
}
