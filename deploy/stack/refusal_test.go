package stack_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// requireRefusal checks that a program failed with one line of reason that matches, and at least one hint.
func requireRefusal(t testing.TB, p *process, line string) {
	t.Helper()
	require.Equal(t, 1, p.exitCode(t), "%s", p.out)
	var reasons []string
	hinted := false
	for text := range strings.Lines(p.out.String()) {
		if strings.HasPrefix(text, "hint: ") {
			hinted = true
		} else {
			reasons = append(reasons, strings.TrimSpace(text))
		}
	}
	require.Len(t, reasons, 1, "%s", p.out)
	require.Regexp(t, "^"+p.name+": "+line, reasons[0])
	require.True(t, hinted, "%s", p.out)
}

func TestDepotd_RefusesADirectoryThatAnotherOneHolds(t *testing.T) {
	t.Parallel()
	in := newInstallation(t)
	in.depotd(t)
	second := in.start(t, "depotd", "--dir", in.state, "--listen", freeAddress(t))
	requireRefusal(t, second, `another depotd \(process \d+\) runs on `)
}

func TestDepotd_RefusesAnAddressThatIsTaken(t *testing.T) {
	t.Parallel()
	in := newInstallation(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", in.listen)
	require.NoError(t, err)
	p := in.start(t, "depotd", "--dir", in.state, "--listen", in.listen)
	requireRefusal(t, p, `cannot listen on 127.0.0.1:\d+: .*in use`)
	require.NoError(t, l.Close()) // the sweep needs it
}

func TestDepotd_RefusesADirectoryThatItCannotWrite(t *testing.T) {
	t.Parallel()
	in := newInstallation(t)
	dir := mount(t, unix.MS_RDONLY, "")
	p := in.start(t, "depotd", "--dir", filepath.Join(dir, "state"), "--listen", in.listen)
	requireRefusal(t, p, `the state directory .* cannot be written: read-only file system`)
}

func TestDepotd_RefusesAFullDisk(t *testing.T) {
	t.Parallel()
	in := newInstallation(t)
	dir := mount(t, 0, "size=1m")
	p := in.start(t, "depotd", "--dir", filepath.Join(dir, "state"), "--listen", in.listen)
	requireRefusal(t, p, `the disk of the state directory .* is full`)
}

// mount gives a tmpfs to a directory.
func mount(t testing.TB, flags uintptr, options string) string {
	t.Helper()
	dir := shortDir(t)
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", flags, options))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// A disk that fills up under a running depotd ends it with a line that says so, and costs nothing that was acknowledged.
func TestDepotd_EndsWhenItsDiskFillsUpAndLosesNothing(t *testing.T) {
	t.Parallel()
	in := newInstallation(t)
	in.state = mount(t, 0, "size=256m")
	defer in.sweep(t) // before the mount goes, and the machines' directory with it
	first := in.depotd(t)
	context := counted(t)
	require.Equal(t, "1", in.count(t, context))
	known := in.builds(t)

	ballast := filepath.Join(in.state, "ballast")
	fill(t, ballast)
	requireEnd(t, first, 1, `depotd: the disk of the state directory .* is full: \d+ MiB are free`)

	require.NoError(t, os.Remove(ballast))
	second := in.depotd(t)
	require.Equal(t, known, in.builds(t))
	require.Equal(t, "1", in.count(t, context))
	second.stop(t) // for the sweep
}

// requireEnd checks that a program ended with the code and a line that matches.
func requireEnd(t testing.TB, p *process, code int, line string) {
	t.Helper()
	require.Equal(t, code, p.exitCode(t), "%s", p.out)
	require.Regexp(t, "(?m)^"+line, p.out.String())
	require.Contains(t, p.out.String(), "\nhint: ")
}

// fill writes until the file system is full.
func fill(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	for block := make([]byte, 64<<10); ; {
		if _, err := f.Write(block); err != nil {
			require.ErrorIs(t, err, unix.ENOSPC)
			return
		}
	}
}
