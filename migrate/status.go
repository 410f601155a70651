package migrate

import (
	"time"

	"github.com/ficus-migrate/ficus/change"
)

// Status is all that surfaces show of a migration, at one moment. It holds no row values and no
// passwords.
type Status struct {
	Name       string    `json:"name"`
	Playbook   string    `json:"playbook"`
	Source     string    `json:"source"` // user@host:port/database
	Target     string    `json:"target"`
	Seq        int64     `json:"seq"` // of the newest event
	Phase      Phase     `json:"phase"`
	Step       string    `json:"step,omitempty"`        // what is being done within the phase
	StepsDone  []string  `json:"steps_done,omitempty"`  // of the phase, in order
	WaitingFor string    `json:"waiting_for,omitempty"` // name of the gate or "approval"
	Paused     bool      `json:"paused"`
	Running    bool      `json:"running"` // this process drives it now
	Error      string    `json:"error,omitempty"`
	Hint       string    `json:"hint,omitempty"`
	Asks       string    `json:"asks,omitempty"`     // what a person has to do, because no router leads the clients
	Warnings   []string  `json:"warnings,omitempty"` // what an operator should know, though it goes on
	StartedAt  time.Time `json:"started_at"`
	PhaseSince time.Time `json:"phase_since"`

	Owner Side  `json:"owner"`
	Epoch int64 `json:"epoch"`

	Tables []TableProgress `json:"tables,omitempty"`
	Copied *Copied         `json:"copied,omitempty"`
	Build  *Build          `json:"build,omitempty"` // indexes and constraints after the load
	// Throttle is why copy or link stand still; nil while they do not.
	Throttle *Throttle `json:"throttle,omitempty"`
	ETA      *ETA      `json:"eta,omitempty"`     // of a copy or a catching up
	Checked  *Progress `json:"checked,omitempty"` // of a comparison that runs
	// ComparisonPaused says that comparisons wait, though one may run, and by whose wish.
	ComparisonPaused *Hold       `json:"comparison_paused,omitempty"`
	Recopy           *Recopy     `json:"recopy,omitempty"` // tables that are being copied anew while the link stands
	Lag              *Lag        `json:"lag,omitempty"`
	Gates            []GateState `json:"gates,omitempty"`
	Proof            *Proof      `json:"proof,omitempty"`       // the newest exact one
	FenceProof       *Proof      `json:"fence_proof,omitempty"` // the delta proof of the last promotion
	ReadsOn          int         `json:"reads_percent"`         // of read-only traffic, on the side that does not own
	Traffic          *Traffic    `json:"traffic,omitempty"`     // how reads fare, where the router sees them
	Blockers         []Blocker   `json:"blockers,omitempty"`    // writers that a closing fence waits for
	Rehearses        bool        `json:"rehearses,omitempty"`   // the next promotion turns back right before the point of no return
	Rehearsal        *Rehearsal  `json:"rehearsal,omitempty"`   // the newest one: what the promotion would have cost
	Promotions       []Promotion `json:"promotions,omitempty"`  // oldest first, rollbacks included
	Phases           []PhaseTime `json:"phases"`                // how long each took, in order

	Rollback RollbackVerdict `json:"rollback"`
	// Unsettled is what stands against completing now: "complete" is refused unless it is forced.
	Unsettled []string `json:"complete_because,omitempty"`
	// Archived are the schemas that the old tables were put into.
	Archived []string `json:"archived,omitempty"`
}

// Build is the progress of what follows the load.
type Build struct {
	What  string `json:"what"`
	Done  int    `json:"done"`
	Total int    `json:"total"`
}

// A Recopy is tables that are copied anew beside the steps, or wait for it.
type Recopy struct {
	Why    string          `json:"why"`
	Tables []TableProgress `json:"tables"`
}

// A GateState is a condition with its measured value.
type GateState struct {
	Name     string    `json:"name"` // lag, proof, approval, ...
	Phase    Phase     `json:"phase"`
	Manual   bool      `json:"manual"`
	Open     bool      `json:"open"`
	Measured string    `json:"measured"` // "lag 12 MB"
	Wanted   string    `json:"wanted"`   // "at most 1 MB"
	Since    time.Time `json:"since"`    // of the present Open
	By       string    `json:"by,omitempty"`
}

// A Promotion is one change of owner, rollbacks included.
type Promotion struct {
	Epoch     int64         `json:"epoch"`
	From      Side          `json:"from"`
	To        Side          `json:"to"`
	LSN       change.LSN    `json:"lsn"` // of the old owner, when it had been drained
	At        time.Time     `json:"at"`
	Blackout  time.Duration `json:"blackout_ns"` // fence closed to new epoch's gate open
	Stall     StallStats    `json:"stall"`
	Proof     Proof         `json:"proof"` // the delta proof under the fence
	Sequences int           `json:"sequences"`
}

// A PhaseTime is one stay in a phase.
type PhaseTime struct {
	Phase Phase         `json:"phase"`
	Start time.Time     `json:"start"`
	Took  time.Duration `json:"took_ns"` // 0 while it lasts
}

// A RollbackVerdict says whether going back would lose nothing.
type RollbackVerdict struct {
	Safe    bool     `json:"safe"`
	Because []string `json:"because,omitempty"` // reasons when not

	// Until is when the way back ends by itself (rollback_window).
	Until time.Time `json:"until,omitzero"`
	// Behind is the reverse link's lag, Retained the WAL that the new owner keeps for it, Room how much more it
	// may be before the server gives the slot up: -1 for no limit.
	Behind   time.Duration `json:"behind_ns,omitempty"`
	Retained int64         `json:"retained_bytes,omitempty"`
	Room     int64         `json:"room_bytes,omitempty"`
	// Foreign counts the writes of others to the side that follows, as far as somebody watches (follow.verify).
	Foreign int64 `json:"foreign_writes,omitempty"`
}

// An Event is one line of a migration's story, for terminals, the API's event stream and logs.
type Event struct {
	Seq     int64          `json:"seq"` // 0: a passing event, not kept
	Time    time.Time      `json:"time"`
	Type    string         `json:"type"` // phase, step, gate, progress, proof, promotion, rehearsal, command, owner, finding, link, ddl, throttle, error, result
	Phase   Phase          `json:"phase"`
	Message string         `json:"message"`
	Actor   string         `json:"actor,omitempty"`
	Data    map[string]any `json:"data,omitempty"`
}
