package depotctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/depotctl/depot/bus"
)

// ExitCode is what depotctl returns to the shell.
type ExitCode int

// The exit codes. Those of a build itself (1, 100, 102, 130) are docker buildx's own.
const (
	ExitOK          ExitCode = 0
	ExitFailed      ExitCode = 1
	ExitUsage       ExitCode = 2
	ExitNoServer    ExitCode = 10
	ExitNoAPI       ExitCode = 11
	ExitProtocol    ExitCode = 12
	ExitToken       ExitCode = 13
	ExitNotFound    ExitCode = 14
	ExitForbidden   ExitCode = 15
	ExitNoCapacity  ExitCode = 16
	ExitTimeout     ExitCode = 17
	ExitUnreachable ExitCode = 18
	ExitLost        ExitCode = 19
	ExitNoEngine    ExitCode = 20
	ExitInternal    ExitCode = 100
	ExitExhausted   ExitCode = 102
	ExitCanceled    ExitCode = 130
)

// exitTable is the documentation of the exit codes: `depotctl help exit-codes` prints it.
var exitTable = []struct {
	code    ExitCode
	meaning string
}{
	{ExitOK, "success"},
	{ExitFailed, "the build failed, a flag of docker buildx build is wrong, or any failure that has no code of its own"},
	{ExitUsage, "the command line or a configuration file is wrong; nothing was asked of the server"},
	{ExitNoServer, "nothing answers at the server's address"},
	{ExitNoAPI, "the message server is there, but no API server answers behind it, or a part that it needs is away"},
	{ExitProtocol, "client and server are of versions that do not understand each other"},
	{ExitToken, "no token, or one that is unknown, has expired or was revoked"},
	{ExitNotFound, "the project, build or token does not exist, or is another organization's"},
	{ExitForbidden, "this token may not do that"},
	{ExitNoCapacity, "no builder could be had: no connection, no capacity, or the machine failed to start"},
	{ExitTimeout, "no builder within --acquire-timeout; the message names the stage"},
	{ExitUnreachable, "there is a builder, but it cannot be reached from here"},
	{ExitLost, "the builder died, hung or was taken away during the build"},
	{ExitNoEngine, "--load without a Docker engine to load into"},
	{ExitInternal, "BuildKit reported an internal error (as docker buildx)"},
	{ExitExhausted, "BuildKit ran out of a resource (as docker buildx)"},
	{ExitCanceled, "canceled: Ctrl-C, or `depotctl cancel` from anywhere (as docker buildx)"},
}

func printExitCodes(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range exitTable {
		fmt.Fprintf(table, "%d\t%s\n", row.code, row.meaning)
	}
	return table.Flush()
}

// Error is a failure as the user sees it: one line, what to do about it, and the code for scripts.
type Error struct {
	Code    ExitCode
	Message string // one lower-case line without a final period
	Hint    string // may be empty, may have several lines
	Cause   error  // may be nil
}

// Error returns the line.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

func failf(code ExitCode, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func (e *Error) hint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

func (e *Error) because(err error) *Error {
	e.Cause = err
	return e
}

// report prints err as the last words of the program and returns its exit code.
func report(w io.Writer, err error) ExitCode {
	if err == nil {
		return ExitOK
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = failf(ExitFailed, "%v", err)
	}
	fmt.Fprintf(w, "depotctl: %s\n", strings.TrimRight(e.Message, "\n"))
	if e.Hint != "" {
		for line := range strings.SplitSeq(e.Hint, "\n") {
			fmt.Fprintf(w, "hint: %s\n", line)
		}
	}
	return e.Code
}

// explain turns what the bus or the API server answered into an Error. doing is what was tried: "start build".
func explain(doing, server string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if e := explainConnection(server, err); e != nil {
		return e.because(err)
	}
	if fault, ok := errors.AsType[*bus.Fault](err); ok {
		e := failf(codeOf(fault.Code), "%s: %s", doing, fault.Message)
		e.Hint = fault.Hint
		return e.because(err)
	}
	return failf(ExitFailed, "%s: %v", doing, err).because(err)
}

func explainConnection(server string, err error) *Error {
	switch {
	case errors.Is(err, bus.ErrUnreachable):
		return failf(ExitNoServer, "no depot server answers at %s", server).
			hint("start one with `sudo depotd`, or name yours with --server, DEPOT_SERVER or `depotctl login --server`")
	case errors.Is(err, bus.ErrNoAPIServer):
		return failf(ExitNoAPI, "the message server at %s is up, but no API server answers", server).
			hint("start the API server, or wait until it is back, then run this again")
	case errors.Is(err, bus.ErrProtocol):
		return failf(ExitProtocol, "this depotctl (%s) and the server at %s do not understand each other: %v", Version(), server, err).
			hint("install the depotctl of the server's version; `depotctl version` shows both")
	case errors.Is(err, bus.ErrExpiredToken):
		return failf(ExitToken, "the token has expired").hint("ask for a new one (`depotctl tokens create`), then `depotctl login`")
	case errors.Is(err, bus.ErrRevokedToken):
		return failf(ExitToken, "the token was revoked").hint("ask for a new one (`depotctl tokens create`), then `depotctl login`")
	case errors.Is(err, bus.ErrBadToken):
		return failf(ExitToken, "the server at %s does not know this token", server).
			hint("check that token and server belong together: --token, DEPOT_TOKEN or the configuration file, in this order")
	case errors.Is(err, bus.ErrForbidden):
		return failf(ExitForbidden, "this token may not do that").hint("use a user's token; a CI token only builds in its one project")
	case errors.Is(err, context.DeadlineExceeded):
		return failf(ExitNoAPI, "the server at %s does not answer in time", server).hint("run this again; if it goes on, see the log of the API server")
	case errors.Is(err, context.Canceled):
		return failf(ExitCanceled, "canceled")
	}
	return nil
}

func codeOf(code bus.Code) ExitCode {
	switch code {
	case bus.CodeInvalid:
		return ExitUsage
	case bus.CodeNotFound:
		return ExitNotFound
	case bus.CodeForbidden:
		return ExitForbidden
	case bus.CodeNoCapacity:
		return ExitNoCapacity
	case bus.CodeUnavailable:
		return ExitNoAPI
	case bus.CodeConflict, bus.CodeInternal:
		return ExitFailed
	}
	return ExitFailed
}
