package bus

import (
	"errors"
	"fmt"
	"time"
)

// MachineChallenge is what a machine signs to prove that it holds its key: 32 random bytes in base64, single use, 60 s.
type MachineChallenge struct {
	Challenge string `json:"challenge"`
}

// Validate requires the bytes.
func (m MachineChallenge) Validate() error {
	return required("challenge", m.Challenge)
}

// MachineRegister is a machine's claim to be the one that was launched. That it holds the launch nonce was proved when
// it connected (the nonce is its token); the signature proves the key; the attestation is the cloud's own word.
type MachineRegister struct {
	Attempt     int         `json:"attempt"`
	IdentityKey string      `json:"identity_key"` // PEM, PKIX, Ed25519: bound to the machine for its life
	UserKey     string      `json:"user_key"`     // public NATS user nkey, whose JWT is the answer
	Challenge   string      `json:"challenge"`
	Signature   string      `json:"signature"` // base64, by IdentityKey over RegistrationDigest
	Attestation Attestation `json:"attestation"`
	Version     string      `json:"version"`
}

// Attestation is evidence of a pluggable kind.
type Attestation struct {
	Kind     string `json:"kind"`     // "nonce" (nothing beyond nonce and key) or "aws"
	Document string `json:"document"` // base64; for aws the RSA-2048 PKCS7
}

// Validate checks the form.
func (m MachineRegister) Validate() error {
	return errors.Join(validateAttempt(m.Attempt),
		validatePEM("identity_key", m.IdentityKey),
		required("user_key", m.UserKey), required("challenge", m.Challenge), required("signature", m.Signature), required("attestation.kind", m.Attestation.Kind))
}

func required(field, text string) error {
	if text == "" {
		return fmt.Errorf("%s is empty", field)
	}
	return nil
}

// MachineCredential is a user JWT for the machine's own NATS key: useless without that key, so no bearer secret travels.
type MachineCredential struct {
	JWT       string    `json:"jwt"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Validate requires the JWT.
func (m MachineCredential) Validate() error {
	return required("jwt", m.JWT)
}

// LeaseCSR is a machine's certificate request for one lease, with a key made for that lease alone.
type LeaseCSR struct {
	Lease LeaseID `json:"lease"`
	CSR   string  `json:"csr"` // PEM
}

// LeaseRef names a lease and the generation of its certificates.
type LeaseRef struct {
	Lease      LeaseID `json:"lease"`
	Generation int     `json:"generation"`
}

// Instruct is a machine's question "what shall I do?", asked at every start, at every hint and every RefreshSeconds. It also says
// what the machine is doing, so that one verb carries the whole level-triggered conversation.
type Instruct struct {
	Daemon    DaemonStatus `json:"daemon"`
	Addresses []string     `json:"addresses"` // host:port of the front, to be tried in order; empty until it listens
	Serving   []LeaseRef   `json:"serving"`   // whose roots are installed
	CSRs      []LeaseCSR   `json:"csrs"`      // for leases it was hinted at, or was told are Wanted
}

// Validate checks leases and state.
func (m Instruct) Validate() error {
	errs := []error{m.Daemon.Validate()}
	for _, l := range m.Serving {
		errs = append(errs, l.Lease.Validate())
	}
	for _, l := range m.CSRs {
		errs = append(errs, l.Lease.Validate(), validatePEM("csr", l.CSR))
	}
	return errors.Join(errs...)
}

// DaemonState is the state of a machine's buildkitd.
type DaemonState string

// The states of a daemon. It is ready once it has answered an RPC through the machine's own front.
const (
	DaemonStopped  DaemonState = "stopped"
	DaemonStarting DaemonState = "starting"
	DaemonReady    DaemonState = "ready"
	DaemonFailed   DaemonState = "failed"
)

// DaemonStatus is the state of a machine's daemon and why.
type DaemonStatus struct {
	State   DaemonState `json:"state"`
	Reason  string      `json:"reason"`
	Version string      `json:"version"`
}

// Validate refuses an unknown state.
func (m DaemonStatus) Validate() error {
	switch m.State {
	case DaemonStopped, DaemonStarting, DaemonReady, DaemonFailed:
		return nil
	}
	return fmt.Errorf("%q is not a daemon state", string(m.State))
}

// MachineDesire is what a machine as a whole shall do.
type MachineDesire string

// The desires.
const (
	DesireServe MachineDesire = "serve" // run the daemon, serve the leases
	DesireDrain MachineDesire = "drain" // keep the leases that live, take no new ones
	DesireStop  MachineDesire = "stop"  // stop the daemon, sync, say goodbye
)

// Instruction answers Instruct: everything that the machine shall serve. A lease that is not in it has ended, and its
// connections are cut.
type Instruction struct {
	Desire         MachineDesire `json:"desire"`
	Leases         []LeaseGrant  `json:"leases"`
	Wanted         []LeaseID     `json:"wanted"` // leases that still need a CSR from the machine
	RefreshSeconds int           `json:"refresh_seconds"`
	Revision       uint64        `json:"revision"` // of the machine's record; a machine ignores an instruction older than one it has seen
}

// Validate checks leases and desire.
func (m Instruction) Validate() error {
	errs := []error{}
	switch m.Desire {
	case DesireServe, DesireDrain, DesireStop:
	default:
		errs = append(errs, fmt.Errorf("%q is not a desire", string(m.Desire)))
	}
	for _, l := range m.Leases {
		errs = append(errs, l.Lease.Validate(), l.Build.Validate(), validatePEM("ca", l.CA), validatePEM("certificate", l.Certificate), validateHash("client_spki", l.ClientSPKI))
	}
	for _, l := range m.Wanted {
		errs = append(errs, l.Validate())
	}
	return errors.Join(errs...)
}

// LeaseGrant is one lease that a machine shall serve: the root that its client must chain to, the client's key, and
// the server certificate for the key of the machine's CSR.
type LeaseGrant struct {
	Lease       LeaseID   `json:"lease"`
	Build       BuildID   `json:"build"`
	Generation  int       `json:"generation"`
	CA          string    `json:"ca"`          // PEM
	Certificate string    `json:"certificate"` // PEM, the server leaf
	ClientSPKI  string    `json:"client_spki"` // hexadecimal SHA-256 of the client key's SubjectPublicKeyInfo
	Deadline    time.Time `json:"deadline"`    // when the front ends it by itself: the certificates' end
}

// LiveLease is the sign of life of one lease at the front.
type LiveLease struct {
	Lease       LeaseID `json:"lease"`
	Connections int     `json:"connections"`
}

// MachineReport is a machine's sign of life: a core message, on change and every 5 s, never stored.
type MachineReport struct {
	DiskFreeBytes  int64       `json:"disk_free_bytes"`
	DiskTotalBytes int64       `json:"disk_total_bytes"`
	CacheBytes     int64       `json:"cache_bytes"`
	Live           []LiveLease `json:"live"`
	At             time.Time   `json:"at"`
}

// Validate checks the leases.
func (m MachineReport) Validate() error {
	for _, l := range m.Live {
		if err := l.Lease.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// MachineGoodbye is a machine's last word before it ends. Clean means: BuildKit stopped and the file system synced.
type MachineGoodbye struct {
	Clean  bool   `json:"clean"`
	Reason string `json:"reason"`
}

// Validate accepts everything.
func (m MachineGoodbye) Validate() error { return nil }

// MachineHint says "ask me" to a machine. It names a lease so that the machine can make its key while it asks; what
// is believed is only the answer to Instruct.
type MachineHint struct {
	Lease LeaseID `json:"lease"` // may be empty
}

// Validate checks the lease if there is one.
func (m MachineHint) Validate() error { return optional(m.Lease) }
