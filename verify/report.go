package verify

import (
	"fmt"
	"io"
	"text/tabwriter"
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

// A Report is the result of a comparison.
type Report struct {
	Kind        Kind       `json:"kind"`
	LSN         change.LSN `json:"lsn"`          // of the source's snapshot
	At          time.Time  `json:"at"`           // when that was taken
	SameInstant bool       `json:"same_instant"` // the target was compared in the state that belongs to LSN
	Source      Database   `json:"source"`
	Target      Database   `json:"target"`
	Seed        int64      `json:"seed"` // of the row hashes

	Tables      []TableReport `json:"tables"`
	Rows        int64         `json:"rows"`           // read on the source
	TargetRows  int64         `json:"target_rows"`    // read on the target
	Keys        int64         `json:"keys,omitempty"` // looked up by a delta
	Differences int64         `json:"differences"`    // 0 is a proof of what is covered
	// Uncovered names tables that a delta could not include, with the reason.
	Uncovered []string      `json:"uncovered"`
	Elapsed   time.Duration `json:"elapsed_ns"`
	Paused    time.Duration `json:"paused_ns"` // how long applying stood still
}

// A Database says which database was compared, without a password.
type Database struct {
	DSN     string `json:"dsn"`
	Version int    `json:"version"` // server_version_num, 150018 for 15.18
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
	Samples     []Difference `json:"samples,omitempty"`
}

// A Difference is one differing row.
type Difference struct {
	Kind      Change   `json:"kind"`
	Key       string   `json:"key,omitempty"`     // "id=5"; "" for a table without a key
	Columns   []string `json:"columns,omitempty"` // of the target, those that differ when Changed
	Values    []Value  `json:"values,omitempty"`  // of these columns, when asked for
	SourceSQL string   `json:"source_sql"`        // shows the row on the source
	TargetSQL string   `json:"target_sql"`
}

// A Value is what both sides hold in a differing column, shortened; nil is NULL.
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
	}
	r.Elapsed = time.Since(start)
}

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	out := &printer{w: w}
	out.printf("%s comparison at %s, %s\n", r.Kind, r.LSN, r.At.UTC().Format(time.RFC3339))
	out.printf("  source %s\n  target %s\n\n", r.Source, r.Target)

	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	tables := &printer{w: columns}
	tables.printf("table\tsource rows\ttarget rows\tmissing\textra\tchanged\thash\n")
	for i := range r.Tables {
		t := &r.Tables[i]
		tables.printf("%s\t%d\t%d\t%d\t%d\t%d\t%s\n", t.title(), t.Rows, t.TargetRows, t.Missing, t.Extra, t.Changed, t.Method)
	}
	if err := columns.Flush(); out.err == nil {
		out.err = err
	}
	out.printf("\n")

	for i := range r.Tables {
		for j := range r.Tables[i].Samples {
			out.sample(&r.Tables[i], &r.Tables[i].Samples[j])
		}
	}
	for _, u := range r.Uncovered {
		out.printf("not covered: %s\n", u)
	}
	if !r.SameInstant {
		out.printf("note: the source was written to meanwhile; the two sides were not compared at the same instant\n")
	}
	out.printf("%s\n", r.verdict())
	return out.err
}

// verdict is the last line.
func (r *Report) verdict() string {
	what := fmt.Sprintf("%d tables, %d rows, %s", len(r.Tables), r.Rows, r.Elapsed.Round(time.Millisecond))
	if r.Kind == Delta {
		what = fmt.Sprintf("%d keys, ", r.Keys) + what
	}
	if r.Paused > 0 {
		what += fmt.Sprintf(", applying paused for %s", r.Paused.Round(10*time.Microsecond))
	}
	switch {
	case r.Differences > 0:
		return fmt.Sprintf("different: %d rows (%s)", r.Differences, what)
	case len(r.Uncovered) > 0:
		return fmt.Sprintf("equal as far as covered (%s)", what)
	}
	return fmt.Sprintf("equal (%s)", what)
}

// title names the table, and its target where that has another name.
func (t *TableReport) title() string {
	if t.Table == t.Target {
		return t.Table.Display()
	}
	return t.Table.Display() + " -> " + t.Target.Display()
}

// String returns "user@host:port/name, PostgreSQL 15.18".
func (d Database) String() string {
	return fmt.Sprintf("%s, PostgreSQL %d.%d", d.DSN, d.Version/10000, d.Version%10000)
}

// A printer keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) sample(t *TableReport, d *Difference) {
	p.printf("%s: %s", t.title(), d.Kind)
	if d.Key != "" {
		p.printf(" %s", d.Key)
	}
	for i, c := range d.Columns {
		sep := ", "
		if i == 0 {
			sep = ": differs in "
		}
		p.printf("%s%s", sep, c)
	}
	p.printf("\n")
	for _, v := range d.Values {
		p.printf("    %s: %s on the source, %s on the target\n", v.Column, show(v.Source), show(v.Target))
	}
	p.printf("    source: %s;\n    target: %s;\n", d.SourceSQL, d.TargetSQL)
}

func show(v *string) string {
	if v == nil {
		return "NULL"
	}
	return fmt.Sprintf("%q", *v)
}
