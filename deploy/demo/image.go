package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// descriptor is what the OCI image format calls so, with what is read of an index and of a manifest.
type descriptor struct {
	MediaType string
	Digest    string
	Platform  struct{ OS, Architecture string }
	Manifests []descriptor
	Config    *descriptor
	Layers    []descriptor
}

// runImage unpacks an image archive and runs its entry point with the image as its root.
func runImage(ctx context.Context, archive, root string) error {
	blobs, err := readArchive(archive)
	if err != nil {
		return fmt.Errorf("read %s: %w", archive, err)
	}
	manifest, err := findManifest(blobs, blobs["index.json"])
	if err != nil {
		return fmt.Errorf("read %s: %w", archive, err)
	}
	for _, layer := range manifest.Layers {
		if err := unpack(blobs[blobName(layer)], root); err != nil {
			return fmt.Errorf("unpack layer %s: %w", layer.Digest, err)
		}
	}
	var config struct{ Config struct{ Entrypoint []string } }
	if err := json.Unmarshal(blobs[blobName(*manifest.Config)], &config); err != nil {
		return fmt.Errorf("read the image's configuration: %w", err)
	}
	entry := config.Config.Entrypoint
	fmt.Printf("%d layers, entry point %v:\n", len(manifest.Layers), entry)
	cmd := exec.CommandContext(ctx, entry[0], entry[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s out of the image: %w", entry[0], err)
	}
	return nil
}

func blobName(d descriptor) string { return "blobs/" + strings.Replace(d.Digest, ":", "/", 1) }

func readArchive(path string) (map[string][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blobs := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return blobs, nil
		}
		if err != nil {
			return nil, err
		}
		if blobs[h.Name], err = io.ReadAll(r); err != nil {
			return nil, err
		}
	}
}

// findManifest follows indexes to the image of this machine's architecture; an attestation has another platform.
func findManifest(blobs map[string][]byte, from []byte) (descriptor, error) {
	var d descriptor
	if err := json.Unmarshal(from, &d); err != nil {
		return d, err
	}
	if d.Config != nil {
		return d, nil
	}
	for _, m := range d.Manifests {
		if a := m.Platform.Architecture; a == "" || a == runtime.GOARCH {
			return findManifest(blobs, blobs[blobName(m)])
		}
	}
	return d, fmt.Errorf("there is no image for %s in it", runtime.GOARCH)
}

func unpack(layer []byte, root string) error {
	z, err := gzip.NewReader(strings.NewReader(string(layer)))
	if err != nil {
		return err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(root, filepath.Clean("/"+h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o750)
		} else {
			err = writeFile(path, r, h.FileInfo().Mode())
		}
		if err != nil {
			return err
		}
	}
}

func writeFile(path string, from io.Reader, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode.Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}
