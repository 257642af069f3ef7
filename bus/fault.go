package bus

import (
	"context"
	"errors"
	"fmt"
)

// Code classifies a Fault. The set is closed: an error that has none becomes CodeInternal on the wire.
type Code string

// The codes of a Fault. A Code is itself an error, so that errors.Is(err, bus.CodeNotFound) holds on both sides of the bus.
const (
	// CodeInvalid: the request can never succeed as it is.
	CodeInvalid Code = "invalid"
	// CodeNotFound: the thing named does not exist, or is not the caller's.
	CodeNotFound Code = "not_found"
	// CodeConflict: another writer was first; read again and decide again.
	CodeConflict Code = "conflict"
	// CodeForbidden: the caller's role does not allow it.
	CodeForbidden Code = "forbidden"
	// CodeNoCapacity: the cloud, or a limit of the connection, has no room for it now.
	CodeNoCapacity Code = "no_capacity"
	// CodeUnavailable: a part that is needed is away; the same request may succeed later.
	CodeUnavailable Code = "unavailable"
	// CodeInternal: a defect; the details are in the log of the component that met it.
	CodeInternal Code = "internal"
)

// Error makes a Code usable with errors.Is.
func (c Code) Error() string { return string(c) }

// Fault is an error that crosses the bus: a code for programs, one line for people, and what to do about it.
type Fault struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

// Faultf makes a Fault. The message is lower case, without a final period, and says what is wrong and where.
func Faultf(code Code, format string, args ...any) *Fault {
	return &Fault{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint adds what the user can do.
func (f *Fault) WithHint(format string, args ...any) *Fault {
	f.Hint = fmt.Sprintf(format, args...)
	return f
}

// Error returns the message alone; the hint is printed on a line of its own by whoever talks to a person.
func (f *Fault) Error() string { return f.Message }

// Is reports whether target is the Fault's code.
func (f *Fault) Is(target error) bool {
	c, ok := target.(Code)
	return ok && c == f.Code
}

// AsFault returns the Fault in err's chain. The bus's own errors that a caller can wait out become CodeUnavailable;
// anything else becomes CodeInternal, with a message that reveals nothing.
func AsFault(err error) *Fault {
	if f, ok := errors.AsType[*Fault](err); ok {
		return f
	}
	switch {
	case errors.Is(err, ErrFull):
		return Faultf(CodeUnavailable, "the control plane has no room for this now").WithHint("try again later; an operator must give the bus more room")
	case errors.Is(err, ErrUnknown), errors.Is(err, context.DeadlineExceeded):
		return Faultf(CodeUnavailable, "the control plane did not finish this in time").WithHint("run it again; asking twice is harmless")
	}
	return Faultf(CodeInternal, "internal error").WithHint("see the log of the API server")
}
