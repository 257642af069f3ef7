package bus

import (
	"slices"
	"strings"
	"time"
)

// Fixed identifiers of the golden files.
const (
	exampleOrganization OrganizationID = "org-aaaaaaaaaaaaaaaa"
	exampleProject      ProjectID      = "prj-bbbbbbbbbbbbbbbb"
	exampleConnection   ConnectionID   = "con-cccccccccccccccc"
	exampleBuild        BuildID        = "bld-dddddddddddddddd"
	exampleLease        LeaseID        = "lse-eeeeeeeeeeeeeeee"
	exampleMachine      MachineID      = "mch-ffffffffffffffff"
	exampleVolume       VolumeID       = "vol-gggggggggggggggg"
	exampleToken        TokenID        = "tok-hhhhhhhhhhhhhhhh"

	exampleCertificate = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
	exampleCSR         = "-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"
	exampleKey         = "-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n"
)

var exampleHash = strings.Repeat("0123456789abcdef", 4)

func exampleTime(minute int) time.Time {
	return time.Date(2026, 11, 24, 6, minute, 0, 123456789, time.UTC)
}

// wireExamples are all messages of the table, fully filled.
func wireExamples() []wireMessage {
	return slices.Concat(buildExamples(), cloudExamples(), machineExamples(), adminExamples(), []wireMessage{
		wire(typeFault, Faultf(CodeNoCapacity, "no capacity in us-east-1a").WithHint("try again in some minutes")),
	})
}

func exampleBuildView() BuildView {
	return BuildView{
		Build: exampleBuild, Organization: exampleOrganization, Project: exampleProject, ProjectName: "app", State: BuildReady, Reason: "all builders serve",
		Leases: []LeaseView{{
			Lease: exampleLease, Architecture: ARM64, Attempt: 2, Machine: exampleMachine, Stage: StageServing, Reason: "the machine serves",
			Addresses: []string{"10.0.0.5:8372", "203.0.113.7:8372"}, ServerName: string(exampleLease), CA: exampleCertificate, Certificate: exampleCertificate,
		}},
		CreatedAt: exampleTime(1), ReadyAt: exampleTime(2), EndedAt: exampleTime(3), Deadline: exampleTime(59),
	}
}

func buildExamples() []wireMessage {
	ref, view := BuildRef{Build: exampleBuild}, exampleBuildView()
	event := BuildEvent{
		Build: exampleBuild, Project: exampleProject, Time: exampleTime(1), State: BuildWaiting, Architecture: ARM64, Machine: exampleMachine,
		Stage: StageBooting, Message: "the machine boots",
	}
	return slices.Concat(
		SayHello.examples(Hello{Protocol: 1, Version: "v0.1.0"}, Welcome{
			Protocol: 1, Version: "v0.2.0", Role: RoleCI, Organization: exampleOrganization, Connection: exampleConnection, Project: exampleProject,
		}),
		CreateBuild.examples(BuildCreate{
			Build: exampleBuild, Project: "app", Architectures: []Arch{AMD64, ARM64}, CSR: exampleCSR, TimeoutSeconds: 3600, AcquireSeconds: 300,
		}, view),
		BuildRequests.examples(ref),
		GetBuild.examples(ref, view),
		BuildStory.examples(event),
		ReplayBuild.examples(ref, BuildEvents{Events: []BuildEvent{event}}),
		FinishBuild.examples(BuildFinish{Build: exampleBuild, State: BuildFailed, Reason: "exit code 1"}, view),
		CancelBuild.examples(ref, view),
		BuildIsLive.examples(BuildLive{Build: exampleBuild}),
	)
}

func cloudExamples() []wireMessage {
	return slices.Concat(
		Actions.examples(Action{
			ID: ActionID(exampleMachine, 2, CreateMachine), Kind: CreateMachine, Machine: exampleMachine, Attempt: 2, Volume: exampleVolume,
			Project: exampleProject, Architecture: ARM64, SizeGB: 50, IssuedAt: exampleTime(1),
		}),
		ReportIntent.examples(LaunchIntent{Machine: exampleMachine, Attempt: 2, NonceHash: exampleHash, Offering: "m7g.large/us-east-1a/subnet-1"}, Empty{}),
		ReportResult.examples(ActionResult{
			Action: ActionID(exampleMachine, 2, CreateMachine), Kind: CreateMachine, Machine: exampleMachine, Attempt: 2, Volume: exampleVolume,
			Fault: Faultf(CodeNoCapacity, "no capacity in us-east-1a").WithHint("allow another zone"), At: exampleTime(2),
		}, Empty{}),
		ReportInventory.examples(Inventory{
			Version: "v0.1.0", Architectures: []Arch{ARM64}, MaxMachines: 4,
			Machines: []MachineStatus{{
				Machine: exampleMachine, Attempt: 2, Instance: "i-0123456789abcdef0", State: CloudTerminated, Reason: "spot interruption", Project: exampleProject,
				Volume: exampleVolume, Addresses: []string{"10.0.0.5"}, Since: exampleTime(1),
			}},
			Volumes: []VolumeStatus{{Volume: exampleVolume, State: CloudInUse, Machine: exampleMachine, Project: exampleProject, SizeGB: 50}},
			At:      exampleTime(3),
		}, Empty{}),
		RejectDelivery.examples(Rejection{Stream: "ACTIONS", Sequence: 7, Attempts: 2, Cause: DeadRejected, Reason: "outside the vocabulary"}, Empty{}),
		AgentHint.examples(Empty{}),
	)
}

func machineExamples() []wireMessage {
	credential := MachineCredential{JWT: "eyJ0eXAiOiJKV1QifQ.e30.c2ln", ExpiresAt: exampleTime(59)}
	return slices.Concat(
		ChallengeMachine.examples(Empty{}, MachineChallenge{Challenge: "Y2hhbGxlbmdl"}),
		RegisterMachine.examples(MachineRegister{
			Attempt: 2, IdentityKey: exampleKey, UserKey: "UABC", Challenge: "Y2hhbGxlbmdl", Signature: "c2lnbmF0dXJl",
			Attestation: Attestation{Kind: "aws", Document: "ZG9jdW1lbnQ="}, Version: "v0.1.0",
		}, credential),
		RenewMachine.examples(Empty{}, credential),
		InstructMachine.examples(Instruct{
			Daemon: DaemonStatus{State: DaemonReady, Reason: "answered", Version: "v0.33.1"}, Addresses: []string{"10.0.0.5:8372"},
			Serving: []LeaseRef{{Lease: exampleLease, Generation: 1}}, CSRs: []LeaseCSR{{Lease: exampleLease, CSR: exampleCSR}},
		}, Instruction{
			Desire: DesireDrain,
			Leases: []LeaseGrant{{
				Lease: exampleLease, Build: exampleBuild, Generation: 1, CA: exampleCertificate, Certificate: exampleCertificate, ClientSPKI: exampleHash, Deadline: exampleTime(59),
			}},
			Wanted: []LeaseID{exampleLease}, RefreshSeconds: 10, Revision: 42,
		}),
		MachineIsLive.examples(MachineReport{
			DiskFreeBytes: 40 << 30, DiskTotalBytes: 50 << 30, CacheBytes: 9 << 30, Live: []LiveLease{{Lease: exampleLease, Connections: 3}}, At: exampleTime(4),
		}),
		SayGoodbye.examples(MachineGoodbye{Clean: true, Reason: "told to stop"}, Empty{}),
		HintMachine.examples(MachineHint{Lease: exampleLease}),
	)
}

func adminExamples() []wireMessage {
	project := ProjectView{
		Project: exampleProject, Name: "app", Connection: exampleConnection, Architectures: []Arch{AMD64}, Default: true, CreatedAt: exampleTime(1),
	}
	token := TokenView{
		Token: exampleToken, Name: "ci", Role: RoleCI, Project: exampleProject, Connection: exampleConnection, CreatedAt: exampleTime(1), ExpiresAt: exampleTime(59),
	}
	return slices.Concat(
		CreateProject.examples(ProjectCreate{Name: "app", Connection: "main", Architectures: []Arch{AMD64}}, project),
		GetProject.examples(ProjectRef{Project: "app"}, project),
		ListProjects.examples(Empty{}, ProjectList{Projects: []ProjectView{project}}),
		CreateToken.examples(TokenCreate{
			Token: exampleToken, Hash: exampleHash, Name: "ci", Role: RoleCI, Project: "app", Connection: "main", ExpiresAt: exampleTime(59),
		}, token),
		ListTokens.examples(Empty{}, TokenList{Tokens: []TokenView{token}}),
		RevokeToken.examples(TokenRef{Token: exampleToken}, Empty{}),
		ListRecentBuilds.examples(ListBuilds{Project: "app", Limit: 10}, BuildList{Builds: []BuildView{exampleBuildView()}}),
		ListLiveMachines.examples(Empty{}, MachineList{Machines: []MachineView{{
			Machine: exampleMachine, Project: exampleProject, ProjectName: "app", Connection: exampleConnection, Architecture: ARM64, Volume: exampleVolume,
			State: "serving", Reason: "holds a lease", Builds: 1, CreatedAt: exampleTime(1), Since: exampleTime(2), DiskFreeBytes: 40 << 30, CacheBytes: 9 << 30,
		}}}),
	)
}
