package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

func (p *Provider) dataDir(id bus.VolumeID) string { return filepath.Join(p.volumeDir(id), dataDir) }

// CreateVolume implements cloudagent.Provider. The size is recorded, and not enforced.
func (p *Provider) CreateVolume(ctx context.Context, spec cloudagent.VolumeSpec) error {
	lock, err := p.lockVolume(ctx, spec.Volume)
	if err != nil {
		return err
	}
	defer lock.unlock()
	rec, known, err := p.readVolume(spec.Volume)
	if err != nil {
		return err
	}
	if known && rec.Connection != spec.Connection {
		return conflict("volume %s is not this connection's", spec.Volume)
	}
	if known {
		return nil
	}
	if err := os.MkdirAll(p.dataDir(spec.Volume), 0o700); err != nil {
		return err
	}
	return p.writeVolume(volumeRecord{
		Connection: spec.Connection, Volume: spec.Volume, Project: spec.Project, Architecture: spec.Architecture, SizeGB: spec.SizeGB,
	})
}

// DeleteVolume implements cloudagent.Provider.
func (p *Provider) DeleteVolume(ctx context.Context, v cloudagent.VolumeRef) error {
	lock, err := p.lockVolume(ctx, v.Volume)
	if err != nil {
		return err
	}
	defer lock.unlock()
	rec, known, err := p.readVolume(v.Volume)
	if err != nil || !known || rec.Connection != v.Connection {
		return err
	}
	user, err := p.userOf(rec)
	if err != nil {
		return err
	}
	if user != "" {
		return conflict("volume %s is attached to machine %s", v.Volume, user)
	}
	if err := p.discard(p.volumeDir(v.Volume)); err != nil {
		return fmt.Errorf("delete volume %s: %w", v.Volume, err)
	}
	return os.Remove(lock.file.Name())
}

// AttachVolume implements cloudagent.Provider.
func (p *Provider) AttachVolume(ctx context.Context, m cloudagent.MachineRef, volume bus.VolumeID) error {
	lock, err := p.lockMachine(ctx, m.Machine)
	if err != nil {
		return err
	}
	defer lock.unlock()
	rec, err := p.machineOf(m)
	switch {
	case err != nil:
		return err
	case rec.Volume == volume: // as it shall be; or half done
		return p.attach(ctx, &rec, volume)
	case rec.Volume != "":
		return conflict("machine %s has volume %s already", m.Machine, rec.Volume)
	}
	if err := p.mustBeDead(rec.Machine); err != nil {
		return err
	}
	// The machine's record first: a volume that names a machine which does not name it is free.
	if err := p.setCache(&rec, volume, p.dataDir(volume)); err != nil {
		return err
	}
	if err := p.attach(ctx, &rec, volume); err != nil {
		return errors.Join(err, p.setCache(&rec, "", p.machineFile(rec.Machine, cacheDir)))
	}
	return nil
}

// DetachVolume implements cloudagent.Provider.
func (p *Provider) DetachVolume(ctx context.Context, m cloudagent.MachineRef, volume bus.VolumeID) error {
	lock, err := p.lockMachine(ctx, m.Machine)
	if err != nil {
		return err
	}
	defer lock.unlock()
	rec, err := p.machineOf(m)
	if err != nil {
		return err
	}
	if rec.Volume != volume {
		return nil
	}
	if err := p.mustBeDead(rec.Machine); err != nil {
		return err
	}
	if err := p.detach(ctx, rec.Machine, volume); err != nil {
		return err
	}
	return p.setCache(&rec, "", p.machineFile(rec.Machine, cacheDir))
}

// setCache makes the machine boot with another BuildKit root from now on.
func (p *Provider) setCache(rec *machineRecord, volume bus.VolumeID, cache string) error {
	var data bus.UserData
	path := p.machineFile(rec.Machine, userDataFile)
	ok, err := readRecord(path, &data)
	if err != nil {
		return err
	}
	if ok {
		data.CacheDir = cache
		if err := writeRecord(path, data); err != nil {
			return err
		}
	}
	rec.Volume = volume
	return p.writeMachine(*rec)
}

// mustBeDead refuses to take a volume from, or give one to, a machine that runs.
func (p *Provider) mustBeDead(id bus.MachineID) error {
	alive, err := locked(p.machineFile(id, aliveFile))
	if err != nil {
		return err
	}
	if alive {
		return conflict("machine %s is running: stop it first", id)
	}
	return nil
}

// attach claims a volume for a machine whose lock is held.
func (p *Provider) attach(ctx context.Context, m *machineRecord, volume bus.VolumeID) error {
	lock, err := p.lockVolume(ctx, volume)
	if err != nil {
		return err
	}
	defer lock.unlock()
	rec, known, err := p.readVolume(volume)
	switch {
	case err != nil:
		return err
	case !known || rec.Connection != m.Connection:
		return notFound("volume", string(volume))
	case rec.Project != m.Project:
		return conflict("volume %s belongs to another project than machine %s", volume, m.Machine)
	case rec.Machine == m.Machine:
		return nil
	}
	user, err := p.userOf(rec)
	if err != nil {
		return err
	}
	if user != "" {
		return conflict("volume %s is attached to machine %s", volume, user)
	}
	rec.Machine = m.Machine
	return p.writeVolume(rec)
}

// detach frees a volume if the machine has it.
func (p *Provider) detach(ctx context.Context, machine bus.MachineID, volume bus.VolumeID) error {
	lock, err := p.lockVolume(ctx, volume)
	if err != nil {
		return err
	}
	defer lock.unlock()
	rec, known, err := p.readVolume(volume)
	if err != nil || !known || rec.Machine != machine {
		return err
	}
	rec.Machine = ""
	return p.writeVolume(rec)
}

// userOf returns the machine that a volume is attached to. One that was deleted, never came to be, or does not name the
// volume itself, holds nothing.
func (p *Provider) userOf(rec volumeRecord) (bus.MachineID, error) {
	if rec.Machine == "" {
		return "", nil
	}
	m, known, err := p.readMachine(rec.Machine)
	if err != nil {
		return "", err
	}
	if !known || m.ended() || m.Volume != rec.Volume {
		return "", nil
	}
	return rec.Machine, nil
}

// lockVolume serializes all changes of a volume. Whoever needs a machine's lock, too, takes that first.
func (p *Provider) lockVolume(ctx context.Context, id bus.VolumeID) (*fileLock, error) {
	if err := id.Validate(); err != nil { // it becomes a path
		return nil, bus.Faultf(bus.CodeInvalid, "%s", err)
	}
	if err := p.makeDirs(); err != nil {
		return nil, err
	}
	return lockFile(ctx, p.lockPath(string(id)))
}
