package apiserver

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/depotctl/depot/bus"
)

const otherMachine = bus.MachineID("mch-bbbbbbbbbbbbbbbb")

func requestedBuild(archs ...bus.Arch) Build {
	return newBuild(bus.BuildCreate{Build: someBuild, CSR: "csr"}, bus.Caller{Organization: someSlot.Organization}, Project{ID: someSlot.Project, Name: "p"}, archs, atTime(0))
}

// buildIn is a build with one lease as it is in a state.
func buildIn(s bus.BuildState) Build {
	b := requestedBuild(bus.AMD64)
	b.State = s
	if s != bus.BuildRequested {
		b.Leases[0].Machine = someMachine
	}
	if s == bus.BuildReady || s == bus.BuildRunning {
		b.Leases[0].Serving = 1
	}
	return b
}

var buildColumns = []bus.BuildState{
	bus.BuildRequested, bus.BuildWaiting, bus.BuildReady, bus.BuildRunning, bus.BuildSucceeded, bus.BuildFailed, bus.BuildCanceled, bus.BuildExpired,
}

// TestBuild_StepTable is the whole of a build's life, for a build with one lease: for each event and each state, the
// state after it. A dot means that the build stays as it is.
func TestBuild_StepTable(t *testing.T) {
	t.Parallel()
	table := `
event          requested waiting   ready     running   succeeded failed canceled expired
placed         waiting   .         .         .         .         .      .        .
served         .         ready     .         .         .         .      .        .
served_twice   .         ready     .         .         .         .      .        .
other_machine  .         .         .         .         .         .      .        .
unserved       .         .         waiting   .         .         .      .        .
lost           .         .         .         .         .         .      .        .
lost_last      .         failed    .         .         .         .      .        .
lost_for_good  .         failed    .         .         .         .      .        .
refused        .         .         .         .         .         .      .        .
connected      .         .         running   .         .         .      .        .
succeeded      succeeded succeeded succeeded succeeded .         .      .        .
failed         failed    failed    failed    failed    .         .      .        .
canceled       canceled  canceled  canceled  canceled  .         .      .        .
acquire_over   expired   expired   .         .         .         .      .        .
deadline       expired   expired   expired   expired   .         .      .        .
`
	lease := requestedBuild(bus.AMD64).Leases[0].ID
	events := map[string]buildEvent{
		"placed":        buildPlaced{lease, otherMachine},
		"served":        buildServed{lease, someMachine, 1},
		"served_twice":  buildServed{lease, someMachine, 2},
		"other_machine": buildServed{lease, otherMachine, 3},
		"unserved":      buildUnserved{lease, 2},
		"lost":          buildLost{lease, "gone", false},
		"lost_last":     buildLost{lease, "gone", false},
		"lost_for_good": buildLost{lease, "gone", true},
		"refused":       buildRefused{lease, someMachine},
		"connected":     buildConnected{lease},
		"succeeded":     buildFinished{bus.BuildSucceeded, ""},
		"failed":        buildFinished{bus.BuildFailed, "exit code 1"},
		"canceled":      buildCanceled{"by hand"},
		"acquire_over":  buildTick{},
		"deadline":      buildTick{},
	}
	at := map[string]moment{"acquire_over": atTime(5 * time.Minute), "deadline": atTime(6 * time.Hour)}
	rows := strings.Split(strings.TrimSpace(table), "\n")
	require.Len(t, rows, len(events)+1, "a row for each event")
	for _, row := range rows[1:] {
		cells := strings.Fields(row)
		for i, want := range cells[1:] {
			t.Run(cells[0]+"/"+string(buildColumns[i]), func(t *testing.T) {
				t.Parallel()
				now, ok := at[cells[0]]
				if !ok {
					now = atTime(time.Second)
				}
				before := buildIn(buildColumns[i])
				if cells[0] == "lost_last" {
					before.Leases[0].Attempt = defaultTimeouts.Attempts
				}
				after, _, err := before.step(events[cells[0]], now)
				require.NoError(t, err)
				if want == "." {
					want = string(before.State)
				}
				require.Equal(t, want, string(after.State))
				if before.State.Ended() {
					require.Equal(t, before, after)
				}
			})
		}
	}
}

func TestBuild_IsReadyOnlyWhenAllLeasesServe(t *testing.T) {
	t.Parallel()
	b := requestedBuild(bus.AMD64, bus.ARM64)
	first, second := b.Leases[0].ID, b.Leases[1].ID
	for _, ev := range []buildEvent{buildPlaced{first, someMachine}, buildPlaced{second, otherMachine}, buildServed{first, someMachine, 1}} {
		var err error
		b, _, err = b.step(ev, atTime(0))
		require.NoError(t, err)
	}
	require.Equal(t, bus.BuildWaiting, b.State)
	b, effects, err := b.step(buildServed{second, otherMachine, 1}, atTime(time.Second))
	require.NoError(t, err)
	require.Equal(t, bus.BuildReady, b.State)
	require.Equal(t, epoch.Add(time.Second), b.ReadyAt)
	require.Contains(t, effects, b.event(atTime(time.Second), &b.Leases[1], bus.StageServing, "builder is ready"))
}

func TestBuild_TriesFurtherMachinesAndThenSaysWhy(t *testing.T) {
	t.Parallel()
	b := buildIn(bus.BuildWaiting)
	seen := map[bus.LeaseID]bool{}
	for attempt := 1; attempt < defaultTimeouts.Attempts; attempt++ {
		l := b.Leases[0]
		require.False(t, seen[l.ID], "each attempt is a lease of its own")
		seen[l.ID] = true
		next, effects, err := b.step(buildLost{l.ID, "no capacity", false}, atTime(0))
		require.NoError(t, err)
		require.Equal(t, attempt+1, next.Leases[0].Attempt)
		require.True(t, next.Leases[0].NotBefore.After(epoch), "the next attempt waits")
		require.Contains(t, effects, place{b.ID})
		require.Contains(t, effects, release{l.Machine, l.ID})
		b = next
		b.Leases[0].Machine = someMachine
	}
	b, _, err := b.step(buildLost{b.Leases[0].ID, "no capacity", false}, atTime(0))
	require.NoError(t, err)
	require.Equal(t, bus.BuildFailed, b.State)
	require.Equal(t, "no builder for amd64: 3 attempts, the last: no capacity", b.Reason)
}

func TestBuild_ClientDecidesWhenItKnowsTheMachineThatIsLost(t *testing.T) {
	t.Parallel()
	for _, s := range []bus.BuildState{bus.BuildReady, bus.BuildRunning} {
		b := buildIn(s)
		after, effects, err := b.step(buildLost{b.Leases[0].ID, "out of memory", false}, atTime(0))
		require.NoError(t, err)
		require.Equal(t, s, after.State)
		require.True(t, after.Leases[0].Lost)
		require.Contains(t, effects, after.event(atTime(0), &after.Leases[0], bus.StageQueued, "machine lost: out of memory"))
		again, effects, err := after.step(buildServed{b.Leases[0].ID, someMachine, 5}, atTime(0))
		require.NoError(t, err)
		require.Empty(t, effects)
		require.Equal(t, after, again, "a lost lease stays lost")
	}
}

func TestBuild_NoOrderOfEventsBreaksTheRules(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		b := requestedBuild(rapid.SampledFrom([][]bus.Arch{{bus.AMD64}, {bus.AMD64, bus.ARM64}}).Draw(t, "archs")...)
		at := atTime(0)
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			at.now = at.now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "seconds")) * time.Second)
			l := rapid.SampledFrom(b.Leases).Draw(t, "lease")
			machine := rapid.SampledFrom([]bus.MachineID{someMachine, otherMachine}).Draw(t, "machine")
			generation := rapid.IntRange(1, 3).Draw(t, "generation")
			ev := rapid.SampledFrom([]buildEvent{
				buildPlaced{l.ID, machine},
				buildServed{l.ID, machine, generation},
				buildServed{l.ID, l.Machine, generation},
				buildUnserved{l.ID, generation},
				buildLost{l.ID, "gone", false},
				buildLost{l.ID, "gone", true},
				buildRefused{l.ID, machine},
				buildConnected{l.ID},
				buildFinished{bus.BuildSucceeded, ""},
				buildFinished{bus.BuildFailed, ""},
				buildCanceled{""},
				buildTick{},
			}).Draw(t, "event")
			next, effects, err := b.step(ev, at)
			require.NoError(t, err)
			if b.State.Ended() {
				require.Equal(t, b, next, "an end is an end")
			}
			if next.State == bus.BuildReady && b.State != bus.BuildReady {
				for _, l := range next.Leases {
					require.NotZero(t, l.Serving)
					require.NotEmpty(t, l.Machine)
				}
			}
			if next.State.Ended() && !b.State.Ended() {
				for _, l := range next.Leases {
					if l.Machine != "" {
						require.Contains(t, effects, release{l.Machine, l.ID}, "every lease is given back")
					}
				}
			}
			b = next
		}
		if !b.State.Ended() {
			at.now = b.deadline()
			b, _, err := b.step(buildTick{}, at)
			require.NoError(t, err)
			require.True(t, b.State.Ended(), "a deadline ends every build")
		}
	})
}

func TestBuild_EveryStateHasADeadline(t *testing.T) {
	t.Parallel()
	for _, s := range buildColumns {
		b := buildIn(s)
		require.Equal(t, s.Ended(), b.deadline().IsZero(), "%s", s)
	}
	require.ElementsMatch(t, buildColumns, buildTransitions.states())
	require.ElementsMatch(t, buildColumns[4:], buildTransitions.ends())
}

func TestBuild_ClientCannotAskForMoreTimeThanThereIs(t *testing.T) {
	t.Parallel()
	b := newBuild(bus.BuildCreate{Build: someBuild, TimeoutSeconds: 1 << 30, AcquireSeconds: 7}, bus.Caller{}, Project{}, nil, atTime(0))
	require.Equal(t, epoch.Add(defaultTimeouts.MaxBuild), b.Deadline)
	require.Equal(t, epoch.Add(7*time.Second), b.deadline())
}
