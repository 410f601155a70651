package migrate

import (
	"fmt"
	"time"
)

// A Blocker is a session or prepared transaction that a closing fence waits for.
type Blocker struct {
	PID         int           `json:"pid,omitempty"` // 0 for a prepared transaction
	GID         string        `json:"gid,omitempty"` // of a prepared transaction
	Role        string        `json:"role"`
	Application string        `json:"application,omitempty"`
	State       string        `json:"state,omitempty"` // "active", "idle in transaction", "prepared"
	Age         time.Duration `json:"age_ns"`
	// Query is the last statement, with ? in place of every literal.
	Query string `json:"query,omitempty"`
	// Ended says what was done with it, because the playbook says so.
	Ended BlockerEnd `json:"ended,omitempty"`
}

// A BlockerEnd is what was done with a blocker.
type BlockerEnd string

// What is done with blockers.
const (
	BlockerCancelled  BlockerEnd = "cancelled"
	BlockerTerminated BlockerEnd = "terminated"
	BlockerForbidden  BlockerEnd = "not permitted" // Ficus' role may not signal that session
)

// String names the blocker to people, in a line.
func (b Blocker) String() string {
	age := b.Age.Round(time.Millisecond)
	if b.GID != "" {
		return fmt.Sprintf("prepared transaction %q (%s, for %s)", b.GID, b.Role, age)
	}
	who := b.Role
	if b.Application != "" {
		who += ", " + b.Application
	}
	text := fmt.Sprintf("pid %d (%s, %s, for %s)", b.PID, who, b.State, age)
	if b.Query != "" {
		text += ": " + b.Query
	}
	if b.Ended != "" {
		text += " [" + string(b.Ended) + "]"
	}
	return text
}
