package depotctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker/buildx/store"

	"github.com/depotctl/depot/bus"
)

// The one builder instance that buildx sees, and how its nodes are called.
const (
	builderName    = "depot"
	endpointScheme = "depot://"
	defaultNode    = "default"
)

// How much of buildx's history of builds is kept: it never deletes any itself.
const (
	refsKept   = 50
	refsAtMost = 100
	refsMinAge = time.Hour // a younger one may belong to a build that runs
)

// stateDir is buildx's own directory. It persists, because the identity in it (.buildNodeID) is part of the key by
// which BuildKit recognizes a context: with a new one every context is uploaded in full.
type stateDir struct {
	path      string
	temporary bool
}

// openState prepares $XDG_STATE_HOME/depotctl/buildx, or a temporary directory if that cannot be written.
func openState(stderr io.Writer) (*stateDir, error) {
	path, err := statePath()
	if err == nil {
		s := &stateDir{path: path}
		if err = s.prepare(); err == nil {
			return s, nil
		}
	}
	fmt.Fprintf(stderr, "depotctl: warning: the state directory cannot be used (%v); with a temporary one, contexts are uploaded in full\n", err)
	tmp, err := os.MkdirTemp("", "depotctl-")
	if err != nil {
		return nil, failf(ExitFailed, "make a temporary state directory: %v", err).
			hint("make room in %s, or set XDG_STATE_HOME to a directory that can be written", os.TempDir()).because(err)
	}
	s := &stateDir{path: tmp, temporary: true}
	if err := s.prepare(); err != nil {
		return nil, failf(ExitFailed, "make a temporary state directory: %v", err).
			hint("make room in %s, or set XDG_STATE_HOME to a directory that can be written", os.TempDir()).because(err)
	}
	return s, nil
}

func statePath() (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(dir, "depotctl", "buildx"), nil
}

// prepare makes sure that the instance file is there, and that buildx will be able to write beside it.
func (s *stateDir) prepare() error {
	dir := filepath.Join(s.path, "instances")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	want, err := instance()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, builderName)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return probeWrite(s.path)
	}
	return replaceFile(path, want)
}

func probeWrite(dir string) error {
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString("probe")
	for _, step := range []func() error{f.Close, func() error { return os.Remove(f.Name()) }} {
		if e := step(); err == nil {
			err = e
		}
	}
	return err
}

// replaceFile is atomic: builds that start at the same moment must never read half an instance file.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(content)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// instance is the content of the instance file. It is the same for every build. The first node serves builds without a
// platform: which architecture that is, the project decides. It lists no platform, so no explicit one leads there.
func instance() ([]byte, error) {
	group := store.NodeGroup{Name: builderName, Driver: builderName, Nodes: []store.Node{node(defaultNode, nil)}}
	for _, s := range served {
		group.Nodes = append(group.Nodes, node(string(s.arch), s.platforms))
	}
	return json.Marshal(group)
}

func node(name string, specs []string) store.Node {
	return store.Node{Name: name, Endpoint: endpointScheme + name, Platforms: parsePlatforms(specs)}
}

// prune removes the oldest of buildx's notes about past builds; what cannot be removed stays for the next time.
func (s *stateDir) prune(now time.Time) {
	for _, n := range append([]bus.Arch{defaultNode}, bus.AMD64, bus.ARM64) {
		dir := filepath.Join(s.path, "refs", builderName, string(n))
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) <= refsAtMost {
			continue
		}
		infos := make([]fs.FileInfo, 0, len(entries))
		for _, e := range entries {
			if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > refsMinAge {
				infos = append(infos, info)
			}
		}
		slices.SortFunc(infos, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
		for _, info := range infos[:max(0, len(infos)-refsKept)] {
			_ = os.Remove(filepath.Join(dir, info.Name()))
		}
	}
}

// close removes a temporary directory, and prunes a persistent one.
func (s *stateDir) close() {
	if s.temporary {
		_ = os.RemoveAll(s.path)
		return
	}
	s.prune(time.Now())
}
