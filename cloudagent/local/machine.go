package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

// CreateMachine implements cloudagent.Provider.
func (p *Provider) CreateMachine(ctx context.Context, spec cloudagent.MachineSpec, announce func(ctx context.Context, offering string) error) error {
	if !slices.Contains(p.Architectures(), spec.Architecture) {
		return bus.Faultf(bus.CodeInvalid, "this host cannot run machines of %s", spec.Architecture)
	}
	lock, err := p.lockMachine(ctx, spec.Machine)
	if err != nil {
		return err
	}
	defer lock.unlock()
	rec, known, err := p.readMachine(spec.Machine)
	if err != nil {
		return err
	}
	if known {
		done, err := p.settleAttempt(ctx, &rec, spec)
		if done || err != nil {
			return err
		}
	}
	if err := p.cfg.Tools.Check(p.cfg.AllowHostNetwork); err != nil {
		return err
	}
	if err := announce(ctx, "local/"+string(spec.Architecture)); err != nil {
		return fmt.Errorf("announce launch: %w", err)
	}
	if !known || rec.Attempt != spec.Attempt {
		rec = machineRecord{
			Connection: spec.Connection, Machine: spec.Machine, Attempt: spec.Attempt, Project: spec.Project,
			Architecture: spec.Architecture, Volume: spec.Volume, Want: wantRunning, LaunchedAt: p.cfg.Now().UTC(),
		}
	}
	if err := p.create(ctx, &rec, spec); err != nil {
		// A launch that failed leaves nothing, as in a cloud, whatever became of ctx.
		return errors.Join(err, p.undoCreate(context.WithoutCancel(ctx), &rec))
	}
	return nil
}

// settleAttempt decides on a machine that is known already: done means that there is nothing to launch.
func (p *Provider) settleAttempt(ctx context.Context, rec *machineRecord, spec cloudagent.MachineSpec) (done bool, err error) {
	switch {
	case rec.Connection != spec.Connection:
		return true, conflict("machine %s is not this connection's", spec.Machine)
	case spec.Attempt < rec.Attempt:
		return true, staleAttempt(spec.MachineRef, rec.Attempt)
	case spec.Attempt > rec.Attempt:
		if rec.ended() {
			return false, nil
		}
		return false, errors.Join(p.destroy(ctx, rec), os.RemoveAll(p.machineDir(rec.Machine)))
	case rec.Want == wantDeleted:
		return true, conflict("attempt %d of machine %s was deleted", spec.Attempt, spec.Machine)
	case rec.Launched || rec.Want == wantStopped:
		return true, nil
	}
	// A crash came between the record and its last field. Whether the machine was started is for itself to say.
	alive, err := p.awaitBoot(ctx, rec.Machine)
	if err != nil || !alive {
		return false, err
	}
	rec.Launched = true
	return true, p.writeMachine(*rec)
}

// create writes what the machine is before it does anything about it.
func (p *Provider) create(ctx context.Context, rec *machineRecord, spec cloudagent.MachineSpec) error {
	if err := os.MkdirAll(p.machineDir(rec.Machine), 0o700); err != nil {
		return err
	}
	rec.Connected = true
	if err := p.writeMachine(*rec); err != nil {
		return err
	}
	cache := p.machineFile(rec.Machine, cacheDir)
	if rec.Volume != "" {
		if err := p.attach(ctx, rec, rec.Volume); err != nil {
			return err
		}
		cache = p.dataDir(rec.Volume)
	}
	return p.launch(ctx, rec, p.userData(spec, cache))
}

// undoCreate forgets an attempt that failed, so that it may be tried again; older ones stay forbidden.
func (p *Provider) undoCreate(ctx context.Context, rec *machineRecord) error {
	if err := p.destroy(ctx, rec); err != nil {
		return err
	}
	if rec.Attempt == 1 {
		return os.RemoveAll(p.machineDir(rec.Machine))
	}
	rec.Attempt, rec.EndedAt = rec.Attempt-1, p.cfg.Now().UTC()
	return errors.Join(p.writeMachine(*rec), p.removeMachineFiles(rec.Machine))
}

// StartMachine implements cloudagent.Provider.
func (p *Provider) StartMachine(ctx context.Context, m cloudagent.MachineRef) error {
	lock, err := p.lockMachine(ctx, m.Machine)
	if err != nil {
		return err
	}
	defer lock.unlock()
	rec, err := p.machineOf(m)
	if err != nil {
		return err
	}
	alive, err := p.awaitBoot(ctx, rec.Machine)
	if err != nil {
		return err
	}
	if alive && rec.Want == wantRunning {
		return nil
	}
	if err := p.cfg.Tools.Check(p.cfg.AllowHostNetwork); err != nil {
		return err
	}
	if alive { // a stop was begun and given up: it is finished first, since nobody knows how far it came
		if err := p.endProcesses(ctx, rec.Machine, p.cfg.StopGrace); err != nil {
			return err
		}
	}
	var data bus.UserData
	if ok, err := readRecord(p.machineFile(rec.Machine, userDataFile), &data); err != nil || !ok {
		return errors.Join(err, conflict("machine %s was never launched", m.Machine))
	}
	rec.Want, rec.Connected, rec.LaunchedAt = wantRunning, true, p.cfg.Now().UTC()
	if err := p.writeMachine(rec); err != nil {
		return err
	}
	if rec.Volume != "" { // a crash may have come between an attachment's two records
		if err := p.attach(ctx, &rec, rec.Volume); err != nil {
			return err
		}
	}
	p.renewUserData(&data)
	return p.launch(ctx, &rec, data)
}

// StopMachine implements cloudagent.Provider.
func (p *Provider) StopMachine(ctx context.Context, m cloudagent.MachineRef) error {
	lock, err := p.lockMachine(ctx, m.Machine)
	if err != nil {
		return err
	}
	defer lock.unlock()
	rec, err := p.machineOf(m)
	if err != nil {
		return err
	}
	if rec.Want != wantStopped {
		rec.Want = wantStopped
		if err := p.writeMachine(rec); err != nil {
			return err
		}
	}
	if err := p.endProcesses(ctx, rec.Machine, p.cfg.StopGrace); err != nil {
		return err
	}
	return p.disconnect(ctx, &rec)
}

// DeleteMachine implements cloudagent.Provider.
func (p *Provider) DeleteMachine(ctx context.Context, m cloudagent.MachineRef) error {
	lock, err := p.lockMachine(ctx, m.Machine)
	if err != nil {
		return err
	}
	defer lock.unlock()
	rec, known, err := p.readMachine(m.Machine)
	switch {
	case err != nil:
		return err
	case !known:
		// It may be on its way: this forbids it to come.
		rec = machineRecord{Connection: m.Connection, Machine: m.Machine}
		if err := os.MkdirAll(p.machineDir(m.Machine), 0o700); err != nil {
			return err
		}
	case rec.Connection != m.Connection:
		return nil
	case m.Attempt < rec.Attempt:
		return staleAttempt(m, rec.Attempt)
	case rec.ended() && m.Attempt == rec.Attempt:
		return p.removeMachineFiles(rec.Machine)
	}
	rec.Attempt = m.Attempt
	if err := p.destroy(ctx, &rec); err != nil {
		return err
	}
	rec.EndedAt = p.cfg.Now().UTC()
	if err := p.writeMachine(rec); err != nil {
		return err
	}
	return p.removeMachineFiles(rec.Machine)
}

// destroy ends a machine and frees what it holds; its files are left to the caller.
func (p *Provider) destroy(ctx context.Context, rec *machineRecord) error {
	if rec.Want != wantDeleted {
		rec.Want = wantDeleted
		if err := p.writeMachine(*rec); err != nil {
			return err
		}
	}
	if err := p.endProcesses(ctx, rec.Machine, deleteGrace); err != nil {
		return err
	}
	if err := p.disconnect(ctx, rec); err != nil {
		return err
	}
	if rec.Volume == "" {
		return nil
	}
	return p.detach(ctx, rec.Machine, rec.Volume)
}

// disconnect removes the machine's network and remembers that it did.
func (p *Provider) disconnect(ctx context.Context, rec *machineRecord) error {
	if !rec.Connected {
		return nil
	}
	if err := disconnectMachine(ctx, rec.Machine); err != nil {
		return err
	}
	rec.Connected = false
	return p.writeMachine(*rec)
}

// machineOf returns the record of exactly this attempt.
func (p *Provider) machineOf(m cloudagent.MachineRef) (machineRecord, error) {
	rec, known, err := p.readMachine(m.Machine)
	switch {
	case err != nil:
		return rec, err
	case !known || rec.Connection != m.Connection || m.Attempt > rec.Attempt:
		return rec, notFound("machine", string(m.Machine))
	case m.Attempt < rec.Attempt:
		return rec, staleAttempt(m, rec.Attempt)
	case rec.Want == wantDeleted:
		return rec, notFound("machine", string(m.Machine))
	}
	return rec, nil
}

// lockMachine serializes all changes of a machine, over all processes.
func (p *Provider) lockMachine(ctx context.Context, id bus.MachineID) (*fileLock, error) {
	if err := id.Validate(); err != nil { // it becomes a path
		return nil, bus.Faultf(bus.CodeInvalid, "%s", err)
	}
	if err := p.makeDirs(); err != nil {
		return nil, err
	}
	return lockFile(ctx, p.lockPath(string(id)))
}

func staleAttempt(m cloudagent.MachineRef, newest int) error {
	return conflict("attempt %d of machine %s is over: the newest is %d", m.Attempt, m.Machine, newest)
}
