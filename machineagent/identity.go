package machineagent

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/depotctl/depot/bus"
)

// The files of the state directory that make a machine the same machine after a restart. The cache volume, which may
// go to another machine, has none of them.
const (
	identityFile   = "identity.pem"
	userKeyFile    = "user.nk"
	credentialFile = "credential.json" //nolint:gosec // G101: a file name
)

// identity is the machine's two keys, and the credential that the API server gave to the second one.
type identity struct {
	machine bus.MachineID
	attempt int
	dir     string
	key     ed25519.PrivateKey // proves at registration that this is the same machine
	user    *bus.UserKey       // authenticates connections to the bus

	credential bus.MachineCredential // empty before the registration
}

// loadIdentity reads the identity, and makes what is not there yet.
func loadIdentity(data bus.UserData) (*identity, error) {
	id := &identity{machine: data.Machine, attempt: data.Attempt, dir: data.StateDir}
	var err error
	if id.key, err = loadKey(filepath.Join(id.dir, identityFile)); err != nil {
		return nil, fmt.Errorf("load identity key: %w", err)
	}
	if id.user, err = loadUserKey(filepath.Join(id.dir, userKeyFile)); err != nil {
		return nil, fmt.Errorf("load key for the bus: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(id.dir, credentialFile))
	if err == nil {
		// One that cannot be read is as good as none: the machine registers again.
		_ = json.Unmarshal(text, &id.credential)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("load credential: %w", err)
	}
	return id, nil
}

func loadKey(path string) (ed25519.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is not a key in PEM", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is %T, want Ed25519", path, key)
	}
	return private, nil
}

func makeKey(path string) (ed25519.PrivateKey, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	return private, writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func loadUserKey(path string) (*bus.UserKey, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		return bus.ParseUserKey(bus.NewSecret(string(text)))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := bus.NewUserKey()
	if err != nil {
		return nil, err
	}
	seed, err := key.Seed()
	if err != nil {
		return nil, err
	}
	return key, writeFile(path, []byte(seed.Reveal()))
}

// writeFile makes a file that only its owner can read, and that is whole or absent after a crash.
func writeFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// keep stores a new credential. That it could not be stored costs a registration at the next start, and nothing else.
func (id *identity) keep(c bus.MachineCredential) error {
	id.credential = c
	text, err := json.Marshal(c) //nolint:gosec // G117: the JWT is worth nothing without the key
	if err != nil {
		return fmt.Errorf("store credential: %w", err)
	}
	if err := writeFile(filepath.Join(id.dir, credentialFile), text); err != nil {
		return fmt.Errorf("store credential: %w", err)
	}
	return nil
}

// current returns the credential for the bus, unless there is none that is good for a while.
func (id *identity) current(now time.Time) (*bus.UserCredential, bool) {
	if id.credential.JWT == "" || now.Add(5*time.Second).After(id.credential.ExpiresAt) {
		return nil, false
	}
	return &bus.UserCredential{Machine: id.machine, JWT: id.credential.JWT, Sign: id.user.Sign}, true
}

// claim is the registration for a challenge: everything in it is signed by the identity key.
func (id *identity) claim(challenge string, evidence bus.Attestation, version string) (bus.MachineRegister, error) {
	der, err := x509.MarshalPKIXPublicKey(id.key.Public())
	if err != nil {
		return bus.MachineRegister{}, fmt.Errorf("write identity key: %w", err)
	}
	r := bus.MachineRegister{
		Attempt: id.attempt, IdentityKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		UserKey: id.user.Public(), Challenge: challenge, Attestation: evidence, Version: strings.TrimSpace(version),
	}
	r.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(id.key, bus.RegistrationDigest(id.machine, r)))
	return r, nil
}
