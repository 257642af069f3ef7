// Package daemon runs BuildKit's buildkitd for one machine: on a unix socket only, with a configuration, an environment
// and a network that are written here and nowhere else.
//
// Safety comes from what the daemon does not have: no TCP listener, no entitlement, no device, no variable of its
// parent's environment, no flag that holds a secret. RUN steps have a bridge of their own, unless the machine's owner
// said otherwise. And from what it does not leave behind: BuildKit's children survive its plain death, so whoever sees
// it end kills the cgroups of its steps and unmounts what they had, before anything else may use the cache.
//
// Liveness comes from [Daemon.Done]: whatever way the daemon ends, it closes, and [Daemon.Err] has the last line of its
// log that is an error. It does not restart; that is its caller's decision.
//
// It does not promise that a daemon that runs also works: that takes a probe through the front.
package daemon
