package apiserver

import (
	"bytes"
	"crypto/ed25519"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/depotctl/depot/bus"
)

// The events of a registration: a machine got bytes to sign, a machine proves who it is.
type (
	machineChallenged struct {
		attempt   int
		challenge string
	}
	machineRegistered struct {
		role     bus.Role // how it is connected: by its launch nonce, or by its credential
		attestor attestor // that its connection demands
		request  bus.MachineRegister
	}
)

func (machineChallenged) name() string { return "challenged" }
func (machineRegistered) name() string { return "registered" }

// challenged replaces whatever challenge was outstanding: there is one at a time.
func (m *Machine) challenged(ev machineChallenged, at moment) error {
	if err := m.mayRegister(ev.attempt); err != nil {
		return err
	}
	m.Challenge, m.ChallengeEnd = ev.challenge, at.now.Add(at.Challenge)
	return nil
}

func (m Machine) mayRegister(attempt int) error {
	if attempt != m.Attempt {
		return bus.Faultf(bus.CodeForbidden, "machine %s is at attempt %d, not %d", m.ID, m.Attempt, attempt)
	}
	if !m.in(MachineLaunching, MachineStarting, MachineBooting, MachineRegistered, MachineServing, MachineDraining) {
		return bus.Faultf(bus.CodeForbidden, "machine %s is %s", m.ID, m.State)
	}
	return nil
}

// registered accepts a machine, or says which of the bindings failed. That its connection was opened with the nonce
// of this attempt was checked by the callout; here the nonce is used up, the challenge is used up and the key is
// bound, all in the one write that follows.
func (m *Machine) registered(ev machineRegistered, at moment) ([]effect, error) {
	r := ev.request
	if err := m.mayRegister(r.Attempt); err != nil {
		return nil, err
	}
	switch {
	case ev.role == bus.RoleNewMachine && m.NonceHash == "":
		return nil, refused("no launch of machine %s was announced", m.ID)
	case m.IdentityKey != "" && m.IdentityKey != r.IdentityKey:
		return nil, refused("machine %s is bound to another key", m.ID)
	case m.IdentityKey == "" && (ev.role != bus.RoleNewMachine || m.NonceUsed):
		return nil, refused("machine %s has no unused launch nonce", m.ID)
	case m.Challenge == "" || subtle.ConstantTimeCompare([]byte(m.Challenge), []byte(r.Challenge)) != 1:
		return nil, refused("the challenge is not the outstanding one of machine %s", m.ID)
	case !at.now.Before(m.ChallengeEnd):
		return nil, refused("the challenge of machine %s has expired", m.ID)
	}
	if err := verifySignature(m.ID, r); err != nil {
		return nil, refused("machine %s does not hold the key it shows: %v", m.ID, err)
	}
	if err := ev.attestor.verify(*m, r.Attestation); err != nil {
		return nil, refused("attestation of machine %s: %v", m.ID, err)
	}
	m.Challenge, m.NonceUsed, m.IdentityKey, m.UserKey = "", true, r.IdentityKey, r.UserKey
	if !m.in(MachineLaunching, MachineStarting, MachineBooting) {
		return nil, nil // a mere restart of the agent
	}
	m.enter(MachineRegistered, "", at)
	return m.tell(at, "the machine has registered"), nil
}

func refused(format string, args ...any) error { return bus.Faultf(bus.CodeForbidden, format, args...) }

// verifySignature proves that whoever sent r holds the private half of the key in it.
func verifySignature(id bus.MachineID, r bus.MachineRegister) error {
	block, rest := pem.Decode([]byte(r.IdentityKey))
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return errors.New("identity key is not one public key in PEM")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("parse identity key: %w", err)
	}
	key, ok := public.(ed25519.PublicKey)
	if !ok {
		return fmt.Errorf("identity key is %T, want Ed25519", public)
	}
	signature, err := base64.StdEncoding.DecodeString(r.Signature)
	if err != nil {
		return fmt.Errorf("decode signature: %w", err)
	}
	if !ed25519.Verify(key, bus.RegistrationDigest(id, r), signature) {
		return errors.New("signature does not match")
	}
	return nil
}

// attestor checks evidence about a machine beyond nonce and key. It does no I/O.
type attestor interface {
	verify(m Machine, a bus.Attestation) error
}

// attestors are the kinds that a connection may demand.
var attestors = map[string]attestor{AttestorNonce: nonceAttestor{}}

// AttestorNonce is the attestor that demands nothing beyond nonce and key.
const AttestorNonce = "nonce"

type nonceAttestor struct{}

func (nonceAttestor) verify(_ Machine, a bus.Attestation) error {
	if a.Kind != AttestorNonce {
		return fmt.Errorf("kind %q, want %q", a.Kind, AttestorNonce)
	}
	return nil
}
