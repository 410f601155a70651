package verify

import (
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/schema"
)

// A Kind says how much a comparison covers.
type Kind string

// The kinds of comparison.
const (
	Exact Kind = "exact" // every row
	Delta Kind = "delta" // the rows touched since an earlier proof
)

// A Change says how a row differs.
type Change string

// The ways in which a row differs, seen from the source.
const (
	Missing Change = "missing" // not on the target
	Extra   Change = "extra"   // only on the target
	Changed Change = "changed" // on both, with other values
)

// A Verdict is what a report comes to.
type Verdict string

// The verdicts. Whoever acts on one must not take Unknown for Equal.
const (
	Equal     Verdict = "equal"
	Different Verdict = "different"
	// Unknown is of a comparison whose differences may be mere movement, or that left tables out.
	Unknown Verdict = "could not tell"
)

// A Report is the result of a comparison, and the evidence of it; see Seal.
type Report struct {
	Program     string     `json:"program,omitempty"` // that compared, with its version
	Name        string     `json:"name,omitempty"`    // of the migration
	Kind        Kind       `json:"kind"`
	LSN         change.LSN `json:"lsn"`          // of the source's snapshot
	At          time.Time  `json:"at"`           // when that was taken
	SameInstant bool       `json:"same_instant"` // the target was compared in the state that belongs to LSN
	Source      Database   `json:"source"`
	Target      Database   `json:"target"`
	Seed        int64      `json:"seed"` // of the row hashes
	Workers     int        `json:"workers"`
	ChunkRows   int64      `json:"chunk_rows"`
	Masked      bool       `json:"masked"` // values are left out, keys are not

	Tables      []TableReport `json:"tables"`
	Rows        int64         `json:"rows"`           // read on the source
	TargetRows  int64         `json:"target_rows"`    // read on the target
	Keys        int64         `json:"keys,omitempty"` // looked up by a delta
	Differences int64         `json:"differences"`    // 0 is a proof of what is covered
	// Uncovered names tables that were not compared, with the reason.
	Uncovered []string `json:"uncovered"`
	// Instants are the moments that the tables were compared at, when an interrupted comparison
	// was resumed; the last is LSN.
	Instants []Instant `json:"instants,omitempty"`

	// Following says that the target follows: a sequence of it that is behind is no difference. It moves
	// now and then, and when the target becomes the owner.
	Following bool `json:"following,omitempty"`

	Definitions []DefinitionDifference `json:"definitions"` // nil when they were not compared
	Sequences   []SequenceReport       `json:"sequences"`   // nil when they were not compared

	Elapsed time.Duration `json:"elapsed_ns"`
	Paused  time.Duration `json:"paused_ns"` // how long applying stood still

	Previous string `json:"previous,omitempty"` // digest of the report before this one
	Digest   string `json:"digest,omitempty"`

	Repairs []Repair `json:"-"` // when asked for
}

// An Instant is a moment at which both sides were compared.
type Instant struct {
	LSN         change.LSN `json:"lsn"`
	At          time.Time  `json:"at"`
	SameInstant bool       `json:"same_instant"`
	Tables      int        `json:"tables"` // or parts of tables
}

// A Database says which database was compared, without a password.
type Database struct {
	DSN      string            `json:"dsn"`
	Version  int               `json:"version"`            // server_version_num, 150018 for 15.18
	Settings map[string]string `json:"settings,omitempty"` // that have a say in what rows look like
}

// A TableReport is the result for one table.
type TableReport struct {
	Table       schema.Name  `json:"table"`
	Target      schema.Name  `json:"target"`
	Method      Method       `json:"method"`
	Rows        int64        `json:"rows"`
	TargetRows  int64        `json:"target_rows"`
	Differences int64        `json:"differences"`
	Missing     int64        `json:"missing"`
	Extra       int64        `json:"extra"`
	Changed     int64        `json:"changed"`
	Standing    int64        `json:"standing,omitempty"` // of the differing rows that were looked at once more; see Difference.Standing
	Samples     []Difference `json:"samples,omitempty"`
	Instant     *Instant     `json:"instant,omitempty"` // where it is not the report's

	repairs []Repair
}

// A Difference is one differing row.
type Difference struct {
	Kind    Change   `json:"kind"`
	Key     string   `json:"key,omitempty"`     // "id=5"; "" for a table without a key
	Columns []string `json:"columns,omitempty"` // of the target, those that differ when Changed
	Values  []Value  `json:"values,omitempty"`  // of these columns; masked unless asked for
	Writer  string   `json:"writer,omitempty"`  // when the target's row was written, and over which replication origin, where the server knows
	// Standing says that the source's row was the same before and after the comparison, so that the
	// difference is no movement. Told only where the sides were not compared at one instant.
	Standing  bool   `json:"standing,omitempty"`
	SourceSQL string `json:"source_sql"` // shows the row on the source
	TargetSQL string `json:"target_sql"`
}

// A Value is what both sides hold in a differing column, shortened, or how long that is; nil is NULL.
type Value struct {
	Column string  `json:"column"`
	Source *string `json:"source"`
	Target *string `json:"target"`
}

// finish sums the tables up.
func (r *Report) finish(start time.Time) {
	for i := range r.Tables {
		t := &r.Tables[i]
		r.Rows += t.Rows
		r.TargetRows += t.TargetRows
		r.Differences += t.Differences
		r.Repairs = append(r.Repairs, t.repairs...)
	}
	r.Elapsed = time.Since(start)
}

// Earliest returns the first of the instants at which tables were compared.
func (r *Report) Earliest() Instant {
	if len(r.Instants) > 0 {
		return r.Instants[0]
	}
	return Instant{LSN: r.LSN, At: r.At, SameInstant: r.SameInstant, Tables: len(r.Tables)}
}

// Verdict tells what the report comes to.
func (r *Report) Verdict() Verdict {
	standing, behind := r.SameInstant, r.Behind() > 0 && !r.Following
	for i := range r.Tables {
		standing = standing || r.Tables[i].Standing > 0
	}
	switch {
	case r.Differences > 0 && standing, behind, r.Matters() > 0:
		return Different
	case r.Differences > 0, len(r.Uncovered) > 0:
		return Unknown
	}
	return Equal
}

// Behind counts the sequences that are not ahead.
func (r *Report) Behind() (n int) {
	for i := range r.Sequences {
		if !r.Sequences[i].Ahead {
			n++
		}
	}
	return n
}

// Matters counts the differences between definitions that matter.
func (r *Report) Matters() (n int) {
	for i := range r.Definitions {
		if r.Definitions[i].Matters {
			n++
		}
	}
	return n
}

// Title names the table, and its target where that has another name.
func (t *TableReport) Title() string {
	if t.Table == t.Target {
		return t.Table.Display()
	}
	return t.Table.Display() + " -> " + t.Target.Display()
}

// String returns "user@host:port/name, PostgreSQL 15.18".
func (d Database) String() string {
	return fmt.Sprintf("%s, PostgreSQL %d.%d", d.DSN, d.Version/10000, d.Version%10000)
}
