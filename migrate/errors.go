package migrate

import (
	"errors"
	"fmt"
	"time"
)

// Errors that callers tell apart.
var (
	// ErrNotNow refuses a command that does not fit the phase; its hint says what is possible.
	ErrNotNow = errors.New("not possible now")
	// ErrNoProof is what a Verifier's Delta returns when there is no earlier proof to build on.
	ErrNoProof = errors.New("no proof to build on")
	// ErrDifferences says that the two sides are not equal.
	ErrDifferences = errors.New("the two databases differ")
	// ErrForeign says that a database is installed for another migration.
	ErrForeign = errors.New("database belongs to another migration")
	// ErrDriven says that another process drives the migration.
	ErrDriven = errors.New("another process drives the migration")
	// ErrDeposed refuses a process that another one has replaced.
	ErrDeposed = errors.New("another process has taken the migration over")
)

// errInterrupted ends a wait or a step because a command changed what is to be done.
var errInterrupted = errors.New("interrupted by a command")

// errStopped is the cause with which the engine stops a link that it no longer wants to run.
var errStopped = errors.New("link stopped")

// errBare says that a database lost its schema ficus to somebody else's hands.
var errBare = errors.New("schema ficus is missing in at least one of the databases: somebody removed it")

// A budgetError is the cause of a step's context when its time is up.
type budgetError struct {
	step   string
	budget time.Duration
}

func (e *budgetError) Error() string {
	return fmt.Sprintf("budget of %s for %s is used up", e.budget, e.step)
}

// Timeout marks the error as a time-out, as net.Error has it.
func (e *budgetError) Timeout() bool { return true }
