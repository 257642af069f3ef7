package bus

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"strings"
)

const redacted = "[redacted]"

// Secret is text that prints, logs and marshals as "[redacted]". Reveal is the only way to its content.
type Secret struct{ text string }

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the content: for the one place that must use it.
func (s Secret) Reveal() string { return s.text }

// IsZero reports whether there is no content.
func (s Secret) IsZero() bool { return s.text == "" }

// String returns "[redacted]".
func (s Secret) String() string { return redacted }

// Format prints "[redacted]" for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue logs "[redacted]".
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText marshals "[redacted]", in JSON too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

const tokenPrefix = "depot"

// Token is the credential of a user, a CI job or a cloud-agent: depot_<id>_<secret>_<checksum>. The checksum lets
// anyone refuse a mistyped token without asking; only the SHA-256 of the text is ever stored.
type Token struct {
	ID   TokenID
	text string
}

// NewToken makes a token with 256 random bits.
func NewToken() Token {
	id := NewTokenID()
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand
	body := tokenPrefix + "_" + string(id) + "_" + hex.EncodeToString(b[:])
	return Token{ID: id, text: body + "_" + checksum(body)}
}

// ParseToken checks the form and the checksum. It does not say whether the token is known, expired or revoked.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	parts := strings.Split(text, "_")
	if len(parts) != 4 || parts[0] != tokenPrefix || !sha256Hex.MatchString(parts[2]) {
		return Token{}, errors.New("not a depot token (want depot_tok-…)")
	}
	if parts[3] != checksum(strings.Join(parts[:3], "_")) {
		return Token{}, errors.New("the token is damaged: its checksum does not match; copy it again in full")
	}
	id := TokenID(parts[1])
	if err := id.Validate(); err != nil {
		return Token{}, errors.New("not a depot token (want depot_tok-…)")
	}
	return Token{ID: id, text: text}, nil
}

func checksum(body string) string { return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(body))) }

// Reveal returns the token's text, for the user's eyes, the config file or the wire to the callout.
func (t Token) Reveal() string { return t.text }

// Hash returns what is stored of the token: the hexadecimal SHA-256 of its text.
func (t Token) Hash() string { return hashText(t.text) }

// IsZero reports whether there is no token.
func (t Token) IsZero() bool { return t.text == "" }

// String returns the token's id and no secret.
func (t Token) String() string { return tokenPrefix + "_" + string(t.ID) + "_" + redacted }

// Format prints String for every verb.
func (t Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(t.String())) }

// LogValue logs String.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText marshals String, in JSON too.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

func hashText(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// Nonce is the launch secret of one attempt of one machine: the credential with which the machine first connects.
type Nonce struct {
	Machine MachineID
	Attempt int
	secret  string
}

// LaunchNonce derives the nonce of an attempt from the agent's connection token: the same on every retry and on every
// replica of the agent, and unknown to everybody else. It panics without a token, from which anybody could derive it.
func LaunchNonce(connection Token, machine MachineID, attempt int) Nonce {
	if connection.IsZero() {
		panic("bus: a launch nonce needs the connection's token")
	}
	key := hmac.New(sha256.New, []byte(connection.text))
	fmt.Fprint(key, "depot launch nonce v1")
	mac := hmac.New(sha256.New, key.Sum(nil))
	fmt.Fprintf(mac, "%s/%d", machine, attempt)
	return Nonce{Machine: machine, Attempt: attempt, secret: base64.RawURLEncoding.EncodeToString(mac.Sum(nil))}
}

// Reveal returns the nonce's text, nonce.<machine>.<attempt>.<secret>: for user data and for the machine's first connection.
func (n Nonce) Reveal() string { return fmt.Sprintf("nonce.%s.%d.%s", n.Machine, n.Attempt, n.secret) }

// ParseNonce reads the text of Reveal.
func ParseNonce(text string) (Nonce, error) {
	parts := strings.Split(text, ".")
	if len(parts) != 4 || parts[0] != "nonce" || len(parts[3]) != 43 {
		return Nonce{}, errors.New("not a launch nonce")
	}
	n := Nonce{Machine: MachineID(parts[1]), secret: parts[3]}
	if _, err := fmt.Sscanf(parts[2], "%d", &n.Attempt); err != nil {
		return Nonce{}, fmt.Errorf("not a launch nonce: attempt: %w", err)
	}
	if n.Reveal() != text {
		return Nonce{}, errors.New("not a launch nonce: not canonical")
	}
	if err := errors.Join(n.Machine.Validate(), validateAttempt(n.Attempt)); err != nil {
		return Nonce{}, fmt.Errorf("not a launch nonce: %w", err)
	}
	return n, nil
}

// Hash returns what is reported of the nonce before the launch: the hexadecimal SHA-256 of its text.
func (n Nonce) Hash() string { return hashText(n.Reveal()) }

// String names machine and attempt and no secret.
func (n Nonce) String() string { return fmt.Sprintf("nonce.%s.%d.%s", n.Machine, n.Attempt, redacted) }

// Format prints String for every verb.
func (n Nonce) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(n.String())) }

// LogValue logs String.
func (n Nonce) LogValue() slog.Value { return slog.StringValue(n.String()) }

// MarshalText marshals String, in JSON too.
func (n Nonce) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// RegistrationDigest is what a machine signs with its identity key when it registers. Every field that must not be
// swapped is in it, length-prefixed so that no two sets of fields give the same bytes.
func RegistrationDigest(machine MachineID, r MachineRegister) []byte {
	h := sha256.New()
	for _, field := range []string{
		"depot machine registration v1", string(machine), fmt.Sprint(r.Attempt), r.Challenge, r.IdentityKey, r.UserKey, r.Attestation.Kind, r.Attestation.Document,
	} {
		fmt.Fprintf(h, "%d:%s,", len(field), field)
	}
	return h.Sum(nil)
}
