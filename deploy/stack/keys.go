package stack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/depotctl/depot/bus"
)

// keys are the secrets of an installation. They are made at its first start and never leave its directory, but for the
// user's token, which also goes into that user's configuration file.
type keys struct {
	trust       *bus.Trust
	user, agent bus.Token
}

func openKeys(d *directory) (keys, error) {
	var k keys
	var err error
	if k.trust, err = openTrust(d); err != nil {
		return k, err
	}
	if k.user, err = openToken(d.file("user-token")); err != nil {
		return k, err
	}
	k.agent, err = openToken(d.file("agent-token"))
	return k, err
}

// openTrust makes new key material only where there is nothing that old material has signed.
func openTrust(d *directory) (*bus.Trust, error) {
	trust, err := bus.LoadTrust(d.file("trust"))
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return trust, err
	}
	if _, err := os.Stat(d.file("bus")); err == nil {
		return nil, bus.Faultf(bus.CodeConflict, "%s holds the state of an installation, but its key material (trust) is gone", d.path).
			WithHint("put the directory trust back from a backup, or start with an empty state directory")
	}
	if trust, err = bus.NewTrust(); err != nil {
		return nil, err
	}
	if err := trust.Save(d.file("trust")); err != nil {
		return nil, cannotUse(d.path, err)
	}
	return trust, nil
}

// openToken reads a token, or makes and keeps one.
func openToken(path string) (bus.Token, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		token, err := bus.ParseToken(string(text))
		if err != nil {
			return token, fmt.Errorf("%s: %w", path, err)
		}
		return token, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return bus.Token{}, cannotUse(filepath.Dir(path), err)
	}
	token := bus.NewToken()
	if err := writePrivate(path, token.Reveal()+"\n"); err != nil {
		return bus.Token{}, cannotUse(filepath.Dir(path), err)
	}
	return token, nil
}

// writePrivate writes a file that only root can read: the whole of it or nothing, and on disk when it returns.
func writePrivate(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
