package bus

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// needs is what an action of each kind must carry: written down a second time, because the vocabulary is the limit of
// what an API server can make a cloud-agent do.
var needs = map[ActionKind]struct{ machine, volume, project, size bool }{
	"machine.create": {machine: true, project: true},
	"machine.start":  {machine: true},
	"machine.stop":   {machine: true},
	"machine.delete": {machine: true},
	"volume.create":  {volume: true, project: true, size: true},
	"volume.attach":  {machine: true, volume: true},
	"volume.detach":  {machine: true, volume: true},
	"volume.delete":  {volume: true},
}

// TestAction_IsValidExactlyWhenItCarriesWhatItsKindNeeds tries every kind with every combination of fields that are
// there, absent or wrong: 8 kinds x 3^7.
func TestAction_IsValidExactlyWhenItCarriesWhatItsKindNeeds(t *testing.T) {
	t.Parallel()
	const (
		absent = iota
		present
		wrong
		states
	)
	const fields = 7
	combinations := 1
	for range fields {
		combinations *= states
	}
	for kind, need := range needs {
		valid := 0
		for n := range combinations {
			state := [fields]int{}
			for i, rest := 0, n; i < fields; i, rest = i+1, rest/states {
				state[i] = rest % states
			}
			pick := func(i int, good, bad string) string { return [states]string{"", good, bad}[state[i]] }
			a := Action{
				Kind: kind, ID: pick(0, "id", "id"), Machine: MachineID(pick(1, string(exampleMachine), "mch-*")), Volume: VolumeID(pick(2, string(exampleVolume), ">")),
				Project: ProjectID(pick(3, string(exampleProject), "prj")), Architecture: Arch(pick(4, "arm64", "sparc")),
				Attempt: [states]int{0, 1, -1}[state[5]], SizeGB: [states]int{0, 1, -1}[state[6]],
			}
			want := a.ID != "" &&
				(state[1] == present && state[5] == present || state[1] == absent && !need.machine) &&
				(state[2] == present || state[2] == absent && !need.volume) &&
				(!need.project || state[3] == present && state[4] == present) &&
				(!need.size || state[6] == present)
			if want {
				valid++
			}
			require.Equal(t, want, a.Validate() == nil, "%+v", a)
		}
		require.Positive(t, valid, kind)
	}
}

func TestActionKind_VocabularyIsClosed(t *testing.T) {
	t.Parallel()
	for kind := range needs {
		require.NoError(t, kind.Validate())
		for _, near := range []string{strings.ToUpper(string(kind)), string(kind) + " ", " " + string(kind), string(kind)[1:], string(kind) + "s", strings.Replace(string(kind), ".", "_", 1)} {
			bad := ActionKind(near)
			require.Error(t, bad.Validate(), near)
			a := Action{Kind: bad, ID: "id", Machine: exampleMachine, Volume: exampleVolume, Project: exampleProject, Architecture: ARM64, Attempt: 1, SizeGB: 1}
			require.Error(t, a.Validate(), near)
		}
	}
	for _, bad := range []ActionKind{"", ".", "machine", "machine.exec", "volume.snapshot", "image.create", "machine.create\x00"} {
		require.Error(t, bad.Validate(), bad)
	}
}

func TestActionID_TellsActionsApart(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, resource := range []string{string(exampleMachine), string(NewMachineID()), string(exampleVolume)} {
		for attempt := 1; attempt < 12; attempt++ {
			for kind := range needs {
				id := ActionID(resource, attempt, kind)
				require.False(t, seen[id], id)
				seen[id] = true
			}
		}
	}
}

func exampleOf[M Message](t *testing.T, name string) M {
	t.Helper()
	for _, m := range wireExamples() {
		if msg, ok := m.example.(M); ok && m.name == name {
			return msg
		}
	}
	require.Fail(t, "no example", name)
	var none M
	return none
}

func TestValidate_RefusesWhatCannotBeMeant(t *testing.T) {
	t.Parallel()
	type refuse = func() (Message, string)
	for name, f := range map[string]refuse{
		"an architecture twice": func() (Message, string) {
			m := exampleOf[BuildCreate](t, "build.create.v1")
			m.Architectures = []Arch{AMD64, AMD64}
			return m, "twice"
		},
		"an unknown architecture": func() (Message, string) {
			m := exampleOf[BuildCreate](t, "build.create.v1")
			m.Architectures = []Arch{"riscv"}
			return m, "riscv"
		},
		"no request for a certificate": func() (Message, string) {
			m := exampleOf[BuildCreate](t, "build.create.v1")
			m.CSR = ""
			return m, "csr"
		},
		"a huge request for a certificate": func() (Message, string) {
			m := exampleOf[BuildCreate](t, "build.create.v1")
			m.CSR = strings.Repeat("x", maxPEM+1)
			return m, "csr"
		},
		"a negative timeout": func() (Message, string) {
			m := exampleOf[BuildCreate](t, "build.create.v1")
			m.AcquireSeconds = -1
			return m, "negative"
		},
		"an end that only the server gives": func() (Message, string) {
			m := exampleOf[BuildFinish](t, "build.finish.v1")
			m.State = BuildExpired
			return m, "expired"
		},
		"a story as a reason": func() (Message, string) {
			m := exampleOf[BuildFinish](t, "build.finish.v1")
			m.Reason = strings.Repeat("x", 1025)
			return m, "1 KiB"
		},
		"an event of an unknown stage": func() (Message, string) {
			m := exampleOf[BuildEvent](t, "build.event.v1")
			m.Stage = "thinking"
			return m, "thinking"
		},
		"a hash that is none": func() (Message, string) {
			m := exampleOf[TokenCreate](t, "token.create.v1")
			m.Hash = strings.Repeat("x", 64)
			return m, "hash"
		},
		"a token for a machine": func() (Message, string) {
			m := exampleOf[TokenCreate](t, "token.create.v1")
			m.Role = RoleMachine
			return m, "machine"
		},
		"a machine in an unknown state": func() (Message, string) {
			m := exampleOf[Inventory](t, "inventory.v1")
			m.Machines = []MachineStatus{{Machine: exampleMachine, State: "lost"}}
			return m, "lost"
		},
		"a grant without its root": func() (Message, string) {
			m := exampleOf[Instruction](t, "machine.instruct.reply.v1")
			m.Leases = []LeaseGrant{m.Leases[0]}
			m.Leases[0].CA = ""
			return m, "ca"
		},
		"an unknown desire": func() (Message, string) {
			m := exampleOf[Instruction](t, "machine.instruct.reply.v1")
			m.Desire = "explode"
			return m, "explode"
		},
		"a result with an empty fault": func() (Message, string) {
			m := exampleOf[ActionResult](t, "action.result.v1")
			m.Fault = &Fault{}
			return m, "fault"
		},
		"more builds than fit": func() (Message, string) { return ListBuilds{Limit: 501}, "500" },
		"a list with a bad item": func() (Message, string) {
			return TokenList{Tokens: []TokenView{{Token: exampleToken}, {Token: "tok"}}}, "item 1"
		},
	} {
		msg, want := f()
		require.ErrorContains(t, msg.Validate(), want, name)
	}
	for _, m := range wireExamples() {
		require.NoError(t, m.example.Validate(), m.name)
	}
}

func TestBuildState_EndsAreFinal(t *testing.T) {
	t.Parallel()
	ends := 0
	for _, s := range []BuildState{BuildRequested, BuildWaiting, BuildReady, BuildRunning, BuildSucceeded, BuildFailed, BuildCanceled, BuildExpired} {
		require.NoError(t, s.Validate())
		if s.Ended() {
			ends++
			client := s != BuildExpired
			require.Equal(t, client, BuildFinish{Build: exampleBuild, State: s}.Validate() == nil, s)
		}
	}
	require.Equal(t, 4, ends)
	require.Error(t, BuildState("paused").Validate())
}

func TestUserData_NamesAllThatIsMissing(t *testing.T) {
	t.Parallel()
	good := UserData{
		Machine: exampleMachine, Attempt: 1, Architecture: AMD64, Nonce: "nonce", BusURL: "nats://127.0.0.1:4250", StateDir: "/s", CacheDir: "/c",
		Listen: "127.0.0.1:0", Attestor: "nonce", Buildkitd: "/usr/bin/buildkitd",
	}
	require.NoError(t, good.Validate())
	err := UserData{}.Validate()
	for _, missing := range []string{"machine", "architecture", "attempt", "nonce", "bus_url", "state_dir", "cache_dir", "listen", "attestor", "buildkitd"} {
		require.ErrorContains(t, err, missing)
	}
	require.Equal(t, err.Error(), UserData{}.Validate().Error(), "always in the same order")
	good.Listen = "no port"
	require.Error(t, good.Validate())
	require.Equal(t, "user data of "+string(exampleMachine)+".1", fmt.Sprint(good))
}
