package apiserver

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/depotctl/depot/bus"
)

var volumeColumns = []VolumeState{VolumeWanted, VolumeCreating, VolumeAvailable, VolumeAttached, VolumeDeleting, VolumeDeleted}

func volumeIn(s VolumeState) Volume {
	v := newVolume(someVolume, someSlot, 50, atTime(0))
	v.State = s
	if s == VolumeAttached {
		v.Machine = someMachine
	}
	return v
}

func TestVolume_StepTable(t *testing.T) {
	t.Parallel()
	table := `
event          wanted   creating  available attached  deleting deleted
asked          creating .         .         .         .        .
create_done    .        available .         .         .        .
create_refused .        deleting  .         .         .        .
delete_done    .        .         .         .         deleted  .
seen           .        available .         .         .        .
claimed        .        .         attached  .         .        .
freed          .        .         .         available .        .
freed_by_other .        .         .         .         .        .
overdue        deleting deleting  .         .         .        .
`
	events := map[string]volumeEvent{
		"asked":          volumeAsked{},
		"create_done":    volumeDone{kind: bus.CreateVolume},
		"create_refused": volumeDone{kind: bus.CreateVolume, fault: bus.Faultf(bus.CodeInvalid, "too large")},
		"delete_done":    volumeDone{kind: bus.DeleteVolume},
		"seen":           volumeSeen{bus.VolumeStatus{State: bus.CloudAvailable}},
		"claimed":        volumeClaimed{otherMachine},
		"freed":          volumeFreed{someMachine},
		"freed_by_other": volumeFreed{otherMachine},
		"overdue":        volumeTick{},
	}
	rows := strings.Split(strings.TrimSpace(table), "\n")
	require.Len(t, rows, len(events)+1, "a row for each event")
	taken := map[transition[VolumeState]]bool{}
	for _, row := range rows[1:] {
		cells := strings.Fields(row)
		for i, want := range cells[1:] {
			before := volumeIn(volumeColumns[i])
			at := atTime(time.Second)
			if cells[0] == "overdue" {
				at = atTime(time.Hour)
			}
			after, _, err := before.step(events[cells[0]], at)
			require.NoError(t, err)
			if want == "." {
				want = string(before.State)
			}
			require.Equal(t, want, string(after.State), row)
			taken[transition[VolumeState]{before.State, events[cells[0]].name(), after.State}] = true
		}
	}
	for _, arrow := range volumeTransitions {
		require.True(t, taken[arrow], "%s --%s--> %s is never taken", arrow.from, arrow.on, arrow.to)
	}
}

func TestVolume_BelongsToOneMachineAtATime(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		v := newVolume(someVolume, someSlot, 50, atTime(0))
		at := atTime(0)
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			at.now = at.now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "seconds")) * time.Second)
			machine := rapid.SampledFrom([]bus.MachineID{someMachine, otherMachine}).Draw(t, "machine")
			ev := rapid.SampledFrom([]volumeEvent{
				volumeAsked{},
				volumeDone{kind: bus.CreateVolume},
				volumeDone{kind: bus.CreateVolume, fault: bus.Faultf(bus.CodeNoCapacity, "full")},
				volumeDone{kind: bus.DeleteVolume},
				volumeSeen{bus.VolumeStatus{State: bus.CloudInUse}},
				volumeClaimed{machine},
				volumeFreed{machine},
				volumeTick{},
			}).Draw(t, "event")
			next, _, err := v.step(ev, at)
			require.NoError(t, err)
			if v.Machine != "" && next.Machine != v.Machine {
				require.Equal(t, volumeFreed{v.Machine}, ev, "only its own machine gives it back")
			}
			require.Equal(t, next.State == VolumeAttached, next.Machine != "")
			if v.State == VolumeDeleted {
				require.Equal(t, v, next)
			}
			v = next
		}
	})
}

func TestSlot_IsReplacedOnce(t *testing.T) {
	t.Parallel()
	first := someSlot.step(slotReplaced{old: someMachine, next: otherMachine}, atTime(0))
	require.Equal(t, otherMachine, first.Machine)
	require.Equal(t, someVolume, first.Volume, "the cache outlives the machine")
	require.Equal(t, 2, first.Generation)
	require.Equal(t, first, first.step(slotReplaced{old: someMachine, next: "mch-cccccccccccccccc"}, atTime(0)), "whoever comes second finds the new one")
	replaced := first.step(slotReplaced{old: otherMachine, next: someMachine, volume: "vol-bbbbbbbbbbbbbbbb"}, atTime(0))
	require.Equal(t, bus.VolumeID("vol-bbbbbbbbbbbbbbbb"), replaced.Volume)
}
