// Package depotctl is the command-line client.
//
// `depotctl build` is docker/buildx, run as a library, with a driver of ours: every flag, line of help, error and exit
// code of `docker buildx build` is buildx's own. The driver knows nothing about clouds. It asks the API server for
// builders over the bus and then speaks BuildKit's protocol directly to the machine, over mutual TLS:
//
//	process start   key, certificate request and bus connection are made while buildx starts      (reservation)
//	flags parsed    CreateBuild; every event and every 2 s GetBuild tells the truth               (reservation)
//	bootstrap       stages are shown in buildx's own progress display                             (display)
//	builder serves  addresses in order, TLS 1.3, BuildKit's first bytes as proof                  (link)
//	build runs      Info every 2 s, the server's word, BuildIsLive every 5 s                      (watchdog)
//	end             FinishBuild: succeeded, failed or canceled, and no word about what was built
//
// Safety comes from the certificates alone: whatever answers at an address is the builder only if it holds the leaf of
// this lease, and the client's own key never leaves this process. An event on the bus only wakes the client up; it
// believes the answer to its own GetBuild.
//
// Liveness comes from deadlines: every wait of the acquisition ends by --acquire-timeout and names its stage; a builder
// that dies or hangs ends the build within 15 seconds. Losing the bus, on the other hand, never ends a running build.
//
// It does not promise that a build whose builder was lost is repeated: the last line says to run it again, and the cache
// makes that cheap.
//
// All other commands are a thin shell over one request each. Exit codes are listed by `depotctl help exit-codes`.
package depotctl
