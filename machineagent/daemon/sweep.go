package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// sweep removes what a daemon that is dead has left on the machine: the processes of its steps, their cgroups, their
// mounts below the cache. It must not run while a daemon lives. It returns nil only when nothing is left.
func sweep(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := killCgroups(ctx, cgroupRoot, cfg.CgroupParent); err != nil {
		return fmt.Errorf("remove what a daemon left behind: %w", err)
	}
	if err := unmountBelow(cfg.CacheDir); err != nil {
		return fmt.Errorf("remove what a daemon left behind: %w", err)
	}
	if err := deleteBridge(ctx, cfg); err != nil { // it is in nobody's way: the next daemon takes it over
		cfg.Log.Warn("cannot delete a bridge that a daemon left behind", slog.Any("err", err))
	}
	return nil
}

// deleteBridge removes the bridge of a daemon that could not, or did not because it had found it there.
func deleteBridge(ctx context.Context, cfg Config) error {
	if _, err := os.Stat(filepath.Join("/sys/class/net", cfg.Bridge, "bridge")); cfg.HostNetwork || err != nil {
		return nil //nolint:nilerr // there is none
	}
	ip := exec.CommandContext(ctx, "ip", "link", "delete", cfg.Bridge)
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("delete bridge %s: %w: %s", cfg.Bridge, err, bytes.TrimSpace(out))
	}
	return nil
}

// requireFree refuses a cache on which a daemon lives: sweeping would take its mounts away.
func requireFree(cache string) error {
	lock, err := os.Open(filepath.Join(cache, "buildkitd.lock")) // BuildKit's own
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another buildkitd uses %s", cache)
	}
	return nil
}

// killCgroups kills every process in the cgroups named parent, in the unified hierarchy or in each of the old ones,
// and removes the cgroups.
func killCgroups(ctx context.Context, root, parent string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		dirs := cgroupsOf(root, parent)
		if len(dirs) == 0 {
			return nil
		}
		for _, dir := range dirs { // children first
			killAll(dir)
			_ = unix.Rmdir(dir) // succeeds once the last process is gone
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if left := cgroupsOf(root, parent); len(left) > 0 {
				return fmt.Errorf("processes of build steps do not die: %s", strings.Join(left, " "))
			}
			return nil
		}
	}
}

// cgroupsOf lists the cgroups at and below parent, the deepest first.
func cgroupsOf(root, parent string) []string {
	roots, _ := filepath.Glob(filepath.Join(root, "*", parent)) // the pattern is ours and valid
	var dirs []string
	for _, top := range append(roots, filepath.Join(root, parent)) {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what vanishes meanwhile is what we want
		})
	}
	slices.Sort(dirs)
	slices.Reverse(dirs)
	return dirs
}

func killAll(dir string) {
	if all, err := os.OpenFile(filepath.Join(dir, "cgroup.kill"), os.O_WRONLY, 0); err == nil { // newer kernels, unified hierarchy
		_, err = all.WriteString("1")
		if err = errors.Join(err, all.Close()); err == nil {
			return
		}
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(procs)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 1 && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// unmountBelow detaches every mount below dir, the innermost first. dir itself may be a mount: the volume.
func unmountBelow(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow reads this process's mount table, in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []string
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if point := unescape(fields[4]); strings.HasPrefix(point, dir+"/") {
			mounts = append(mounts, point)
		}
	}
	return mounts, nil
}

// unescape undoes the kernel's \ooo for blanks and backslashes.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
