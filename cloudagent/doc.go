// Package cloudagent acts: it turns the actions of one connection into machines and volumes of its cloud account.
//
// An Agent holds a connection token and, through its Provider, the account's credentials. It consumes bus.Actions, does
// what they say, and reports each result and, again and again, the inventory.
//
// # It has the last word
//
// The account's owner runs it, so it trusts nobody's instructions further than its own limits: the vocabulary of actions is
// closed, and the number of machines, the size of volumes and the architectures are capped here. What exceeds them is
// refused with a Fault and done with. What a machine is launched from (images, networks, programs) is the Provider's own
// configuration and never comes from the bus. The launch nonce is made here, goes into the machine's user data, and is
// known to the bus only as a hash.
//
// # Guarantees
//
// Safety comes from the Provider, whose every method may be repeated and which refuses old attempts, and from the order
// intent, launch, result, acknowledgement: a crash anywhere between repeats a harmless call. Before any of this, actions
// on one machine or volume are put in a row, and an attempt that is older than one this agent has seen is refused without
// asking the cloud.
//
// Liveness comes from the queue, which delivers an action again until it is acknowledged, and from the inventory, which is
// reported at the start, after each action, every ten seconds, and when an API server asks for it. When the bus is away,
// the agent waits for it, however long.
//
// Any number of agents of a connection may run at once.
//
// # What it does not promise
//
// Two agents that launch in the same instant may together exceed the limit of machines by one. An agent that cannot list
// its cloud reports no inventory: what it last reported stays the truth.
package cloudagent
