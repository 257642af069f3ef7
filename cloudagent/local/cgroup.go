package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where hosts mount their cgroup hierarchies.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupParent holds the cgroups of machines, at the top of every hierarchy: in depotd's own cgroup they would be ended
// with depotd's service.
const cgroupParent = "depot"

// leafCgroup is where a machine's own processes are in a unified hierarchy, which hands controllers down only from a cgroup
// without processes.
const leafCgroup = "init"

// hierarchy is one mounted cgroup hierarchy. A host has one (v2), several (v1), or both kinds (hybrid).
type hierarchy struct {
	mountPoint string
	unified    bool
	options    string // of a v1 mount: its controllers or its name
}

// readHierarchies reads /proc/self/mountinfo.
func readHierarchies() ([]hierarchy, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseHierarchies(string(data)), nil
}

func parseHierarchies(mountinfo string) []hierarchy {
	var found []hierarchy
	for line := range strings.Lines(mountinfo) {
		// 36 30 0:33 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
		before, after, ok := strings.Cut(line, " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(super) < 3 || !within(cgroupRoot, fields[4]) {
			continue
		}
		h := hierarchy{mountPoint: fields[4], unified: super[0] == "cgroup2", options: cgroupOptions(super[2])}
		if super[0] != "cgroup" && !h.unified {
			continue
		}
		// A later mount at the same place hides the earlier one.
		found = slices.DeleteFunc(found, func(o hierarchy) bool { return o.mountPoint == h.mountPoint })
		found = append(found, h)
	}
	return found
}

// cgroupOptions keeps what names a v1 hierarchy, from the options of its superblock.
func cgroupOptions(super string) string {
	options := slices.DeleteFunc(strings.Split(super, ","), func(o string) bool {
		return o == "rw" || o == "ro" || o == "clone_children" || strings.HasPrefix(o, "release_agent=")
	})
	return strings.Join(options, ",")
}

func within(parent, path string) bool {
	return path == parent || strings.HasPrefix(path, parent+"/")
}

func (h hierarchy) machine(name string) string {
	return filepath.Join(h.mountPoint, cgroupParent, name)
}

// join moves this process into the machine's cgroup. Somebody who takes the cgroup, still empty, for a dead machine's may
// remove it in between; then it is made again.
func (h hierarchy) join(name string) error {
	var err error
	for range 100 {
		if err = h.make(name); err != nil {
			continue
		}
		if err = writeFile(filepath.Join(h.machine(name), "cgroup.procs"), "0"); err == nil {
			return nil
		}
	}
	return fmt.Errorf("join cgroup %s: %w", h.machine(name), err)
}

func (h hierarchy) make(name string) error {
	for _, dir := range []string{filepath.Dir(h.machine(name)), h.machine(name)} {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as on any host
			return err
		}
		if h.unified {
			delegate(filepath.Dir(dir))
		} else if err := inheritCpuset(dir); err != nil {
			return err
		}
	}
	return nil
}

// delegate lets children of a cgroup use its controllers, as far as that can be had: they are wanted only for limits of
// single RUN steps.
func delegate(dir string) {
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for controller := range strings.FieldsSeq(string(controllers)) {
		_ = writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+controller)
	}
}

// inheritCpuset fills in what a new v1 cpuset does not have from the start, and without which no process can join it.
func inheritCpuset(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		mine, err := os.ReadFile(filepath.Join(dir, file))
		if errors.Is(err, os.ErrNotExist) {
			return nil // another controller
		}
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(mine)) != "" {
			continue
		}
		parents, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, file), strings.TrimSpace(string(parents))); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes the cgroups of a machine in all hierarchies. It fails with EBUSY while a process is in one of
// them, so its success proves that nothing of the machine runs.
func removeCgroups(name string) error {
	hierarchies, err := readHierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		if err := h.remove(name); err != nil {
			return err
		}
	}
	return nil
}

func (h hierarchy) remove(name string) error {
	top := h.machine(name)
	busy, err := h.populated(name)
	if err != nil {
		return err
	}
	if busy {
		return fmt.Errorf("remove cgroup %s: %w", top, unix.EBUSY)
	}
	if err := removeTree(top); err != nil {
		return err
	}
	_ = syscall.Rmdir(filepath.Dir(top)) // the last one turns off the light
	return nil
}

// populated reports whether the machine's first process, or in a unified hierarchy any process, is in its cgroup. A live
// machine's cgroups must not be touched: those of its RUN steps are empty for a moment.
func (h hierarchy) populated(name string) (bool, error) {
	file := filepath.Join(h.machine(name), "cgroup.procs")
	if h.unified {
		file = filepath.Join(h.machine(name), "cgroup.events")
	}
	data, err := os.ReadFile(file)
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if h.unified {
		return strings.Contains(string(data), "populated 1"), nil
	}
	return len(data) > 0, nil
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil && !gone(err) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// cgroupsOfMachines returns the names of all machines that have a cgroup, whoever launched them.
func cgroupsOfMachines() ([]string, error) {
	hierarchies, err := readHierarchies()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, h := range hierarchies {
		entries, err := os.ReadDir(filepath.Join(h.mountPoint, cgroupParent))
		if err != nil && !gone(err) {
			return nil, err
		}
		for _, entry := range entries {
			if entry.IsDir() && !slices.Contains(names, entry.Name()) {
				names = append(names, entry.Name())
			}
		}
	}
	return names, nil
}

// gone reports that a cgroup or its file does not exist (any more).
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// writeFile writes to a file that exists: in /proc, /sys and cgroups.
func writeFile(path, text string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Close())
}
