package local

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

const (
	eventually = 15 * time.Second
	tick       = 10 * time.Millisecond
)

func newVolume(t *testing.T, p *Provider, spec cloudagent.MachineSpec) bus.VolumeID {
	t.Helper()
	ref := cloudagent.VolumeRef{Connection: spec.Connection, Volume: bus.NewVolumeID()}
	require.NoError(t, p.CreateVolume(t.Context(), cloudagent.VolumeSpec{VolumeRef: ref, Project: spec.Project, Architecture: hostArch, SizeGB: 1}))
	return ref.Volume
}

// processesOf returns the process ids of a machine's first processes and of everything in its cgroups.
func processesOf(t *testing.T, id bus.MachineID) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var found []string
	for _, file := range files {
		cmdline, _ := os.ReadFile(file)
		if strings.Contains(string(cmdline), initArgument+"\x00"+string(id)) {
			found = append(found, filepath.Base(filepath.Dir(file)))
		}
	}
	return found
}

// leftovers names everything on the host that belongs to a machine.
func leftovers(t *testing.T, id bus.MachineID) []string {
	t.Helper()
	var found []string
	for _, pid := range processesOf(t, id) {
		found = append(found, "process "+pid)
	}
	// Every other process of a machine is in its cgroups, which then exist.
	hierarchies, err := readHierarchies()
	require.NoError(t, err)
	for _, h := range hierarchies {
		if _, err := os.Stat(h.machine(string(id))); err == nil {
			found = append(found, "cgroup "+h.machine(string(id)))
		}
	}
	if _, err := netlink.LinkByName(hostLink(id)); err == nil {
		found = append(found, "link "+hostLink(id))
	}
	rules, err := run(context.WithoutCancel(t.Context()), "iptables-save", "")
	require.NoError(t, err)
	if strings.Contains(rules, hostLink(id)) {
		found = append(found, "rules of "+hostLink(id))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	if strings.Contains(string(mounts), string(id)) {
		found = append(found, "mounts")
	}
	return found
}

func requireNothingLeft(t *testing.T, id bus.MachineID) {
	t.Helper()
	require.Empty(t, leftovers(t, id))
}
