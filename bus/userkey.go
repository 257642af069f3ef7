package bus

import (
	"fmt"
	"strings"

	"github.com/nats-io/nkeys"
)

// UserKey is a machine's own key on the bus. The public half goes into its registration; the answer is a JWT that is
// useless without the private half, which signs the server's nonce at each connection and never travels.
type UserKey struct {
	pair   nkeys.KeyPair
	public string
}

// NewUserKey makes a key.
func NewUserKey() (*UserKey, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return nil, fmt.Errorf("make user key: %w", err)
	}
	return newUserKey(pair)
}

// ParseUserKey reads the text of Seed.
func ParseUserKey(seed Secret) (*UserKey, error) {
	pair, err := nkeys.FromSeed([]byte(strings.TrimSpace(seed.Reveal())))
	if err != nil {
		return nil, fmt.Errorf("read user key: %w", err)
	}
	return newUserKey(pair)
}

func newUserKey(pair nkeys.KeyPair) (*UserKey, error) {
	public, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("read user key: %w", err)
	}
	if !nkeys.IsValidPublicUserKey(public) {
		return nil, fmt.Errorf("read user key: %s is not a user's", public)
	}
	return &UserKey{pair: pair, public: public}, nil
}

// Public returns the public half: what MachineRegister.UserKey carries.
func (k *UserKey) Public() string { return k.public }

// Seed returns the private half, for a file that only its owner can read.
func (k *UserKey) Seed() (Secret, error) {
	seed, err := k.pair.Seed()
	if err != nil {
		return Secret{}, fmt.Errorf("read user key: %w", err)
	}
	return NewSecret(string(seed)), nil
}

// Sign signs the server's nonce: what UserCredential.Sign is for.
func (k *UserKey) Sign(nonce []byte) ([]byte, error) { return k.pair.Sign(nonce) }

// String returns the public half.
func (k *UserKey) String() string { return k.public }

// Format prints the public half for every verb.
func (k *UserKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.public)) }
