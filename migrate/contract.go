package migrate

import (
	"context"
	"time"

	"github.com/ficus-migrate/ficus/change"
)

// A Side names one of the two data stores of a migration by the part it played at the start. The
// names do not move when ownership does.
type Side string

// The two sides.
const (
	Source Side = "source"
	Target Side = "target"
)

// Other returns the opposite side.
func (s Side) Other() Side {
	if s == Source {
		return Target
	}
	return Source
}

// Ownership is what a database itself says about who may write (table ficus.ownership).
// A database without the table has the zero Ownership.
type Ownership struct {
	Migration string // name of the migration that installed it
	Epoch     int64  // counts changes of owner; 1 after Install
	Owner     Side
	GateOpen  bool // ordinary sessions may write to this database now
}

// A Sequence is the state of one sequence: the value that the next nextval returns.
type Sequence struct {
	Name string `json:"name"` // quoted, schema-qualified
	Next int64  `json:"next"`
}

// A Database is one of the two data stores as a promotion sees it. Every method may be repeated.
// migrate/fence implements it on PostgreSQL.
//
// A call that returned an error may have taken effect, may take effect later (its request is still
// on the way to a server), or never. Two of these cases are dangerous, and an implementation
// excludes them: an OpenGate must not take effect after a later CloseGate has returned, and an Own
// must not take effect over a row of the same or a higher epoch. Everything else that comes late
// is harmless or is mended by the engine.
type Database interface {
	// Claim makes this process the one that drives the migration at this database, and returns
	// ErrDriven, naming the other one, while another process is that. It holds a session lock, which
	// ends with the process, and puts a token of its own beside the ownership row: from then on no Install, CloseGate,
	// OpenGate, Signal, Own or Uninstall of a process that claimed it before takes effect, however
	// late; they return ErrDeposed. Repeated by its holder it changes nothing. lost is closed when
	// the session is gone; whether somebody else came then, the next Claim tells with ErrDeposed.
	Claim(ctx context.Context) (lost <-chan struct{}, err error)
	// Disclaim gives the claim up. A later Claim starts a new one.
	Disclaim()
	// Install creates schema ficus with its ownership row (epoch 1, owner as given), signal table
	// and gate; the gate is open only on the owner. It leaves an existing installation of the same
	// migration as it is and refuses that of another.
	Install(ctx context.Context, migration string, owner Side) error
	// Ownership reads the ownership row and the gate.
	Ownership(ctx context.Context) (Ownership, error)
	// Arm puts the fence triggers on every moved table and partition, without making the
	// application wait: short lock_timeout, retries until ctx ends.
	Arm(ctx context.Context) error
	// CloseGate bans writes by ordinary sessions, durably, taking no lock.
	CloseGate(ctx context.Context) error
	// OpenGate lifts the ban. It refuses when the ownership row names the other side.
	OpenGate(ctx context.Context) error
	// WaitWriters waits until every transaction that held a write lock on a fenced table when it
	// was called has ended. When ctx ends first the error wraps ctx's cause and names the
	// blockers; blocked is called about once a second with those still running.
	WaitWriters(ctx context.Context, blocked func([]Blocker)) error
	// Signal writes nonce to ficus.signal; the stream carries it after everything committed before.
	Signal(ctx context.Context, nonce string) error
	// Own writes the ownership row. On the new owner this is the point of no return. It locks the
	// row, and refuses an epoch below the row's, or equal to it with another owner: so of two
	// writers of one epoch exactly one wins, however late the other comes. The engine decides a
	// commit whose reply was lost by writing the same epoch for the old owner.
	Own(ctx context.Context, epoch int64, owner Side) error
	// Sequences reads every moved sequence.
	Sequences(ctx context.Context) ([]Sequence, error)
	// SetSequences moves each sequence forward to Next+headroom increments; never backward.
	SetSequences(ctx context.Context, seqs []Sequence, headroom int64) error
	// Uninstall removes triggers, gate and schema ficus. Writes are open to all afterwards.
	Uninstall(ctx context.Context) error
}

// Lag says how far a link's destination is behind.
type Lag struct {
	Bytes   int64         `json:"bytes"`   // WAL written at the origin and not yet applied
	Time    time.Duration `json:"time_ns"` // age of the newest applied commit while something is outstanding, else 0
	Applied change.LSN    `json:"applied"` // end of the last applied transaction
	Rows    int64         `json:"rows"`    // row changes applied since the link was made
	// Outstanding WAL kept on the origin by the slot, in bytes.
	Retained int64 `json:"retained_bytes"`
	// Room is how much WAL the origin may still write before it gives the slot up; -1: no limit.
	Room int64 `json:"room_bytes"`
	// Decided counts the rows that the link decided in the origin's favour (follow.on_conflict).
	Decided int64 `json:"decided"`
}

// A Link keeps one side in step with the other. sync/link implements it.
type Link interface {
	// Prepare makes the link start at the present: publication, slot. Changes from now on are
	// kept, and those before the ownership row of afterEpoch shows in the stream are ignored.
	// Repeated for the same epoch it keeps what is there; for another it starts afresh.
	Prepare(ctx context.Context, afterEpoch int64) error
	// Run follows until ctx is done or an error that no retry mends. It blocks, reconnects by
	// itself, and resumes exactly where the destination stands.
	Run(ctx context.Context) error
	// Lag measures now. It works while Run does, and fails when the link is not prepared.
	Lag(ctx context.Context) (Lag, error)
	// WaitSignal returns once the nonce has been applied and committed at the destination.
	WaitSignal(ctx context.Context, nonce string) error
	// Drop removes slot, publication, stored events and progress, on both sides; no error when
	// they are not there.
	Drop(ctx context.Context) error
}

// A Settler is a Link that follows changes of tables, too, and so may be in the middle of one, or have
// one to notice, at the moment of a switch.
type Settler interface {
	Link

	// Settle returns nil when the link has nothing outstanding but rows, whatever was committed at the
	// origin before the call; until Unsettle is called it changes nothing but rows. It returns at
	// once, with an error where there is something. Repeated, it looks once more.
	Settle(ctx context.Context) error
	Unsettle()
}

// A Recopier is a Link that copies tables anew when it is asked to.
type Recopier interface {
	Link

	// Known returns tables, named as on either side, as the origin calls them. The error names one
	// that the link does not move.
	Known(tables []string) ([]string, error)
	// Wake tells a link that runs that there is something new in [Migration.Asked].
	Wake()
}

// TableProgress is how far the copy of one table is.
type TableProgress struct {
	Table     string `json:"table"` // as people read it: public.users
	Rows      int64  `json:"rows"`
	Bytes     int64  `json:"bytes"`
	TotalRows int64  `json:"total_rows"` // estimate; -1 unknown
	Done      bool   `json:"done"`
	Format    string `json:"format"` // "binary" or "text"
}

// Copied sums up an initial load.
type Copied struct {
	Tables  int           `json:"tables"`
	Rows    int64         `json:"rows"`
	Bytes   int64         `json:"bytes"`
	Elapsed time.Duration `json:"elapsed_ns"`
}

// A Loader makes and fills the target's tables. The three methods are called in order; each may be
// repeated from its start after a crash.
type Loader interface {
	// CreateTables copies the schema without indexes, constraints and triggers.
	CreateTables(ctx context.Context) error
	// Load prepares the forward link at an exported snapshot and copies every row of that snapshot
	// while the link's changes are being stored, and may build keys and indexes of what is copied. It
	// goes on with what an earlier Load left, where that is possible. step is called before each object
	// is built, with what that is and how many are done, not by two goroutines at a time.
	Load(ctx context.Context, progress func(TableProgress), step func(what string, done, total int)) (Copied, error)
	// Finish builds what is missing of keys and indexes, then constraints, triggers, foreign keys and
	// statistics.
	Finish(ctx context.Context, step func(what string, done, total int)) error
}

// A Proof is the result of a comparison of both sides at one instant.
type Proof struct {
	Kind string     `json:"kind"` // "exact" or "delta"
	LSN  change.LSN `json:"lsn"`  // the instant, in the owner's WAL
	// Since is the earliest instant of a comparison that was paused for long: what is touched after it
	// has to be compared by a delta. LSN is the last one. 0: there is one instant only.
	Since       change.LSN    `json:"since,omitempty"`
	Time        time.Time     `json:"time"` // of the earliest instant
	Tables      int           `json:"tables"`
	Rows        int64         `json:"rows"`        // compared on the owner's side
	Keys        int64         `json:"keys"`        // delta: keys touched since the proof it builds on
	Differences int64         `json:"differences"` // 0 is a proof
	Elapsed     time.Duration `json:"elapsed_ns"`
	Paused      time.Duration `json:"paused_ns"` // how long applying stood still for it
	// Uncovered names tables that a delta could not include, with the reason.
	Uncovered []string `json:"uncovered,omitempty"`
	Samples   []string `json:"samples,omitempty"` // keys of differing rows, a few, no values
	Digest    string   `json:"digest,omitempty"`  // of the whole report, which is kept as evidence
}

// A Verifier proves both sides equal over the link that runs from owner.
type Verifier interface {
	// Exact compares everything at one instant while the link runs.
	Exact(ctx context.Context, owner Side, progress func(done, total int64)) (Proof, error)
	// Delta compares what was touched since the last proof of the same owner, live; with fenced
	// set nobody writes and both sides are compared as they stand. A fenced proof without
	// differences counts for either owner. ErrNoProof says that there is nothing to build on: the
	// engine then calls Exact, except under the fence.
	Delta(ctx context.Context, owner Side, fenced bool) (Proof, error)
}

// StallStats says how long clients waited because of a promotion, as the router saw it.
type StallStats struct {
	Clients int           `json:"clients"` // that waited
	P50     time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	Max     time.Duration `json:"max_ns"`
}

// A Router leads clients to the owner. gateway implements it. The epoch is that of the attempt:
// the Release that ends a Hold has the same epoch or a higher one, also when it goes back to the old
// owner.
type Router interface {
	// Reads sends that percentage of read-only traffic to the side that does not own the data.
	Reads(ctx context.Context, percent int) error
	// Hold stops starting transactions on the read-write door and returns when those in flight
	// have ended, or with an error when ctx ends first (the hold stays until Release).
	Hold(ctx context.Context, epoch int64) error
	// Release sends the held and all later clients to the owner.
	Release(ctx context.Context, owner Side, epoch int64) error
	// Stalls returns the waits of the last Hold.
	Stalls() StallStats
}

// An Expecter is a Router whose clients can get ready for an owner to come while they go on. It does not wait for them. With the
// present owner it is told that nothing comes.
type Expecter interface {
	Router
	Expect(ctx context.Context, owner Side) error
}

// A Guarantee is one promise that a Router keeps, or says that it does not.
type Guarantee struct {
	Name  string `json:"guarantee"` // leads, holds, drains, ...
	Given bool   `json:"given"`
	How   string `json:"how"`
}

// An Asker is a Router that leads nobody: a person does, and says so with "routed".
type Asker interface {
	Router
	// Ahead says what a person should know before the owner changes.
	Ahead(owner Side) string
	// After says what a person has to do now that owner owns the data.
	After(owner Side) string
}

// A Journal keeps the engine's records, durably and in order. eventstore implements it. Scan may
// run while others append.
type Journal interface {
	Append(record []byte) error
	Scan(fn func(record []byte) error) error
}
