package config

import (
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

func TestFile_SaveThenLoadGivesTheSame(t *testing.T) {
	t.Parallel()
	f := File{Path: filepath.Join(t.TempDir(), "deep", "er", "config.json")}
	want := Config{Server: "nats://depot.example:4250", CAFile: "/etc/depot/ca.pem", Token: bus.NewToken()}
	require.NoError(t, f.Save(want))

	got, err := f.Load()
	require.NoError(t, err)
	require.Equal(t, want.Server, got.Server)
	require.Equal(t, want.CAFile, got.CAFile)
	require.Equal(t, want.Token.Reveal(), got.Token.Reveal())

	info, err := os.Stat(f.Path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	info, err = os.Stat(filepath.Dir(f.Path))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
}

func TestFile_SaveReplacesAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := File{Path: filepath.Join(dir, "config.json")}
	require.NoError(t, os.WriteFile(f.Path, []byte("{}"), 0o644))
	require.NoError(t, f.Save(Config{Server: "nats://a:1"}))
	require.NoError(t, f.Save(Config{Server: "nats://b:2"}))

	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	info, err := entries[0].Info()
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "a file that was open to others is closed")
	got, err := f.Load()
	require.NoError(t, err)
	require.Equal(t, "nats://b:2", got.Server)
}

func TestFile_MissingIsEmpty(t *testing.T) {
	t.Parallel()
	f := File{Path: filepath.Join(t.TempDir(), "none", "config.json")}
	got, err := f.Load()
	require.NoError(t, err)
	require.Equal(t, Config{}, got)
	require.NoError(t, f.Remove())
}

func TestFile_BrokenIsNamedInOneLine(t *testing.T) {
	t.Parallel()
	good := bus.NewToken().Reveal()
	for name, c := range map[string]struct{ text, want string }{
		"empty":          {"", "ends too early"},
		"cut":            {`{"server": "nats://`, "ends too early"},
		"not JSON":       {"server = x", "invalid character"},
		"unknown field":  {`{"sever": "nats://x:1"}`, `unknown field "sever"`},
		"wrong type":     {`{"server": 4250}`, "number"},
		"two values":     {`{} {}`, "text after its end"},
		"damaged token":  {`{"token": "` + good[:len(good)-1] + `x"}`, "checksum"},
		"not a token":    {`{"token": "hunter2"}`, "not a depot token"},
		"trailing brace": {`{}}`, "text after its end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := File{Path: filepath.Join(t.TempDir(), "config.json")}
			require.NoError(t, os.WriteFile(f.Path, []byte(c.text), 0o600))
			_, err := f.Load()
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, f.Path)
			require.NotContains(t, err.Error(), "\n")
			require.NotContains(t, err.Error(), strings.Split(good, "_")[2], "no secret in the message")
		})
	}
}

func TestFile_SaveForAnotherUserGivesItWhatItMade(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can write on behalf of another user: run the tests as root")
	}
	home := t.TempDir()
	f, err := fileOf(&user.User{Username: "somebody", Uid: "12345", Gid: "23456", HomeDir: home})
	require.NoError(t, err)
	require.NoError(t, f.Save(Config{Token: bus.NewToken()}))

	for _, path := range []string{f.Path, filepath.Dir(f.Path), filepath.Join(home, ".config")} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		stat, ok := info.Sys().(*syscall.Stat_t)
		require.True(t, ok)
		require.Equal(t, []uint32{12345, 23456}, []uint32{stat.Uid, stat.Gid}, path)
	}
	info, err := os.Stat(home)
	require.NoError(t, err)
	stat, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok)
	require.Zero(t, stat.Uid, "a directory that was there keeps its owner")
}

func TestConfigHome(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		env  map[string]string
		want string
	}{
		"XDG wins":            {map[string]string{"XDG_CONFIG_HOME": "/x", "HOME": "/h"}, "/x"},
		"home":                {map[string]string{"HOME": "/h"}, "/h/.config"},
		"relative is ignored": {map[string]string{"XDG_CONFIG_HOME": "x", "HOME": "/h"}, "/h/.config"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := configHome(func(key string) string { return c.env[key] })
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
	_, err := configHome(func(string) string { return "" })
	require.ErrorContains(t, err, "HOME")
}
