package bus

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

var codes = []Code{CodeInvalid, CodeNotFound, CodeConflict, CodeForbidden, CodeNoCapacity, CodeUnavailable, CodeInternal}

func TestFault_IsItsCodeAndNoOtherThroughWrapping(t *testing.T) {
	t.Parallel()
	for _, code := range codes {
		err := fmt.Errorf("start build: %w", Faultf(code, "no %s", "room").WithHint("make %s", "some"))
		for _, other := range codes {
			require.Equal(t, code == other, errors.Is(err, other), "%s is %s", code, other)
		}
		fault := AsFault(err)
		require.Equal(t, &Fault{Code: code, Message: "no room", Hint: "make some"}, fault)
		require.Equal(t, "no room", fault.Error())
		require.Equal(t, string(code), code.Error())
	}
}

func TestAsFault_RevealsNothingAndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for want, err := range map[Code]error{
		CodeInternal:    errors.New("dial tcp 10.0.0.1: connection refused"),
		CodeUnavailable: fmt.Errorf("publish: %w", ErrFull),
	} {
		fault := AsFault(err)
		require.Equal(t, want, fault.Code)
		require.NotContains(t, fault.Message+fault.Hint, "10.0.0.1")
		require.NotEmpty(t, fault.Hint)
	}
	for _, err := range []error{ErrUnknown, context.DeadlineExceeded, fmt.Errorf("get: %w", context.DeadlineExceeded)} {
		require.Equal(t, CodeUnavailable, AsFault(err).Code)
	}
	require.Equal(t, CodeInternal, AsFault(ErrNotFound).Code, "what a handler did not find is not what its caller asked for")
}
