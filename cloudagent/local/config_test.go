package local

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

func TestNew_RefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		cfg  Config
		want string
	}{
		"no directory":        {Config{}, "no state directory"},
		"path too long":       {Config{Dir: "/" + strings.Repeat("x", 100)}, "7 characters too long"},
		"a machine's own":     {Config{Dir: "/run/depot"}, "each machine has its own"},
		"public range":        {Config{Dir: "/x", Subnet: netip.MustParsePrefix("192.0.2.0/24")}, "not a private IPv4 range"},
		"range of one":        {Config{Dir: "/x", Subnet: netip.MustParsePrefix("10.0.0.0/31")}, "at least a /30"},
		"range of IPv6":       {Config{Dir: "/x", Subnet: netip.MustParsePrefix("fd00::/64")}, "not a private IPv4 range"},
		"several at a time 1": {Config{Subnet: netip.MustParsePrefix("192.0.2.0/24")}, "no state directory"},
		"several at a time 2": {Config{Subnet: netip.MustParsePrefix("192.0.2.0/24")}, "not a private IPv4 range"},
	} {
		_, err := New(test.cfg)
		require.ErrorContains(t, err, test.want, name)
	}
	_, err := New(Config{Dir: "/x"})
	require.NoError(t, err)
}

func TestFindTools_NamesAllThatIsMissingAtOnce(t *testing.T) {
	given, variable, path := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv(ToolsVariable, variable)
	t.Setenv("PATH", path)
	program := func(dir, name string) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\n"), 0o700))
		return file
	}
	err := Tools{}.Check(false)
	var missing *MissingToolsError
	require.ErrorAs(t, err, &missing)
	require.Equal(t, []string{"machineagent", "buildkitd", "runc"}, missing.Programs)
	require.Equal(t, cniPlugins, missing.Plugins)
	require.ErrorIs(t, err, bus.CodeUnavailable)

	want := Tools{Machineagent: program(given, "machineagent"), Buildkitd: program(variable, "buildkitd"), Runc: program(path, "runc")}
	program(path, "buildkitd") // later in the order
	require.NoError(t, os.WriteFile(filepath.Join(given, "runc"), nil, 0o600), "not a program")
	program(path, cniPlugins[0]) // not all of them are here
	found := FindTools(given)
	require.Equal(t, want, found)
	require.NoError(t, found.Check(true))
	require.ErrorAs(t, found.Check(false), &missing)
	require.Equal(t, cniPlugins, missing.Plugins)

	for _, plugin := range cniPlugins {
		program(variable, plugin)
	}
	want.CNIDir = variable
	require.Equal(t, want, FindTools(given))
	require.NoError(t, want.Check(false))
	require.NoError(t, os.Remove(filepath.Join(variable, cniPlugins[3])))
	require.ErrorContains(t, want.Check(false), cniPlugins[3], "it went away meanwhile")
}

func TestParseHierarchies_KnowsAllKindsOfHosts(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		mountinfo string
		want      []hierarchy
	}{
		"unified": {
			"29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
			[]hierarchy{{mountPoint: "/sys/fs/cgroup", unified: true, options: "nsdelegate,memory_recursiveprot"}},
		},
		"version 1": {
			`30 22 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:28 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,xattr,release_agent=/lib/systemd/systemd-cgroups-agent,name=systemd
32 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct
33 30 0:30 / /sys/fs/cgroup/cpuset rw shared:12 - cgroup cgroup rw,cpuset,clone_children
`,
			[]hierarchy{
				{mountPoint: "/sys/fs/cgroup/systemd", options: "xattr,name=systemd"},
				{mountPoint: "/sys/fs/cgroup/cpu,cpuacct", options: "cpu,cpuacct"},
				{mountPoint: "/sys/fs/cgroup/cpuset", options: "cpuset"},
			},
		},
		"hybrid": {
			`31 30 0:28 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
40 30 0:37 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`,
			[]hierarchy{{mountPoint: "/sys/fs/cgroup/cpu", options: "cpu"}, {mountPoint: "/sys/fs/cgroup/unified", unified: true, options: ""}},
		},
		"elsewhere, hidden and cut off": {
			`31 30 0:28 / /mnt/cgroup rw,relatime - cgroup2 cgroup2 rw
32 30 0:28 /old /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
34 30 0:30
`,
			[]hierarchy{{mountPoint: "/sys/fs/cgroup/cpu", options: "cpu"}},
		},
	} {
		require.Equal(t, test.want, parseHierarchies(test.mountinfo), name)
	}
}
