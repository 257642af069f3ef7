package stack

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/depotctl/depot/bus"
)

// requireFault checks that err is one line that says what is wrong, and a hint that says what to do.
func requireFault(t *testing.T, err error, line, hint string) {
	t.Helper()
	require.Error(t, err)
	fault, ok := errors.AsType[*bus.Fault](err)
	require.True(t, ok, "%v is not a Fault", err)
	require.Contains(t, fault.Message, line)
	require.NotContains(t, fault.Message, "\n")
	require.Contains(t, fault.Hint, hint)
}

// mounted returns a directory with a tmpfs of its own.
func mounted(t *testing.T, flags uintptr, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root: run the tests as root")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", flags, options))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func TestDirectory_IsMadeForItsOwnerAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a", "b")
	d, err := openDirectory(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.close()) }()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
}

func TestDirectory_IsHeldByOneProcessAtATime(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	d, err := openDirectory(path)
	require.NoError(t, err)
	_, err = openDirectory(path)
	requireFault(t, err, "another depotd (process", "--dir")
	require.NoError(t, d.close())
	d, err = openDirectory(path)
	require.NoError(t, err, "the lock outlived its holder")
	require.NoError(t, d.close())
}

func TestDirectory_ThatCannotBeWrittenIsRefused(t *testing.T) {
	t.Parallel()
	_, err := openDirectory(mounted(t, unix.MS_RDONLY, ""))
	requireFault(t, err, "cannot be written: read-only file system", "--dir")
}

func TestDirectory_ThatIsAFileIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err := openDirectory(path)
	requireFault(t, err, "not a directory", "--dir")
}

func TestDirectory_OnAFullDiskIsRefused(t *testing.T) {
	t.Parallel()
	_, err := openDirectory(mounted(t, 0, "size=1m"))
	requireFault(t, err, "is full", "free some space")
}
