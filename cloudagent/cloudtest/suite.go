package cloudtest

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

// settleLimit is how long a provider may take to show the state that a call leads to.
const settleLimit = 2 * time.Minute

// Run holds a provider to its contract. Each test gets an empty provider from make, which also removes, when the test
// ends, whatever it still has.
func Run(t *testing.T, open func(t *testing.T) cloudagent.Provider) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(t *testing.T, c *cloud)
	}{
		{"lists everything that was created", listsEverything},
		{"creates a machine once", createsOnce},
		{"launches nothing that could not be announced", announcesFirst},
		{"creating again does not start what was stopped", createKeepsStopped},
		{"stops and starts, and repeats both", stopsAndStarts},
		{"refuses old attempts", refusesOldAttempts},
		{"replaces an older attempt", replacesOlderAttempt},
		{"keeps a deleted attempt deleted", keepsDeleted},
		{"deletes what is unknown, and forbids it", deletesUnknown},
		{"tells what is unknown", tellsUnknown},
		{"creates and deletes a volume once", volumeOnce},
		{"attaches a volume to one machine only", attachesOnce},
		{"does not delete an attached volume", keepsAttached},
		{"releases the volume of a deleted machine", releasesVolume},
		{"moves a volume between stopped machines", movesVolume},
		{"does not take a running machine's volume", keepsRunningVolume},
		{"keeps a volume in its project", keepsProject},
		{"touches nothing of another connection", staysInConnection},
		{"does at once what is asked at the same time", concurrentCalls},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, &cloud{Provider: open(t), connection: bus.NewConnectionID(), project: bus.NewProjectID(), token: bus.NewToken()})
		})
	}
}

// cloud is a provider and the names of one test.
type cloud struct {
	cloudagent.Provider
	connection bus.ConnectionID
	project    bus.ProjectID
	token      bus.Token
}

func (c *cloud) machineSpec(volume bus.VolumeID) cloudagent.MachineSpec {
	ref := cloudagent.MachineRef{Connection: c.connection, Machine: bus.NewMachineID(), Attempt: 1}
	return c.attempt(cloudagent.MachineSpec{
		MachineRef: ref, Project: c.project, Architecture: bus.Arch(runtime.GOARCH), Volume: volume, BusURL: "nats://192.0.2.1:4222",
	}, 1)
}

// attempt returns the spec of another attempt of the same machine.
func (c *cloud) attempt(spec cloudagent.MachineSpec, attempt int) cloudagent.MachineSpec {
	spec.Attempt, spec.Nonce = attempt, bus.LaunchNonce(c.token, spec.Machine, attempt)
	return spec
}

func (c *cloud) volumeSpec() cloudagent.VolumeSpec {
	return cloudagent.VolumeSpec{
		VolumeRef: cloudagent.VolumeRef{Connection: c.connection, Volume: bus.NewVolumeID()},
		Project:   c.project, Architecture: bus.Arch(runtime.GOARCH), SizeGB: 1,
	}
}

func announce(context.Context, string) error { return nil }

// machine creates a machine and waits until it runs.
func (c *cloud) machine(t *testing.T, volume bus.VolumeID) cloudagent.MachineSpec {
	t.Helper()
	spec := c.machineSpec(volume)
	require.NoError(t, c.CreateMachine(t.Context(), spec, announce))
	c.await(t, spec.Machine, bus.CloudRunning)
	return spec
}

func (c *cloud) volume(t *testing.T) bus.VolumeID {
	t.Helper()
	spec := c.volumeSpec()
	require.NoError(t, c.CreateVolume(t.Context(), spec))
	return spec.Volume
}

func (c *cloud) list(t *testing.T) cloudagent.Listing {
	t.Helper()
	listing, err := c.List(t.Context(), c.connection)
	require.NoError(t, err)
	return listing
}

// state returns "" for a machine that is not listed.
func (c *cloud) state(t *testing.T, id bus.MachineID) bus.CloudState {
	t.Helper()
	for _, m := range c.list(t).Machines {
		if m.Machine == id {
			return m.State
		}
	}
	return ""
}

func (c *cloud) await(t *testing.T, id bus.MachineID, want bus.CloudState) {
	t.Helper()
	require.Eventually(t, func() bool { return c.state(t, id) == want }, settleLimit, 10*time.Millisecond, "it shall become %s", want)
}

// user returns the machine that a volume is attached to.
func (c *cloud) user(t *testing.T, id bus.VolumeID) bus.MachineID {
	t.Helper()
	for _, v := range c.list(t).Volumes {
		if v.Volume == id {
			require.Equal(t, v.Machine != "", v.State == bus.CloudInUse, "state %s and machine %q", v.State, v.Machine)
			return v.Machine
		}
	}
	require.Fail(t, "volume is not listed")
	return ""
}

func listsEverything(t *testing.T, c *cloud) {
	require.Empty(t, c.list(t))
	free, used := c.volumeSpec(), c.volumeSpec()
	require.NoError(t, c.CreateVolume(t.Context(), free))
	require.NoError(t, c.CreateVolume(t.Context(), used))
	spec := c.machine(t, used.Volume)
	bare := c.machine(t, "")

	listing := c.list(t)
	require.Len(t, listing.Machines, 2)
	require.Len(t, listing.Live(), 2)
	for _, m := range listing.Machines {
		require.Contains(t, []bus.MachineID{spec.Machine, bare.Machine}, m.Machine)
		require.Equal(t, 1, m.Attempt)
		require.Equal(t, c.project, m.Project)
		require.NotEmpty(t, m.Instance)
		require.NotEmpty(t, m.Addresses)
		require.WithinDuration(t, time.Now(), m.Since, settleLimit)
		if m.Machine == spec.Machine {
			require.Equal(t, used.Volume, m.Volume)
		}
	}
	require.ElementsMatch(t, []bus.VolumeStatus{
		{Volume: free.Volume, State: bus.CloudAvailable, Project: c.project, SizeGB: 1},
		{Volume: used.Volume, State: bus.CloudInUse, Machine: spec.Machine, Project: c.project, SizeGB: 1},
	}, listing.Volumes)
}

func createsOnce(t *testing.T, c *cloud) {
	spec := c.machine(t, "")
	before := c.list(t)
	require.NoError(t, c.CreateMachine(t.Context(), spec, announce))
	require.Equal(t, before, c.list(t))
}

func announcesFirst(t *testing.T, c *cloud) {
	volume := c.volume(t)
	spec := c.machineSpec(volume)
	nobody := errors.New("nobody listens")
	err := c.CreateMachine(t.Context(), spec, func(_ context.Context, offering string) error {
		require.NotEmpty(t, offering)
		return nobody
	})
	require.ErrorIs(t, err, nobody)
	require.Empty(t, c.list(t).Machines)
	require.Empty(t, c.user(t, volume))
	require.NoError(t, c.CreateMachine(t.Context(), spec, announce), "the attempt is not used up")
}

func createKeepsStopped(t *testing.T, c *cloud) {
	spec := c.machine(t, "")
	require.NoError(t, c.StopMachine(t.Context(), spec.MachineRef))
	c.await(t, spec.Machine, bus.CloudStopped)
	require.NoError(t, c.CreateMachine(t.Context(), spec, announce))
	require.Equal(t, bus.CloudStopped, c.state(t, spec.Machine))
}

func stopsAndStarts(t *testing.T, c *cloud) {
	volume := c.volume(t)
	spec := c.machine(t, volume)
	for range 2 {
		for range 2 {
			require.NoError(t, c.StopMachine(t.Context(), spec.MachineRef))
			c.await(t, spec.Machine, bus.CloudStopped)
			require.Equal(t, spec.Machine, c.user(t, volume))
		}
		for range 2 {
			require.NoError(t, c.StartMachine(t.Context(), spec.MachineRef))
			c.await(t, spec.Machine, bus.CloudRunning)
			require.Equal(t, spec.Machine, c.user(t, volume))
		}
	}
}

func refusesOldAttempts(t *testing.T, c *cloud) {
	volume := c.volume(t)
	spec := c.attempt(c.machineSpec(""), 3)
	require.NoError(t, c.CreateMachine(t.Context(), spec, announce))
	c.await(t, spec.Machine, bus.CloudRunning)
	old := c.attempt(spec, 2)
	before := c.list(t)
	for name, call := range map[string]func() error{
		"create": func() error { return c.CreateMachine(t.Context(), old, announce) },
		"start":  func() error { return c.StartMachine(t.Context(), old.MachineRef) },
		"stop":   func() error { return c.StopMachine(t.Context(), old.MachineRef) },
		"delete": func() error { return c.DeleteMachine(t.Context(), old.MachineRef) },
		"attach": func() error { return c.AttachVolume(t.Context(), old.MachineRef, volume) },
		"detach": func() error { return c.DetachVolume(t.Context(), old.MachineRef, volume) },
	} {
		require.ErrorIs(t, call(), bus.CodeConflict, name)
		require.Equal(t, before, c.list(t), name)
	}
}

func replacesOlderAttempt(t *testing.T, c *cloud) {
	volume := c.volume(t)
	old := c.machine(t, volume)
	spec := c.attempt(old, 2)
	require.NoError(t, c.CreateMachine(t.Context(), spec, announce))
	c.await(t, spec.Machine, bus.CloudRunning)
	listing := c.list(t)
	require.Len(t, listing.Live(), 1)
	require.Equal(t, 2, listing.Live()[0].Attempt)
	require.Equal(t, spec.Machine, c.user(t, volume))
}

func keepsDeleted(t *testing.T, c *cloud) {
	spec := c.machine(t, "")
	for range 2 {
		require.NoError(t, c.DeleteMachine(t.Context(), spec.MachineRef))
		c.await(t, spec.Machine, bus.CloudTerminated)
	}
	require.ErrorIs(t, c.CreateMachine(t.Context(), spec, announce), bus.CodeConflict)
	require.ErrorIs(t, c.StartMachine(t.Context(), spec.MachineRef), bus.CodeNotFound)
	require.ErrorIs(t, c.StopMachine(t.Context(), spec.MachineRef), bus.CodeNotFound)
	require.Empty(t, c.list(t).Live())
	require.NoError(t, c.CreateMachine(t.Context(), c.attempt(spec, 2), announce), "another attempt may come")
	c.await(t, spec.Machine, bus.CloudRunning)
}

func deletesUnknown(t *testing.T, c *cloud) {
	spec := c.machineSpec("")
	require.NoError(t, c.DeleteMachine(t.Context(), spec.MachineRef))
	require.ErrorIs(t, c.CreateMachine(t.Context(), spec, announce), bus.CodeConflict, "it was late")
	require.Empty(t, c.list(t).Live())
}

func tellsUnknown(t *testing.T, c *cloud) {
	ref := c.machineSpec("").MachineRef
	volume := c.volumeSpec()
	require.ErrorIs(t, c.StartMachine(t.Context(), ref), bus.CodeNotFound)
	require.ErrorIs(t, c.StopMachine(t.Context(), ref), bus.CodeNotFound)
	require.ErrorIs(t, c.AttachVolume(t.Context(), ref, volume.Volume), bus.CodeNotFound)
	require.ErrorIs(t, c.DetachVolume(t.Context(), ref, volume.Volume), bus.CodeNotFound)
	require.NoError(t, c.DeleteVolume(t.Context(), volume.VolumeRef))

	require.ErrorIs(t, c.CreateMachine(t.Context(), c.machineSpec(volume.Volume), announce), bus.CodeNotFound)
	require.Empty(t, c.list(t).Live(), "a launch that failed leaves nothing")
	spec := c.machine(t, "")
	spec.Attempt++
	require.ErrorIs(t, c.StopMachine(t.Context(), spec.MachineRef), bus.CodeNotFound, "an attempt that never was")
	require.Equal(t, bus.CloudRunning, c.state(t, spec.Machine))
}

func volumeOnce(t *testing.T, c *cloud) {
	spec := c.volumeSpec()
	require.NoError(t, c.CreateVolume(t.Context(), spec))
	before := c.list(t)
	require.NoError(t, c.CreateVolume(t.Context(), spec))
	require.Equal(t, before, c.list(t))
	for range 2 {
		require.NoError(t, c.DeleteVolume(t.Context(), spec.VolumeRef))
		require.Empty(t, c.list(t).Volumes)
	}
}

func attachesOnce(t *testing.T, c *cloud) {
	volume := c.volume(t)
	owner := c.machine(t, volume)
	second := c.machineSpec(volume)
	require.ErrorIs(t, c.CreateMachine(t.Context(), second, announce), bus.CodeConflict)
	require.Empty(t, c.state(t, second.Machine), "a launch that failed leaves nothing")

	other := c.machine(t, "")
	require.NoError(t, c.StopMachine(t.Context(), other.MachineRef))
	c.await(t, other.Machine, bus.CloudStopped)
	require.ErrorIs(t, c.AttachVolume(t.Context(), other.MachineRef, volume), bus.CodeConflict)
	require.NoError(t, c.AttachVolume(t.Context(), owner.MachineRef, volume), "it is attached there")
	require.ErrorIs(t, c.AttachVolume(t.Context(), owner.MachineRef, c.volume(t)), bus.CodeConflict, "one volume per machine")
	require.Equal(t, owner.Machine, c.user(t, volume))
}

func keepsAttached(t *testing.T, c *cloud) {
	volume := c.volume(t)
	spec := c.machine(t, volume)
	ref := cloudagent.VolumeRef{Connection: c.connection, Volume: volume}
	require.ErrorIs(t, c.DeleteVolume(t.Context(), ref), bus.CodeConflict)
	require.NoError(t, c.StopMachine(t.Context(), spec.MachineRef))
	require.ErrorIs(t, c.DeleteVolume(t.Context(), ref), bus.CodeConflict, "a stopped machine keeps its volume")
	require.Equal(t, spec.Machine, c.user(t, volume))
}

func releasesVolume(t *testing.T, c *cloud) {
	volume := c.volume(t)
	first := c.machine(t, volume)
	require.NoError(t, c.DeleteMachine(t.Context(), first.MachineRef))
	c.await(t, first.Machine, bus.CloudTerminated)
	require.Empty(t, c.user(t, volume))
	second := c.machine(t, volume)
	require.Equal(t, second.Machine, c.user(t, volume))
	require.NoError(t, c.DeleteMachine(t.Context(), first.MachineRef), "again, late")
	require.Equal(t, second.Machine, c.user(t, volume))
	require.NoError(t, c.DeleteMachine(t.Context(), second.MachineRef))
	c.await(t, second.Machine, bus.CloudTerminated)
	require.NoError(t, c.DeleteVolume(t.Context(), cloudagent.VolumeRef{Connection: c.connection, Volume: volume}))
}

func movesVolume(t *testing.T, c *cloud) {
	volume := c.volume(t)
	from, to := c.machine(t, volume), c.machine(t, "")
	for _, spec := range []cloudagent.MachineSpec{from, to} {
		require.NoError(t, c.StopMachine(t.Context(), spec.MachineRef))
		c.await(t, spec.Machine, bus.CloudStopped)
	}
	for range 2 {
		require.NoError(t, c.DetachVolume(t.Context(), from.MachineRef, volume))
		require.Empty(t, c.user(t, volume))
	}
	for range 2 {
		require.NoError(t, c.AttachVolume(t.Context(), to.MachineRef, volume))
		require.Equal(t, to.Machine, c.user(t, volume))
	}
	require.NoError(t, c.DetachVolume(t.Context(), from.MachineRef, volume), "it is not attached there")
	require.Equal(t, to.Machine, c.user(t, volume))
	for _, spec := range []cloudagent.MachineSpec{from, to} {
		require.NoError(t, c.StartMachine(t.Context(), spec.MachineRef))
		c.await(t, spec.Machine, bus.CloudRunning)
	}
}

func keepsRunningVolume(t *testing.T, c *cloud) {
	volume := c.volume(t)
	spec, bare := c.machine(t, volume), c.machine(t, "")
	require.ErrorIs(t, c.DetachVolume(t.Context(), spec.MachineRef, volume), bus.CodeConflict)
	require.Equal(t, spec.Machine, c.user(t, volume))
	require.ErrorIs(t, c.AttachVolume(t.Context(), bare.MachineRef, c.volume(t)), bus.CodeConflict)
}

func keepsProject(t *testing.T, c *cloud) {
	volume := c.volume(t)
	spec := c.machineSpec(volume)
	spec.Project = bus.NewProjectID()
	require.ErrorIs(t, c.CreateMachine(t.Context(), spec, announce), bus.CodeConflict)
	require.Empty(t, c.list(t).Live())
	require.Empty(t, c.user(t, volume))
}

func staysInConnection(t *testing.T, c *cloud) {
	volume := c.volume(t)
	spec := c.machine(t, volume)
	free := c.volume(t)
	before := c.list(t)

	stranger := bus.NewConnectionID()
	listing, err := c.List(t.Context(), stranger)
	require.NoError(t, err)
	require.Empty(t, listing)
	theirs := spec
	theirs.Connection = stranger
	theirs.Attempt = 9 // a newer attempt gives no right either
	require.ErrorIs(t, c.CreateMachine(t.Context(), theirs, announce), bus.CodeConflict)
	require.ErrorIs(t, c.StopMachine(t.Context(), theirs.MachineRef), bus.CodeNotFound)
	require.ErrorIs(t, c.StartMachine(t.Context(), theirs.MachineRef), bus.CodeNotFound)
	require.ErrorIs(t, c.DetachVolume(t.Context(), theirs.MachineRef, volume), bus.CodeNotFound)
	require.ErrorIs(t, c.AttachVolume(t.Context(), theirs.MachineRef, free), bus.CodeNotFound)
	require.NoError(t, c.DeleteMachine(t.Context(), theirs.MachineRef))
	require.NoError(t, c.DeleteVolume(t.Context(), cloudagent.VolumeRef{Connection: stranger, Volume: free}))
	foreign := c.volumeSpec()
	foreign.Connection, foreign.Volume = stranger, free
	require.ErrorIs(t, c.CreateVolume(t.Context(), foreign), bus.CodeConflict)
	other := c.machineSpec(free)
	other.Connection = stranger
	require.ErrorIs(t, c.CreateMachine(t.Context(), other, announce), bus.CodeNotFound, "their machine cannot have our volume")
	require.Equal(t, before, c.list(t))
}

func concurrentCalls(t *testing.T, c *cloud) {
	volume := c.volume(t)
	spec := c.machineSpec(volume)
	everyone := func(call func() error) error {
		var group errgroup.Group
		for range 8 {
			group.Go(call)
		}
		return group.Wait()
	}
	require.NoError(t, everyone(func() error { return c.CreateMachine(t.Context(), spec, announce) }))
	c.await(t, spec.Machine, bus.CloudRunning)
	require.Len(t, c.list(t).Machines, 1)
	require.NoError(t, everyone(func() error { return c.StopMachine(t.Context(), spec.MachineRef) }))
	require.NoError(t, everyone(func() error { return c.StartMachine(t.Context(), spec.MachineRef) }))
	require.NoError(t, everyone(func() error { return c.DeleteMachine(t.Context(), spec.MachineRef) }))
	c.await(t, spec.Machine, bus.CloudTerminated)
	require.Empty(t, c.user(t, volume))
}
