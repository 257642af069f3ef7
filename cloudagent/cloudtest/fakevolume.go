package cloudtest

import (
	"context"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

// CreateVolume implements cloudagent.Provider.
func (f *Fake) CreateVolume(ctx context.Context, spec cloudagent.VolumeSpec) error {
	return f.call(ctx, "CreateVolume", func() error {
		v := f.volumes[spec.Volume]
		switch {
		case v == nil:
			if f.volumes == nil {
				f.volumes = map[bus.VolumeID]*fakeVolume{}
			}
			f.volumes[spec.Volume] = &fakeVolume{VolumeSpec: spec}
		case v.Connection != spec.Connection:
			return bus.Faultf(bus.CodeConflict, "volume %s is not this connection's", spec.Volume)
		}
		return nil
	})
}

// AttachVolume implements cloudagent.Provider.
func (f *Fake) AttachVolume(ctx context.Context, ref cloudagent.MachineRef, volume bus.VolumeID) error {
	return f.call(ctx, "AttachVolume", func() error {
		m, err := f.find(ref)
		switch {
		case err != nil:
			return err
		case m.Volume == volume:
			return nil
		case m.Volume != "":
			return bus.Faultf(bus.CodeConflict, "machine %s has volume %s already", ref.Machine, m.Volume)
		case m.state != bus.CloudStopped:
			return bus.Faultf(bus.CodeConflict, "machine %s is %s: stop it first", ref.Machine, m.state)
		}
		if err := f.attach(m, volume); err != nil {
			return err
		}
		m.Volume = volume
		return nil
	})
}

// DetachVolume implements cloudagent.Provider.
func (f *Fake) DetachVolume(ctx context.Context, ref cloudagent.MachineRef, volume bus.VolumeID) error {
	return f.call(ctx, "DetachVolume", func() error {
		m, err := f.find(ref)
		switch {
		case err != nil:
			return err
		case m.Volume != volume:
			return nil
		case m.state != bus.CloudStopped:
			return bus.Faultf(bus.CodeConflict, "machine %s is %s: stop it first", ref.Machine, m.state)
		}
		f.release(m)
		m.Volume = ""
		return nil
	})
}

// DeleteVolume implements cloudagent.Provider.
func (f *Fake) DeleteVolume(ctx context.Context, ref cloudagent.VolumeRef) error {
	return f.call(ctx, "DeleteVolume", func() error {
		v := f.volumes[ref.Volume]
		switch {
		case v == nil || v.Connection != ref.Connection:
			return nil
		case v.machine != "":
			return bus.Faultf(bus.CodeConflict, "volume %s is attached to machine %s", ref.Volume, v.machine)
		}
		delete(f.volumes, ref.Volume)
		return nil
	})
}

func (f *Fake) attach(m *fakeMachine, volume bus.VolumeID) error {
	v := f.volumes[volume]
	switch {
	case v == nil || v.Connection != m.Connection:
		return bus.Faultf(bus.CodeNotFound, "volume %s does not exist", volume)
	case v.Project != m.Project:
		return bus.Faultf(bus.CodeConflict, "volume %s belongs to another project than machine %s", volume, m.Machine)
	case v.machine != "" && v.machine != m.Machine:
		return bus.Faultf(bus.CodeConflict, "volume %s is attached to machine %s", volume, v.machine)
	}
	v.machine = m.Machine
	return nil
}

// release makes the machine's volume available.
func (f *Fake) release(m *fakeMachine) {
	if v := f.volumes[m.Volume]; v != nil && v.machine == m.Machine {
		v.machine = ""
	}
}
