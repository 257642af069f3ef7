package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// leftovers finds whatever on this host still carries one of the names: the demo's directory, or a machine's id.
func leftovers(names []string) ([]string, error) {
	var left []string
	for _, look := range []func([]string) ([]string, error){processes, cgroups, namespaces, links, rules} {
		found, err := look(names)
		if err != nil {
			return nil, err
		}
		left = append(left, found...)
	}
	return left, nil
}

func anyIn(text []byte, names []string) bool {
	for _, n := range names {
		if n != "" && bytes.Contains(text, []byte(n)) {
			return true
		}
	}
	return false
}

// processes finds those that were started with a name in their arguments, and mounts in any process's namespace.
func processes(names []string) ([]string, error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var left []string
	seen := map[string]bool{}
	for _, p := range all {
		if filepath.Base(p) == fmt.Sprint(os.Getpid()) {
			continue
		}
		if args, _ := os.ReadFile(filepath.Join(p, "cmdline")); anyIn(args, names) { // a process may end while it is looked at
			left = append(left, fmt.Sprintf("process %s: %s", filepath.Base(p), bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
		}
		mounts, _ := os.ReadFile(filepath.Join(p, "mountinfo"))
		for line := range strings.Lines(string(mounts)) {
			if anyIn([]byte(line), names) && !seen[line] {
				seen[line] = true
				left = append(left, "mount: "+strings.TrimSpace(line))
			}
		}
	}
	return left, nil
}

func cgroups(names []string) ([]string, error) {
	var left []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed while it was looked at
		}
		if err == nil && e.IsDir() && anyIn([]byte(e.Name()), names) {
			left = append(left, "cgroup "+path)
			return fs.SkipDir
		}
		return err
	})
	return left, err
}

func namespaces(names []string) ([]string, error) {
	entries, err := os.ReadDir("/run/netns")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var left []string
	for _, e := range entries {
		if anyIn([]byte(e.Name()), names) {
			left = append(left, "network namespace "+e.Name())
		}
	}
	return left, err
}

// rules finds packet filter rules of a machine: their comment ends with the name of its link.
func rules(names []string) ([]string, error) {
	saved, err := exec.Command("iptables-save").Output() //nolint:noctx // prints and ends
	if err != nil {
		return nil, fmt.Errorf("list packet filter rules: %w", err)
	}
	var left []string
	for line := range strings.Lines(string(saved)) {
		if _, link, ok := strings.Cut(line, "depot:"); ok && carries(strings.Trim(strings.Fields(link)[0], `"`), names) {
			left = append(left, "packet filter rule "+strings.TrimSpace(line))
		}
	}
	return left, nil
}

// carries reports whether a link is a machine's: the local provider names it dp- and the last characters of the id.
func carries(link string, names []string) bool {
	end, ok := strings.CutPrefix(link, "dp-")
	return ok && slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, end) })
}

func links(names []string) ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var left []string
	for _, l := range all {
		if carries(l.Name, names) {
			left = append(left, "network link "+l.Name)
		}
	}
	return left, nil
}
