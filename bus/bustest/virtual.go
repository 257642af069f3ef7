package bustest

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
)

// virtualTest names, in the environment of a child process, the one test whose body it shall run.
const virtualTest = "DEPOT_VIRTUAL"

// Virtual runs body in virtual time, where an hour of sleep costs nothing and the clock starts in the year 2000. The
// real bus of New runs there too, but only in process: a goroutine in network I/O makes time stand still. Whatever body
// starts must have ended when it returns, so that each such test is also a leak check.
//
// Each body has a child process to itself: the client library pools timers, and a timer of one bubble kills the next.
// Everything here leans on internals of the NATS libraries; test it again with every new version of them.
func Virtual(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if os.Getenv(virtualTest) == t.Name() {
		ats.Register() // the first file store starts a process-wide ticker; begun inside the bubble it would never rest
		synctest.Test(t, body)
		return
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.run="+exactly(t.Name()), "-test.count=1", "-test.timeout=100s")
	// One processor makes a failure repeat; the race detector would sleep a second at exit.
	cmd.Env = append(os.Environ(), virtualTest+"="+t.Name(), "GOMAXPROCS=1", "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in virtual time: %v\n%s", err, out)
	}
}

// exactly is the pattern that selects one test or subtest.
func exactly(name string) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	return strings.Join(parts, "/")
}
