package cloudagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/depotctl/depot/bus"
)

// The defaults of Limits.
const (
	DefaultMaxMachines = 10
	DefaultMaxVolumeGB = 500
)

// Limits are what an agent does not exceed, whatever an action says.
type Limits struct {
	MaxMachines   int        // that exist at a time, in any state; default DefaultMaxMachines
	MaxVolumeGB   int        // of one volume; default DefaultMaxVolumeGB
	Architectures []bus.Arch // that may be launched
}

func (l *Limits) setDefaults() error {
	if l.MaxMachines == 0 {
		l.MaxMachines = DefaultMaxMachines
	}
	if l.MaxVolumeGB == 0 {
		l.MaxVolumeGB = DefaultMaxVolumeGB
	}
	errs := []error{}
	if l.MaxMachines < 0 || l.MaxVolumeGB < 0 {
		errs = append(errs, errors.New("a limit is negative"))
	}
	if len(l.Architectures) == 0 {
		errs = append(errs, errors.New("no architecture may be launched"))
	}
	for _, arch := range l.Architectures {
		errs = append(errs, arch.Validate())
	}
	return errors.Join(errs...)
}

func (l Limits) checkArchitecture(arch bus.Arch) error {
	if !slices.Contains(l.Architectures, arch) {
		return bus.Faultf(bus.CodeInvalid, "this connection does not launch %s machines", arch).
			WithHint("allow it with --architectures of the cloud-agent, or use a connection that has it")
	}
	return nil
}

func (l Limits) checkVolume(sizeGB int, arch bus.Arch) error {
	if err := l.checkArchitecture(arch); err != nil {
		return err
	}
	if sizeGB > l.MaxVolumeGB {
		return bus.Faultf(bus.CodeInvalid, "a volume of %d GB exceeds this connection's limit of %d GB", sizeGB, l.MaxVolumeGB).
			WithHint("raise --max-volume-gb of the cloud-agent, or ask for less")
	}
	return nil
}

// quota caps the machines that exist or are being launched.
type quota struct {
	max       int
	admission sync.Mutex // one at a time counts

	mu        sync.Mutex
	launching map[bus.MachineID]int
}

// take admits a machine. A machine that exists is always admitted: its launch is only repeated.
func (q *quota) take(ctx context.Context, machine bus.MachineID, list func(context.Context) (Listing, error)) (release func(), err error) {
	q.admission.Lock()
	defer q.admission.Unlock()
	counted := q.snapshot() // first: what is listed no more by its launch is listed by the cloud
	listing, err := list(ctx)
	if err != nil {
		return nil, fmt.Errorf("count machines: %w", err)
	}
	for _, m := range listing.Live() {
		counted[m.Machine] = true
	}
	if !counted[machine] && len(counted) >= q.max {
		return nil, bus.Faultf(bus.CodeNoCapacity, "all %d machines that this connection may have exist", q.max).
			WithHint("wait for a machine to be deleted, or raise --max-machines of the cloud-agent")
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.launching == nil {
		q.launching = map[bus.MachineID]int{}
	}
	q.launching[machine]++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.launching[machine]--; q.launching[machine] == 0 {
			delete(q.launching, machine)
		}
	}, nil
}

func (q *quota) snapshot() map[bus.MachineID]bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := map[bus.MachineID]bool{}
	for machine := range q.launching {
		all[machine] = true
	}
	return all
}
