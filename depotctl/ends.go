package depotctl

import (
	"cmp"
	"strings"
	"time"

	"github.com/depotctl/depot/bus"
)

// endError is the end that the server gave to a build which this client did not end.
func endError(view bus.BuildView) *Error {
	reason := ""
	if view.Reason != "" {
		reason = ": " + view.Reason
	}
	switch view.State {
	case bus.BuildCanceled:
		return failf(ExitCanceled, "build %s was canceled%s", view.Build, reason)
	case bus.BuildExpired:
		return failf(ExitTimeout, "build %s ran out of time%s", view.Build, reason).
			hint("look at the builders with `depotctl list machines`; waiting longer: --acquire-timeout")
	case bus.BuildSucceeded:
		return failf(ExitFailed, "build %s was ended by somebody else", view.Build)
	case bus.BuildFailed, bus.BuildRequested, bus.BuildWaiting, bus.BuildReady, bus.BuildRunning:
	}
	return failf(ExitNoCapacity, "no builder for build %s%s", view.Build, reason).
		hint("look at the builders with `depotctl list machines`, then run this again")
}

// lostError is the loss of a builder during the build.
func lostError(reason string) *Error {
	message := "the builder was lost during the build"
	if reason != "" {
		message += ": " + reason
	}
	return failf(ExitLost, "%s", message).hint("run this again: finished steps are in the cache; `depotctl list machines` shows the builders")
}

// timeoutError is an acquisition that did not end in time. It names the stage that it hung in.
func timeoutError(n snapshot, arch bus.Arch, now time.Time) *Error {
	last := n.spans[len(n.spans)-1]
	where := string(last.stage)
	if l, ok := n.lease(arch); ok && l.Machine != "" {
		where += ", machine " + string(l.Machine)
	}
	if why := cmp.Or(n.message, last.detail); why != "" {
		where += ": " + why
	}
	return failf(ExitTimeout, "no builder after %s (stage %s)", now.Sub(n.begun).Round(time.Second), where).
		hint("look at the builders with `depotctl list machines`; waiting longer: --acquire-timeout")
}

// oneLine keeps a message of somebody else on one line.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
