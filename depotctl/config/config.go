package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/depotctl/depot/bus"
)

// DefaultServer is where depotd listens and where depotctl looks when nobody says otherwise.
const DefaultServer = "nats://127.0.0.1:4250"

// Config is what a user has stored.
type Config struct {
	// Server is the address of the bus; empty means DefaultServer.
	Server string
	// CAFile is the PEM file that the server's certificate chains to; empty means the system's roots.
	CAFile string
	// Token is the user's credential; the zero Token means: not logged in.
	Token bus.Token
}

// stored is the form on disk. It is the one place where a token is written out.
type stored struct {
	Server string `json:"server,omitempty"`
	CAFile string `json:"ca_file,omitempty"`
	Token  string `json:"token,omitempty"`
}

// File is where a configuration is stored, and whose it is.
type File struct {
	// Path of the file.
	Path string
	// Owner gets the file and the directories that Save makes; nil means whoever runs the process.
	Owner *Owner
}

// Owner is the user on whose behalf another one writes.
type Owner struct{ UID, GID int }

// Default is the file of the user who runs the process.
func Default() (File, error) {
	dir, err := configHome(os.Getenv)
	if err != nil {
		return File{}, err
	}
	return File{Path: filepath.Join(dir, "depot", "config.json")}, nil
}

func configHome(env func(string) string) (string, error) {
	if dir := env("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return dir, nil
	}
	if home := env("HOME"); home != "" {
		return filepath.Join(home, ".config"), nil
	}
	return "", errors.New("find the configuration file: neither XDG_CONFIG_HOME nor HOME is set")
}

// Load reads the file. A file that does not exist is an empty Config, not an error.
func (f File) Load() (Config, error) {
	text, err := os.ReadFile(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration file: %w", err)
	}
	var s stored
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil {
		return Config{}, fmt.Errorf("%s is not a valid configuration file: %w", f.Path, oneLine(err))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%s is not a valid configuration file: there is text after its end", f.Path)
	}
	c := Config{Server: s.Server, CAFile: s.CAFile}
	if s.Token != "" {
		if c.Token, err = bus.ParseToken(s.Token); err != nil {
			return Config{}, fmt.Errorf("%s: token: %w", f.Path, err)
		}
	}
	return c, nil
}

// oneLine turns the decoder's bare io.EOF into words.
func oneLine(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it ends too early")
	}
	return err
}

// Save replaces the file: mode 0600, the whole file or nothing.
func (f File) Save(c Config) error {
	s := stored{Server: c.Server, CAFile: c.CAFile}
	if !c.Token.IsZero() {
		s.Token = c.Token.Reveal()
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write the configuration file: %w", err)
	}
	if err := f.makeDirectory(filepath.Dir(f.Path)); err != nil {
		return fmt.Errorf("write the configuration file: %w", err)
	}
	if err := f.replace(append(text, '\n')); err != nil {
		return fmt.Errorf("write the configuration file: %w", err)
	}
	return nil
}

// makeDirectory makes dir and what it lies in; only directories that did not exist change hands.
func (f File) makeDirectory(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := f.makeDirectory(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	if f.Owner == nil {
		return nil
	}
	return os.Lchown(dir, f.Owner.UID, f.Owner.GID)
}

func (f File) replace(text []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(f.Path), ".config-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails after the rename, as it should
	_, err = tmp.Write(text)
	if err == nil && f.Owner != nil {
		err = tmp.Chown(f.Owner.UID, f.Owner.GID)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), f.Path)
}

// Remove deletes the file; one that does not exist is fine.
func (f File) Remove() error {
	if err := os.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the configuration file: %w", err)
	}
	return nil
}
