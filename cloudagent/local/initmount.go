package local

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// privateDirs are hidden from machines, each behind an empty file system of the machine's own. /run holds sockets of the
// host's services: a firewalld, for one, to which CNI plugins would add the machine's rules. /var/lib/cni is where CNI
// plugins count addresses, which every machine gives out anew.
var privateDirs = []string{"/run", "/var/lib/cni"}

// Inside, a machine finds its state and the bus's socket under paths that are short, however long those of the host are:
// the address of a unix socket has room for 107 characters.
const (
	insideState = "/run/depot/state"
	insideBus   = "/run/depot/bus"
)

// prepareMounts makes the mount namespace a machine's: it has its own /proc, /run and cgroups, and nothing that is mounted
// in it shows outside.
func prepareMounts(spec bootSpec) error {
	// What the host mounts or unmounts later is followed, so that a machine never keeps a disk of the host busy.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separate mounts from the host's: %w", err)
	}
	if err := prepareCgroups(string(spec.Machine)); err != nil {
		return err
	}
	resolvConf, hasResolver := filepath.EvalSymlinks("/etc/resolv.conf") // as the host sees it
	for _, dir := range privateDirs {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as on any host
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	for inside, outside := range map[string]string{insideState: filepath.Join(spec.Dir, stateDir), insideBus: spec.BusDir} {
		if err := os.MkdirAll(inside, 0o700); err != nil {
			return err
		}
		if err := unix.Mount(outside, inside, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", inside, err)
		}
	}
	if hasResolver == nil {
		if err := mountResolver(filepath.Join(spec.Dir, resolvFile), resolvConf); err != nil {
			return err
		}
	}
	if err := unix.Unmount("/proc", unix.MNT_DETACH); err != nil { // what it shows is the host's processes
		return fmt.Errorf("unmount the host's /proc: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// prepareCgroups joins the machine's cgroups, makes them the root of a namespace, and mounts what this root shows: runc
// looks for its own cgroups below the mount points, and must find those in /proc/self/cgroup there.
func prepareCgroups(machine string) error {
	hierarchies, err := readHierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		if err := h.join(machine); err != nil {
			return err
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	for _, h := range hierarchies {
		if err := h.enter(machine); err != nil {
			return err
		}
	}
	return nil
}

// enter replaces the host's view of the hierarchy by the machine's.
func (h hierarchy) enter(machine string) error {
	if h.unified {
		leaf := filepath.Join(h.machine(machine), leafCgroup)
		if err := os.MkdirAll(leaf, 0o755); err != nil { //nolint:gosec // as on any host
			return err
		}
		if err := writeFile(filepath.Join(leaf, "cgroup.procs"), "0"); err != nil {
			return fmt.Errorf("join cgroup %s: %w", leaf, err)
		}
		delegate(h.machine(machine))
	}
	if err := unix.Unmount(h.mountPoint, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's %s: %w", h.mountPoint, err)
	}
	kind, options := "cgroup", h.options
	if h.unified {
		kind, options = "cgroup2", ""
	}
	if err := unix.Mount(kind, h.mountPoint, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, options); err != nil {
		return fmt.Errorf("mount %s: %w", h.mountPoint, err)
	}
	return nil
}

// mountResolver puts the machine's resolv.conf where programs look for it: at target, which may be in the machine's own,
// still empty /run.
func mountResolver(file, target string) error {
	if within("/run", target) {
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil { //nolint:gosec // as on any host
			return err
		}
		if err := os.WriteFile(target, nil, 0o644); err != nil { //nolint:gosec // everybody may know the nameservers
			return err
		}
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}
