package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/depotctl/depot/bus"
)

// want is what shall become of a machine; it is written before anything is done about it.
type want string

const (
	wantRunning want = "running"
	wantStopped want = "stopped"
	wantDeleted want = "deleted"
)

// machineRecord is machine.json. A record whose Want is wantDeleted and whose EndedAt is set is a tombstone: it fences
// late actions, and is forgotten after tombstoneLife.
type machineRecord struct {
	Connection   bus.ConnectionID `json:"connection"` // the tag
	Machine      bus.MachineID    `json:"machine"`
	Attempt      int              `json:"attempt"`
	Project      bus.ProjectID    `json:"project"`
	Architecture bus.Arch         `json:"architecture"`
	Volume       bus.VolumeID     `json:"volume"`
	Want         want             `json:"want"`
	Launched     bool             `json:"launched"`  // it has run at least once
	Subnet       string           `json:"subnet"`    // the /30 of its veth pair, at its last boot
	Connected    bool             `json:"connected"` // there may be a veth pair and rules
	LaunchedAt   time.Time        `json:"launched_at"`
	EndedAt      time.Time        `json:"ended_at"`
}

// ended reports whether the record is a tombstone.
func (r machineRecord) ended() bool { return r.Want == wantDeleted && !r.EndedAt.IsZero() }

// volumeRecord is volume.json.
type volumeRecord struct {
	Connection   bus.ConnectionID `json:"connection"` // the tag
	Volume       bus.VolumeID     `json:"volume"`
	Project      bus.ProjectID    `json:"project"`
	Architecture bus.Arch         `json:"architecture"`
	SizeGB       int              `json:"size_gb"`
	Machine      bus.MachineID    `json:"machine"` // where it is attached
}

// readRecord reports false when there is no such file.
func readRecord(path string, v any) (bool, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	return true, nil
}

// writeRecord replaces the file in one step, and returns when it is on disk.
func writeRecord(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	_, err = file.Write(append(data, '\n'))
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(file.Name()))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
