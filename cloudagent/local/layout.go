package local

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/depotctl/depot/bus"
)

// The state directory.
//
//	machines/<id>/machine.json    the record: what is wanted, the connection's tag
//	              user-data.json  what the machine boots with; holds its launch nonce
//	              alive           locked for life by the machine's first process, and holds its process id, and "up"
//	              reason          why the machine ended by itself
//	              log             what machineagent and BuildKit print
//	              state/          the root disk: identity keys
//	              cache/          BuildKit's root, of a machine without a volume
//	              tmp/            $TMPDIR
//	volumes/<id>/volume.json      the record: where it is attached, the connection's tag
//	             data/            BuildKit's root
//	locks/<id>                    held by whoever changes a machine or a volume
//	bus/bus.sock                  the machines' way to the bus
//	trash/                        what is being deleted
const (
	machinesDir  = "machines"
	machineFile  = "machine.json"
	userDataFile = "user-data.json"
	aliveFile    = "alive"
	reasonFile   = "reason"
	resolvFile   = "resolv.conf"
	logFile      = "log"
	stateDir     = "state"
	cacheDir     = "cache"
	tmpDir       = "tmp"
	volumesDir   = "volumes"
	volumeFile   = "volume.json"
	dataDir      = "data"
	locksDir     = "locks"
	busDir       = "bus"
	busSocket    = "bus.sock"
	busLock      = "lock"
	trashDir     = "trash"
)

func (p *Provider) makeDirs() error {
	for _, dir := range []string{machinesDir, volumesDir, locksDir, busDir, trashDir} {
		if err := os.MkdirAll(filepath.Join(p.cfg.Dir, dir), 0o700); err != nil {
			return err
		}
	}
	return nil
}

func (p *Provider) machineDir(id bus.MachineID) string {
	return filepath.Join(p.cfg.Dir, machinesDir, string(id))
}

func (p *Provider) machineFile(id bus.MachineID, name string) string {
	return filepath.Join(p.machineDir(id), name)
}

// LogPath returns the file that a machine logs to.
func (p *Provider) LogPath(id bus.MachineID) string { return p.machineFile(id, logFile) }

func (p *Provider) volumeDir(id bus.VolumeID) string {
	return filepath.Join(p.cfg.Dir, volumesDir, string(id))
}

func (p *Provider) lockPath(id string) string { return filepath.Join(p.cfg.Dir, locksDir, id) }

func (p *Provider) readMachine(id bus.MachineID) (rec machineRecord, ok bool, err error) {
	ok, err = readRecord(p.machineFile(id, machineFile), &rec)
	return rec, ok, err
}

func (p *Provider) writeMachine(rec machineRecord) error {
	return writeRecord(p.machineFile(rec.Machine, machineFile), rec)
}

func (p *Provider) readVolume(id bus.VolumeID) (rec volumeRecord, ok bool, err error) {
	ok, err = readRecord(filepath.Join(p.volumeDir(id), volumeFile), &rec)
	return rec, ok, err
}

func (p *Provider) writeVolume(rec volumeRecord) error {
	return writeRecord(filepath.Join(p.volumeDir(rec.Volume), volumeFile), rec)
}

func (p *Provider) machineRecords() ([]machineRecord, error) {
	return records(filepath.Join(p.cfg.Dir, machinesDir), p.readMachine)
}

func (p *Provider) volumeRecords() ([]volumeRecord, error) {
	return records(filepath.Join(p.cfg.Dir, volumesDir), p.readVolume)
}

// records reads what every directory in dir holds. One without a record is not yet, or no longer, anything.
func records[ID ~string, R any](dir string, read func(ID) (R, bool, error)) ([]R, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // nothing was ever created
	}
	if err != nil {
		return nil, err
	}
	var all []R
	for _, entry := range entries {
		rec, ok, err := read(ID(entry.Name()))
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, rec)
		}
	}
	return all, nil
}

// readAlive returns what the first process has written into the lock of its life: its process id, or 0, and whether it has
// started the program.
func (p *Provider) readAlive(id bus.MachineID) (pid int, up bool) {
	line, mark, _ := strings.Cut(readText(p.machineFile(id, aliveFile)), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		return 0, false
	}
	return pid, mark == upMark
}

func (p *Provider) readReason(id bus.MachineID) string {
	return readText(p.machineFile(id, reasonFile))
}

// removeMachineFiles removes everything of a deleted machine but its record.
func (p *Provider) removeMachineFiles(id bus.MachineID) error {
	entries, err := os.ReadDir(p.machineDir(id))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() != machineFile {
			err = errors.Join(err, os.RemoveAll(p.machineFile(id, entry.Name())))
		}
	}
	return err
}

// discard removes a directory tree that nobody finds any more from the moment of the call on, even if it takes long.
func (p *Provider) discard(dir string) error {
	trash, err := os.MkdirTemp(filepath.Join(p.cfg.Dir, trashDir), "")
	if err != nil {
		return err
	}
	err = os.Rename(dir, filepath.Join(trash, filepath.Base(dir)))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(trash))
}

func (p *Provider) emptyTrash() error {
	entries, err := os.ReadDir(filepath.Join(p.cfg.Dir, trashDir))
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(p.cfg.Dir, trashDir, entry.Name())))
	}
	return err
}
