package buffer

import (
	"fmt"
	"time"
)

// A Reason says why a wait ended without a decision.
type Reason int

// The reasons. After each of them nothing was done for the caller, so it may safely try again.
const (
	Full    Reason = iota + 1 // the queue had no place left
	Expired                   // the hold lasted longer than MaxWait
	Closed                    // the process is stopping
)

// String returns the reason in words.
func (r Reason) String() string {
	switch r {
	case Full:
		return "full"
	case Expired:
		return "expired"
	case Closed:
		return "closed"
	}
	return fmt.Sprintf("Reason(%d)", int(r))
}

// An Error is the answer to a waiter whose wait ended without a decision.
type Error struct {
	Reason Reason
	Waited time.Duration // since the ticket joined; 0 when it could not
	Held   int           // tickets in the queue at that moment
}

func (e *Error) Error() string {
	switch e.Reason {
	case Full:
		return fmt.Sprintf("hold queue is full: %d wait already", e.Held)
	case Expired:
		return fmt.Sprintf("held for %s without a decision", e.Waited.Round(time.Millisecond))
	case Closed:
		return "hold queue is closed: the process is stopping"
	}
	return "hold queue: " + e.Reason.String()
}

// Retryable reports true: a waiter that gets an Error has not been acted for.
func (e *Error) Retryable() bool { return true }
