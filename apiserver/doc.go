// Package apiserver decides. It keeps organizations, projects, connections, tokens, builds, machines, volumes and slots
// as records on the bus, and steps them: each kind has one pure function from a record and an event to the next record
// and what is to be done about it. It has no cloud credentials and reaches no cloud; it asks cloud-agents.
//
// A build finds its machine through the slot of its project and architecture, the unit of exclusive decision on who
// serves: one machine and one cache volume at a time. The build's right to the machine is a lease in the machine's own
// record, so whatever would stop the machine must win a compare-and-set against every lease that was taken meanwhile.
// The lease holds the set of certificates, signed by an authority that existed only while one request was answered.
//
// # Safety
//
// Safety comes from compare-and-set alone. Messages and mirrors in memory only suggest; every decision is a step of the
// record as it is, written against the revision that was read. Effects follow the write and have deterministic ids, so
// doing one again is harmless. Hence any number of API servers may run at once, none of them is special, and each may
// die between any two instructions. What may happen to a record is a table, and a step without an arrow in it is
// refused.
//
// # Liveness
//
// Liveness comes from a scan of all records, once a second in every API server. It derives again what is still to be
// done, and takes the exit that every state has at its deadline; all deadlines are in deadline.go. Handlers decide inline
// and do not wait for the scan: it is the net, not the path.
//
// Signs of life are never stored. A replica ends a build for silence only if itself was up and connected for as long;
// while no API server is up, nothing ends a build that runs.
//
// # What it does not promise
//
// Stories (the events of a build) may have gaps after a crash, and a client may hear of a change late: it asks for the
// truth. A machine that the cloud has and no record names is logged and left alone. Nothing here is fair between
// organizations yet.
//
// # States
//
// Each line is a state, where it may go and on which events; ■ marks an end.
//
// diagrams:begin
//
// Build:
//
//	requested  → waiting      placed
//	           → failed ■     finished
//	           → succeeded ■  finished
//	           → canceled ■   finished, canceled
//	           → expired ■    deadline
//	waiting    → ready        served
//	           → failed ■     lost, finished
//	           → succeeded ■  finished
//	           → canceled ■   finished, canceled
//	           → expired ■    deadline
//	ready      → waiting      unserved
//	           → running      connected
//	           → failed ■     finished
//	           → succeeded ■  finished
//	           → canceled ■   finished, canceled
//	           → expired ■    deadline
//	running    → failed ■     finished
//	           → succeeded ■  finished
//	           → canceled ■   finished, canceled
//	           → expired ■    deadline
//
// Machine:
//
//	wanted     → launching    volume
//	           → failed       condemned, deadline
//	launching  → booting      observed, done
//	           → registered   registered
//	           → failed       condemned, deadline, done, observed
//	booting    → registered   registered
//	           → failed       condemned, deadline, observed, missing, goodbye, done
//	registered → serving      reported
//	           → failed       condemned, deadline, observed, missing, goodbye, reported
//	serving    → draining     deadline
//	           → failed       condemned, observed, missing, goodbye, reported
//	draining   → stopping     released, deadline
//	           → deleting     deadline, released
//	           → failed       condemned, observed, missing, goodbye, reported
//	stopping   → stopped      observed, done
//	           → failed       condemned, deadline, observed, missing, done
//	deleting   → failed       deadline
//	           → deleted ■    observed, missing
//	stopped    → deleting     deadline
//	           → starting     taken
//	           → failed       condemned, observed, missing
//	starting   → booting      observed, done
//	           → registered   registered
//	           → failed       condemned, deadline, done, observed, missing
//	failed     → deleting     released, deadline
//	           → deleted ■    deadline, released
//
// Volume:
//
//	wanted     → creating     asked
//	           → deleting     deadline
//	creating   → available    done, seen
//	           → deleting     deadline, done
//	available  → attached     claimed
//	attached   → available    freed
//	deleting   → deleted ■    done
//
// diagrams:end
//
//go:generate go test -count=1 -run TestDocumentationIsDrawnFromTheTables -update .
package apiserver
