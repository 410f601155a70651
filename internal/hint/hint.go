// Package hint attaches to an error what its reader should do next.
//
// The cause says what went wrong; the hint is the next command, setting or SQL statement for the
// person (or program) that has to mend it. The command line prints it as a "hint:" line, the API
// carries it as a field.
package hint

import (
	"errors"
	"fmt"
)

// An Error is a cause with advice. Its text is the cause's alone.
type Error struct {
	Err  error
	Hint string // a full sentence or a runnable command, no trailing newline
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Wrap returns err with advice, and nil for a nil err. Advice nearer to the cause wins (see Of).
func Wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Hint: fmt.Sprintf(format, args...)}
}

// Of returns the advice of the innermost Error in err's chain, which knows most, or "".
func Of(err error) string {
	var found string
	for {
		var e *Error
		if !errors.As(err, &e) {
			return found
		}
		found, err = e.Hint, e.Err
	}
}
