package apiserver

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/certs"
)

// Lease is a machine's side of a lease: who may connect, until when, and the set of certificates. The set is
// committed as a whole; the key of the authority that signed it was never stored.
type Lease struct {
	Build     bus.BuildID `json:"build"`
	ClientCSR string      `json:"client_csr"`
	TakenAt   time.Time   `json:"taken_at"`
	Deadline  time.Time   `json:"deadline"` // when the front ends it by itself

	Generation        int    `json:"generation"` // of the set; 0 means none yet
	MachineCSR        string `json:"machine_csr"`
	CA                string `json:"ca"`
	ServerCertificate string `json:"server_certificate"`
	ClientCertificate string `json:"client_certificate"`
	ClientSPKI        string `json:"client_spki"`
}

// leaseTail is how much longer than its build a lease is good for, so that the build's own deadline comes first.
const leaseTail = 60 * time.Second

// newLease is the right of one build's client to one machine.
func newLease(b Build, at moment) Lease {
	return Lease{Build: b.ID, ClientCSR: b.ClientCSR, TakenAt: at.now, Deadline: b.Deadline.Add(leaseTail)}
}

// certify makes the next set of certificates of a lease for the machine's request. The authority exists only in here.
func certify(m Machine, id bus.LeaseID, csr string, now time.Time) (machineCertified, error) {
	l := m.Leases[id]
	authority, err := certs.NewAuthority(certs.Lease{
		ID: string(id), Build: string(l.Build), Project: string(m.Project), Organization: string(m.Organization),
	}, now, l.Deadline)
	if err != nil {
		return machineCertified{}, fmt.Errorf("certify lease %s: %w", id, err)
	}
	defer authority.Forget()
	ev := machineCertified{lease: id, csr: csr, ca: authority.CA(), generation: l.Generation + 1}
	if ev.server, err = authority.SignServer(csr); err != nil {
		return machineCertified{}, fmt.Errorf("certify lease %s: %w", id, err)
	}
	if ev.client, err = authority.SignClient(l.ClientCSR); err != nil {
		return machineCertified{}, fmt.Errorf("certify lease %s: %w", id, err)
	}
	if ev.clientSPKI, err = certs.SPKI(l.ClientCSR); err != nil {
		return machineCertified{}, fmt.Errorf("certify lease %s: %w", id, err)
	}
	return ev, nil
}

// instruction is everything that the machine shall do, as of its record.
func (m Machine) instruction() bus.Instruction {
	in := bus.Instruction{Desire: m.desire(), Leases: []bus.LeaseGrant{}, Wanted: []bus.LeaseID{}, RefreshSeconds: 10}
	if in.Desire == bus.DesireStop {
		return in
	}
	for _, id := range slices.Sorted(maps.Keys(m.Leases)) {
		l := m.Leases[id]
		if l.Generation == 0 {
			in.Wanted = append(in.Wanted, id)
			continue
		}
		in.Leases = append(in.Leases, bus.LeaseGrant{
			Lease: id, Build: l.Build, Generation: l.Generation, CA: l.CA, Certificate: l.ServerCertificate, ClientSPKI: l.ClientSPKI, Deadline: l.Deadline,
		})
	}
	return in
}

func (m Machine) desire() bus.MachineDesire {
	switch m.State {
	case MachineDraining:
		return bus.DesireDrain
	case MachineStopping, MachineStopped, MachineFailed, MachineDeleting, MachineDeleted:
		return bus.DesireStop
	case MachineWanted, MachineLaunching, MachineBooting, MachineStarting, MachineRegistered, MachineServing:
	}
	return bus.DesireServe
}
