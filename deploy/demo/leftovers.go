package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// leftovers finds whatever on this host still carries one of the names: the demo's directory, or a machine's id.
func leftovers(names []string) ([]string, error) {
	var left []string
	for _, look := range []func([]string) ([]string, error){processes, cgroups, namespaces, links} {
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

func links(names []string) ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var left []string
	for _, l := range all {
		if anyIn([]byte(l.Name), names) {
			left = append(left, "network link "+l.Name)
		}
	}
	return left, nil
}
