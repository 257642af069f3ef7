// Package local is the provider whose cloud is this host. It is what depotd runs with, and a single-host installation.
//
// # What a machine is
//
// A machine is the program machineagent, and whatever it starts, in PID, mount, network, UTS, IPC and cgroup namespaces of
// its own. Its first process is this package's small init (MaybeInit), which the provider starts from the executable it
// runs in:
//
//	provider (depotd, cloudagent)
//	   │ clone(new namespaces), setsid; a socket, a log and the lock "alive" are all that it hands down
//	   ▼
//	init, PID 1     joins cgroups, mounts /proc, /run and the cgroup hierarchies anew, brings up lo and eth0
//	   └─ machineagent --user-data FILE
//	        └─ buildkitd ─ runc ─ RUN steps, in network namespaces behind a bridge in the machine's
//
// It outlives the provider. When init ends, for whatever reason, the kernel ends everything in its PID namespace.
//
// # Network
//
// Each machine is connected to the host by a veth pair with a /30 of a private range. Packets are passed on and
// masqueraded, so that RUN steps and pushes reach what the host reaches: but for the host's loopback, which is not in the
// machine's namespace, and other machines, which rules forbid. Nobody reaches a machine but the host. To the bus there is one way: a unix
// socket in the state directory, whose bytes the provider forwards.
//
// # Guarantees
//
// Safety comes from locks of files, which the kernel releases when their holder dies: "alive", held by a machine's first
// process for life, tells a live machine from a dead one without trusting process ids; the locks of locks/ make every
// change of a machine or volume happen once at a time, over any number of providers. What shall be is written before
// anything is done about it, so that a crash leaves what List shows and the repeated action completes. A launch begins
// only after the removal of the machine's cgroups has proved that nothing of its earlier life still runs.
//
// Liveness comes from repetition: every action may be repeated, and every List removes what dead machines left: veth
// pairs, packet filter rules, cgroups.
//
// # What it does not promise
//
// The size of a volume is not enforced: it is a directory. A machine's limits are the host's. Machines are isolated from
// each other as BuildKit isolates RUN steps from its own host, and not as virtual machines are. IPv6 is not offered.
package local
