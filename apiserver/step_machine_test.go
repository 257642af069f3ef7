package apiserver

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/depotctl/depot/bus"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func atTime(d time.Duration) moment { return moment{defaultTimeouts, epoch.Add(d)} }

// identity is a machine's key, fixed so that steps can be repeated.
var identity = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

func identityPEM() string {
	der, err := x509.MarshalPKIXPublicKey(identity.Public())
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

const challenge = "Y2hhbGxlbmdl"

func signedClaim(id bus.MachineID, attempt int) bus.MachineRegister {
	r := bus.MachineRegister{
		Attempt: attempt, IdentityKey: identityPEM(), UserKey: "U", Challenge: challenge, Attestation: bus.Attestation{Kind: AttestorNonce},
	}
	r.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(identity, bus.RegistrationDigest(id, r)))
	return r
}

const (
	someMachine = bus.MachineID("mch-aaaaaaaaaaaaaaaa")
	someVolume  = bus.VolumeID("vol-aaaaaaaaaaaaaaaa")
	someBuild   = bus.BuildID("bld-aaaaaaaaaaaaaaaa")
	someLease   = bus.LeaseID("lse-aaaaaaaaaaaaaaaa")
)

var someSlot = Slot{
	Organization: "org-aaaaaaaaaaaaaaaa", Project: "prj-aaaaaaaaaaaaaaaa", Connection: "con-aaaaaaaaaaaaaaaa",
	Architecture: bus.AMD64, Machine: someMachine, Volume: someVolume, Generation: 1,
}

// machineIn is a machine as it is in a state, with or without a lease.
func machineIn(s MachineState, leased bool) Machine {
	m := newMachine(someMachine, someSlot, atTime(0))
	m.State = s
	m.Launched = s != MachineWanted
	m.NonceHash, m.Challenge, m.ChallengeEnd = strings.Repeat("0", 64), challenge, epoch.Add(24*time.Hour)
	m.MissingSince = epoch.Add(-time.Hour)
	if m.in(MachineRegistered, MachineServing, MachineDraining, MachineStopping, MachineStopped, MachineStarting) {
		m.NonceUsed, m.IdentityKey = true, identityPEM()
	}
	if s == MachineDeleting {
		m.DeletedAt = epoch
	}
	if leased {
		m.Leases[someLease] = Lease{Build: someBuild, TakenAt: epoch, Deadline: epoch.Add(1000 * time.Hour)}
	}
	return m
}

var machineColumns = []MachineState{
	MachineWanted, MachineLaunching, MachineBooting, MachineRegistered, MachineServing, MachineDraining,
	MachineStopping, MachineStopped, MachineStarting, MachineFailed, MachineDeleting, MachineDeleted,
}

// TestMachine_StepTable is the whole of a machine's life: for each event and each state, the state after it. A dot
// means that the machine stays where it is; an x that the event is refused. Each machine has one lease; where a row says
// idle it has none.
func TestMachine_StepTable(t *testing.T) {
	t.Parallel()
	table := `
event              wanted    launching  booting    registered serving  draining stopping stopped  starting   failed   deleting deleted
volume             launching .          .          .          .        .        .        .        .          .        .        .
intended           x         .          .          x          x        x        x        x        .          x        x        x
create_done        .         booting    .          .          .        .        .        .        booting    .        .        .
create_refused     .         failed     failed     .          .        .        .        .        failed     .        .        .
stop_done          .         .          .          .          .        .        stopped  .        .          .        .        .
stop_refused       .         .          .          .          .        .        failed   .        .          .        .        .
delete_done        .         .          .          .          .        .        .        .        .          .        .        .
seen_running       .         booting    .          .          .        .        .        .        booting    .        .        .
seen_stopping      .         failed     failed     failed     failed   failed   .        .        .          .        .        .
seen_stopped       .         failed     failed     failed     failed   failed   stopped  .        .          .        .        .
seen_terminated    .         failed     failed     failed     failed   failed   failed   failed   failed     .        deleted  .
missing            .         .          failed     failed     failed   failed   failed   failed   failed     .        deleted  .
condemned          failed    failed     failed     failed     failed   failed   failed   failed   failed     .        .        .
challenged         x         .          .          .          .        .        x        x        .          x        x        x
registered         x         registered registered .          .        .        x        x        registered x        x        x
old_attempt        x         x          x          x          x        x        x        x        x          x        x        x
daemon_starting    .         .          .          .          .        .        .        .        .          .        .        .
daemon_ready       .         .          .          serving    .        .        .        .        .          .        .        .
daemon_failed      .         .          .          failed     failed   failed   .        .        .          .        .        .
taken              .         .          .          .          .        x        x        starting .          x        x        x
released           .         .          .          .          .        stopping .        .        .          deleting .        .
goodbye            .         .          failed     failed     failed   failed   .        .        .          .        .        .
overdue            failed    failed     failed     failed     .        .        failed   deleting failed     deleting failed   .
idle_overdue       failed    failed     failed     failed     draining stopping failed   deleting failed     deleting failed   .
`
	events := map[string]machineEvent{
		"volume":          machineVolume{someVolume},
		"intended":        machineIntended{1, strings.Repeat("0", 64), ""},
		"create_done":     machineDone{kind: bus.CreateMachine, attempt: 1},
		"create_refused":  machineDone{kind: bus.CreateMachine, attempt: 1, fault: bus.Faultf(bus.CodeNoCapacity, "full")},
		"stop_done":       machineDone{kind: bus.StopMachine, attempt: 1},
		"stop_refused":    machineDone{kind: bus.StopMachine, attempt: 1, fault: bus.Faultf(bus.CodeInternal, "no")},
		"delete_done":     machineDone{kind: bus.DeleteMachine, attempt: 1, agentAt: epoch},
		"seen_running":    machineObserved{bus.MachineStatus{Attempt: 1, State: bus.CloudRunning}},
		"seen_stopping":   machineObserved{bus.MachineStatus{Attempt: 1, State: bus.CloudStopping}},
		"seen_stopped":    machineObserved{bus.MachineStatus{Attempt: 1, State: bus.CloudStopped}},
		"seen_terminated": machineObserved{bus.MachineStatus{Attempt: 1, State: bus.CloudTerminated}},
		"missing":         machineMissing{epoch},
		"condemned":       machineCondemned{"because", false},
		"challenged":      machineChallenged{1, "x"},
		"registered":      machineRegistered{bus.RoleNewMachine, nonceAttestor{}, signedClaim(someMachine, 1)},
		"old_attempt":     machineRegistered{bus.RoleNewMachine, nonceAttestor{}, signedClaim(someMachine, 0)},
		"daemon_starting": machineReported{bus.DaemonStatus{State: bus.DaemonStarting}, []string{"a:1"}},
		"daemon_ready":    machineReported{bus.DaemonStatus{State: bus.DaemonReady}, []string{"a:1"}},
		"daemon_failed":   machineReported{bus.DaemonStatus{State: bus.DaemonFailed}, nil},
		"taken":           machineTaken{"lse-bbbbbbbbbbbbbbbb", Lease{Build: someBuild, Deadline: epoch.Add(time.Hour)}},
		"released":        machineReleased{someLease},
		"goodbye":         machineGoodbye{},
		"overdue":         machineTick{},
		"idle_overdue":    machineTick{},
	}
	rows := strings.Split(strings.TrimSpace(table), "\n")
	require.Len(t, rows, len(events)+1, "a row for each event")
	for _, row := range rows[1:] {
		cells := strings.Fields(row)
		require.Len(t, cells, len(machineColumns)+1, row)
		for i, want := range cells[1:] {
			from := machineColumns[i]
			t.Run(cells[0]+"/"+string(from), func(t *testing.T) {
				t.Parallel()
				at := atTime(time.Second)
				if strings.Contains(cells[0], "overdue") {
					at = atTime(30 * 24 * time.Hour)
				}
				before := machineIn(from, !strings.HasPrefix(cells[0], "idle"))
				after, _, err := before.step(events[cells[0]], at)
				switch want {
				case "x":
					require.Error(t, err)
					require.NotContains(t, err.Error(), "no transition", "the event is refused, not illegal")
					require.Equal(t, before, after)
				case ".":
					require.NoError(t, err)
					require.Equal(t, from, after.State)
				default:
					require.NoError(t, err)
					require.Equal(t, MachineState(want), after.State)
				}
			})
		}
	}
}

// drawMachineEvent draws any event, fitting or not, for the machine as it is.
func drawMachineEvent(t *rapid.T, m Machine, at moment) machineEvent {
	attempt := rapid.SampledFrom([]int{m.Attempt, m.Attempt, m.Attempt, m.Attempt - 1}).Draw(t, "attempt")
	kind := rapid.SampledFrom([]bus.ActionKind{bus.CreateMachine, bus.StartMachine, bus.StopMachine, bus.DeleteMachine}).Draw(t, "kind")
	var fault *bus.Fault
	if rapid.IntRange(0, 3).Draw(t, "fault") == 0 {
		fault = bus.Faultf(bus.CodeNoCapacity, "full")
	}
	lease := rapid.SampledFrom([]bus.LeaseID{"lse-1", "lse-2"}).Draw(t, "lease")
	cloud := rapid.SampledFrom([]bus.CloudState{bus.CloudPending, bus.CloudRunning, bus.CloudStopping, bus.CloudStopped, bus.CloudShuttingDown, bus.CloudTerminated}).Draw(t, "cloud")
	daemon := rapid.SampledFrom([]bus.DaemonState{bus.DaemonStopped, bus.DaemonStarting, bus.DaemonReady, bus.DaemonReady, bus.DaemonFailed}).Draw(t, "daemon")
	return rapid.SampledFrom([]machineEvent{
		machineVolume{m.Volume},
		machineIntended{attempt, strings.Repeat("0", 64), ""},
		machineDone{kind, attempt, fault, at.now},
		machineObserved{bus.MachineStatus{Attempt: attempt, State: cloud}},
		machineMissing{at.now},
		machineCondemned{"because", false},
		machineChallenged{attempt, challenge},
		machineRegistered{bus.RoleNewMachine, nonceAttestor{}, signedClaim(m.ID, attempt)},
		machineRegistered{bus.RoleMachine, nonceAttestor{}, signedClaim(m.ID, attempt)},
		machineReported{bus.DaemonStatus{State: daemon}, []string{"a:1"}},
		machineTaken{lease, Lease{Build: someBuild, Deadline: at.now.Add(time.Hour)}},
		machineCertified{lease: lease, generation: m.Leases[lease].Generation + 1, csr: "c"},
		machineReleased{lease},
		machineGoodbye{},
		machineTick{},
	}).Draw(t, "event")
}

func TestMachine_NoOrderOfEventsBreaksTheRules(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		idle := rapid.SampledFrom([]time.Duration{-1, time.Minute}).Draw(t, "idle")
		at := atTime(0)
		at.Idle = idle
		m := newMachine(someMachine, someSlot, at)
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			at.now = at.now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "seconds")) * time.Second)
			ev := drawMachineEvent(t, m, at)
			next, _, err := m.step(ev, at)
			if err != nil {
				_, refusal := err.(*bus.Fault) //nolint:errorlint // a refusal is a bare fault
				require.True(t, refusal, "%T in %s: %v", ev, m.State, err)
				require.Equal(t, m, next, "a refused event changes nothing")
				continue
			}
			checkMachineStep(t, m, next, ev, at)
			m = next
		}
		requireMachineEnds(t, m, at)
	})
}

func checkMachineStep(t *rapid.T, before, after Machine, ev machineEvent, at moment) {
	if before.State == MachineDeleted {
		require.Equal(t, before, after, "an end is an end")
	}
	require.GreaterOrEqual(t, after.Attempt, before.Attempt, "attempts fence")
	held := 0
	for _, l := range before.Leases {
		if at.now.Before(l.Deadline) {
			held++
		}
	}
	_, gaveBack := ev.(machineReleased)
	if held > 0 && !gaveBack && before.State != MachineFailed && before.State != after.State {
		require.NotContains(t, []MachineState{MachineStopping, MachineStopped, MachineDeleting, MachineDeleted, MachineDraining}, after.State,
			"%T took a machine with a lease from %s to %s", ev, before.State, after.State)
	}
	if after.State == MachineDeleted && before.State != MachineDeleted && after.Launched {
		require.False(t, after.DeletedAt.IsZero(), "what was launched is deleted before it is forgotten")
	}
	if after.IdentityKey != before.IdentityKey {
		require.Empty(t, before.IdentityKey, "a key is bound once")
	}
}

// requireMachineEnds lets time pass: every state has an exit, and with an agent that deletes what it is told to, all of
// them lead to the end.
func requireMachineEnds(t *rapid.T, m Machine, at moment) {
	for range 40 {
		if m.State == MachineDeleted {
			return
		}
		at.now = at.now.Add(8 * 24 * time.Hour)
		before := m
		for _, ev := range []machineEvent{machineTick{}, machineReleased{}, machineDone{kind: bus.DeleteMachine, attempt: m.Attempt, agentAt: at.now}, machineMissing{at.now}} {
			next, _, err := m.step(ev, at)
			require.NoError(t, err)
			m = next
		}
		require.NotEqual(t, before, m, "stuck in %s", m.State)
	}
	require.Equal(t, MachineDeleted, m.State)
}

func TestMachine_EveryStateHasADeadlineAndAnExit(t *testing.T) {
	t.Parallel()
	for _, s := range machineColumns {
		m := machineIn(s, false)
		after, _, err := m.step(machineTick{}, atTime(365*24*time.Hour))
		require.NoError(t, err)
		if s == MachineDeleted {
			require.Equal(t, m, after)
			continue
		}
		require.Positive(t, m.patience(defaultTimeouts), "%s", s)
		require.NotEqual(t, s, after.State, "%s has no exit", s)
	}
	require.Equal(t, []MachineState{MachineDeleted}, machineTransitions.ends())
	require.ElementsMatch(t, machineColumns, machineTransitions.states())
}

// TestMachine_EveryArrowIsTaken finds arrows of the table that no event takes, which would be drawn and mean nothing.
func TestMachine_EveryArrowIsTaken(t *testing.T) {
	t.Parallel()
	taken := map[transition[MachineState]]bool{}
	for _, s := range machineColumns {
		for _, leased := range []bool{false, true} {
			for _, retire := range []bool{false, true} {
				for _, launched := range []bool{false, true} {
					m := machineIn(s, leased)
					m.Retire, m.Launched = retire, launched || m.Launched && s != MachineFailed
					for _, ev := range everyMachineEvent() {
						for _, d := range []time.Duration{time.Second, 30 * 24 * time.Hour} {
							at := atTime(d)
							at.Idle = time.Hour
							if after, _, err := m.step(ev, at); err == nil && after.State != s {
								taken[transition[MachineState]{s, ev.name(), after.State}] = true
							}
						}
					}
				}
			}
		}
	}
	for _, arrow := range machineTransitions {
		require.True(t, taken[arrow], "%s --%s--> %s is never taken", arrow.from, arrow.on, arrow.to)
	}
}

func everyMachineEvent() []machineEvent {
	fault := bus.Faultf(bus.CodeInternal, "no")
	events := []machineEvent{
		machineVolume{someVolume},
		machineMissing{epoch},
		machineCondemned{"because", false},
		machineRegistered{bus.RoleNewMachine, nonceAttestor{}, signedClaim(someMachine, 1)},
		machineReported{bus.DaemonStatus{State: bus.DaemonReady}, []string{"a:1"}},
		machineReported{bus.DaemonStatus{State: bus.DaemonFailed}, nil},
		machineTaken{"lse-bbbbbbbbbbbbbbbb", Lease{Build: someBuild, Deadline: epoch.Add(time.Hour)}},
		machineReleased{someLease},
		machineGoodbye{},
		machineTick{},
	}
	for _, k := range []bus.ActionKind{bus.CreateMachine, bus.StartMachine, bus.StopMachine, bus.DeleteMachine} {
		events = append(events, machineDone{kind: k, attempt: 1}, machineDone{kind: k, attempt: 1, fault: fault})
	}
	for _, s := range []bus.CloudState{bus.CloudRunning, bus.CloudStopped, bus.CloudTerminated} {
		events = append(events, machineObserved{bus.MachineStatus{Attempt: 1, State: s}})
	}
	return slices.Clip(events)
}
