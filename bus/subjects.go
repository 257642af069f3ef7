package bus

// The contract. A tenant's subjects start with api (what it may send), ev and ctl (what it may hear); the server maps
// them to <scope>.<account>.… in CONTROL, so no tenant can name another's.
var (
	// SayHello compares versions and names the caller. A refused caller learns why.
	SayHello = service[Hello, Welcome]("hello", "api.hello", ScopeAny,
		"first request of every connection", RoleAgent, RoleNewMachine, RoleMachine, RoleUser, RoleCI, RoleRefused)

	// CreateBuild is step 1. It is answered after the build is durable.
	CreateBuild = service[BuildCreate, BuildView]("build.create", "api.build.create", ScopeOrganization,
		"1: a client asks for builders", RoleUser, RoleCI)
	// BuildRequests is the safety net of step 2: a pointer to the build's record, so that redelivery means deciding again.
	BuildRequests = queue[BuildRef]("build.requested", "queue.build.{build}", ScopeControl, "BUILDS",
		"2: an API server decides on a build again if nobody has finished deciding")
	// GetBuild answers with the client's certificates once all leases serve: step 5.
	GetBuild = service[BuildRef, BuildView]("build.get", "api.build.get", ScopeOrganization,
		"5: a client that was woken up asks for the truth, and for its certificates", RoleUser, RoleCI)
	// BuildStory wakes clients up and can be replayed by ReplayBuild.
	BuildStory = events[BuildEvent]("build.event", "ev.{project}.{build}", ScopeOrganization, "EVENTS",
		"5: what happens to a build, as it happens", RoleUser, RoleCI)
	// ReplayBuild returns the stored events of a build.
	ReplayBuild = service[BuildRef, BuildEvents]("build.events", "api.build.events", ScopeOrganization,
		"what has happened to a build so far", RoleUser, RoleCI)
	// FinishBuild ends a build by its client's word.
	FinishBuild = service[BuildFinish, BuildView]("build.finish", "api.build.finish", ScopeOrganization,
		"6: a client reports how its build ended", RoleUser, RoleCI)
	// CancelBuild ends a build from anywhere.
	CancelBuild = service[BuildRef, BuildView]("build.cancel", "api.build.cancel", ScopeOrganization,
		"anybody who may build in the project ends a build", RoleUser, RoleCI)
	// BuildIsLive is a client's sign of life.
	BuildIsLive = signal[BuildLive]("build.live", "api.build.live", ScopeOrganization,
		"6: a client says that it still waits or builds", RoleUser, RoleCI)

	// Actions is step 3: the queue of one connection's cloud-agent.
	Actions = queue[Action]("action", "act.{account}.{resource}", ScopeConnection, "ACTIONS",
		"3: what a cloud-agent shall do", RoleAgent)
	// ReportIntent is the write-ahead of a launch.
	ReportIntent = service[LaunchIntent, Empty]("launch.intent", "api.agent.intent", ScopeConnection,
		"3: a cloud-agent is about to launch a machine", RoleAgent)
	// ReportResult tells how an action ended.
	ReportResult = service[ActionResult, Empty]("action.result", "api.agent.result", ScopeConnection,
		"3: how an action ended", RoleAgent)
	// ReportInventory is the truth about the cloud.
	ReportInventory = service[Inventory, Empty]("inventory", "api.agent.inventory", ScopeConnection,
		"3: all tagged machines and volumes", RoleAgent)
	// RejectDelivery is how an agent's queue gets rid of what can never succeed; Actions.Consume sends it.
	RejectDelivery = service[Rejection, Empty]("action.reject", "api.agent.reject", ScopeConnection,
		"3: a cloud-agent will never carry out a message of its queue", RoleAgent)
	// AgentHint asks a cloud-agent for its inventory.
	AgentHint = hint[Empty]("agent.hint", "ctl.agent", ScopeConnection,
		"an API server wants a fresh inventory", RoleAgent)

	// ChallengeMachine starts a registration.
	ChallengeMachine = service[Empty, MachineChallenge]("machine.challenge", "api.machine.{self}.challenge", ScopeConnection,
		"4: a machine asks for bytes to sign", RoleNewMachine, RoleMachine)
	// RegisterMachine proves who a machine is.
	RegisterMachine = service[MachineRegister, MachineCredential]("machine.register", "api.machine.{self}.register", ScopeConnection,
		"4: a machine proves who it is", RoleNewMachine, RoleMachine)
	// RenewMachine answers with a new user JWT for the machine's own key.
	RenewMachine = service[Empty, MachineCredential]("machine.renew", "api.machine.{self}.renew", ScopeConnection,
		"a registered machine renews its credential", RoleMachine)
	// InstructMachine is the conversation of a registered machine.
	InstructMachine = service[Instruct, Instruction]("machine.instruct", "api.machine.{self}.instruct", ScopeConnection,
		"4, 5: a machine says what it does and asks what to do", RoleMachine)
	// MachineIsLive is a machine's sign of life and that of its leases.
	MachineIsLive = signal[MachineReport]("machine.live", "api.machine.{self}.live", ScopeConnection,
		"6: disk, cache and live leases of a machine", RoleMachine)
	// SayGoodbye is a machine's last word.
	SayGoodbye = service[MachineGoodbye, Empty]("machine.goodbye", "api.machine.{self}.goodbye", ScopeConnection,
		"a machine has shut down", RoleMachine)
	// HintMachine wakes a machine up.
	HintMachine = hint[MachineHint]("machine.hint", "ctl.machine.{self}", ScopeConnection,
		"4: an API server has something new for a machine", RoleMachine)

	// CreateProject makes a project.
	CreateProject = service[ProjectCreate, ProjectView]("project.create", "api.project.create", ScopeOrganization,
		"make a project", RoleUser)
	// GetProject finds a project by id, name or default.
	GetProject = service[ProjectRef, ProjectView]("project.get", "api.project.get", ScopeOrganization,
		"find a project", RoleUser, RoleCI)
	// ListProjects returns all projects.
	ListProjects = service[Empty, ProjectList]("project.list", "api.project.list", ScopeOrganization,
		"list projects", RoleUser)
	// CreateToken makes a token from its hash.
	CreateToken = service[TokenCreate, TokenView]("token.create", "api.token.create", ScopeOrganization,
		"make a token", RoleUser)
	// ListTokens returns all tokens, without secrets.
	ListTokens = service[Empty, TokenList]("token.list", "api.token.list", ScopeOrganization,
		"list tokens", RoleUser)
	// RevokeToken ends a token and every connection that it opened.
	RevokeToken = service[TokenRef, Empty]("token.revoke", "api.token.revoke", ScopeOrganization,
		"revoke a token", RoleUser)
	// ListRecentBuilds returns the newest builds.
	ListRecentBuilds = service[ListBuilds, BuildList]("build.list", "api.build.list", ScopeOrganization,
		"list builds", RoleUser, RoleCI)
	// ListLiveMachines returns the machines of an organization.
	ListLiveMachines = service[Empty, MachineList]("machine.list", "api.machine.list", ScopeOrganization,
		"list machines", RoleUser)
)
