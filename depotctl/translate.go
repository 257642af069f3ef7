package depotctl

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/docker/buildx/util/cobrautil"
	"github.com/docker/buildx/util/desktop"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/debug"
	pb "github.com/moby/buildkit/frontend/gateway/pb"
	solvererrors "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/stack"
	"google.golang.org/grpc/codes"
)

// said is an error whose words are printed already: only its code is left.
type said struct{ code ExitCode }

// Error is for logs; people have read it already.
func (s said) Error() string { return fmt.Sprintf("exit status %d", s.code) }

// translate prints an error of buildx exactly as docker-buildx does, and gives it the same exit code. An error of ours
// passes: it is printed as all of ours are.
func translate(w io.Writer, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if status, ok := errors.AsType[cli.StatusError](err); ok {
		if status.Status != "" {
			fmt.Fprintln(w, status.Status)
		}
		return said{max(ExitCode(status.StatusCode), ExitFailed)}
	}
	if code, ok := errors.AsType[cobrautil.ExitCodeError](err); ok {
		return said{ExitCode(code)}
	}
	printBuildError(w, err)
	return said{buildCode(err)}
}

func printBuildError(w io.Writer, err error) {
	for _, message := range policysession.DenyMessages(err) {
		if message.GetMessage() != "" {
			fmt.Fprintf(w, "Policy: %s\n", message.GetMessage())
		}
	}
	for _, source := range solvererrors.Sources(err) {
		_ = source.Print(w) // as docker-buildx
	}
	if debug.IsEnabled() {
		fmt.Fprintf(w, "ERROR: %+v", stack.Formatter(err))
	} else {
		fmt.Fprintf(w, "ERROR: %v\n", err)
	}
	if ref, ok := errors.AsType[*desktop.ErrorWithBuildRef](err); ok {
		_ = ref.Print(w) // as docker-buildx
	}
}

func buildCode(err error) ExitCode {
	switch code := grpcerrors.Code(err); {
	case code == codes.Internal:
		return ExitInternal
	case code == codes.ResourceExhausted:
		return ExitExhausted
	case code == codes.Canceled, errors.Is(err, context.Canceled):
		return ExitCanceled
	}
	return ExitFailed
}

// failureReason says how a build failed without a word about what was built: messages of BuildKit quote the Dockerfile.
func failureReason(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Message
	}
	if exit, ok := errors.AsType[*pb.ExitError](err); ok {
		if exit.ExitCode == pb.UnknownExitStatus {
			return "a step could not be run"
		}
		return fmt.Sprintf("a step ended with exit code %d", exit.ExitCode)
	}
	if len(solvererrors.Sources(err)) > 0 {
		return "the Dockerfile cannot be built"
	}
	return "the build failed"
}
