package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// ErrSchemaChanged says that a table of the source or the target is not what its mapping was made
// from. Nothing of the transaction that showed it has been applied.
var ErrSchemaChanged = errors.New("table changed its definition")

// ErrNoSuchRow says that an update or delete did not hit exactly the row it was meant for.
var ErrNoSuchRow = errors.New("row is not there")

// A miss is a statement that did not hit as many rows as it was for.
type miss struct{ hit, want int64 }

func (e *miss) Error() string { return fmt.Sprintf("%v: %d of %d", ErrNoSuchRow, e.hit, e.want) }

// Unwrap returns ErrNoSuchRow.
func (e *miss) Unwrap() error { return ErrNoSuchRow }

// ErrPassed says that the destination already stands behind the position asked for.
var ErrPassed = errors.New("destination is already past that position")

// errMoved says that somebody else wrote our progress row: an earlier session of ours that was cut
// off while it committed, or a second applier of the same link.
var errMoved = errors.New("progress was moved by another session")

// A SchemaChange says in which way a table of the source is no longer the one that its mapping was
// made from. The applier stops in front of the transaction that showed it. It wraps
// ErrSchemaChanged.
type SchemaChange struct { //nolint:errname // it says what changed; RowError says what failed
	Table    schema.Name      // at the source, as the mapping knows it
	Relation *change.Relation // as the stream describes it from that transaction on
	Renamed  bool             // the table itself has another name now, Relation's
	Other    bool             // it is another table that has the name now

	New, Gone, Retyped []string // columns
}

func (e *SchemaChange) Error() string {
	var what []string
	if e.Renamed {
		what = append(what, "it is now "+schema.Name{Schema: e.Relation.Namespace, Name: e.Relation.Name}.Display())
	}
	if e.Other {
		what = append(what, "another table has its name now")
	}
	for _, list := range []struct {
		words   string
		columns []string
	}{{"new", e.New}, {"no more", e.Gone}, {"another type for", e.Retyped}} {
		for _, c := range list.columns {
			what = append(what, fmt.Sprintf("%s column %q", list.words, c))
		}
	}
	return fmt.Sprintf("table %s: %v at the source: %s", e.Table.Display(), ErrSchemaChanged, strings.Join(what, ", "))
}

// Unwrap returns ErrSchemaChanged.
func (e *SchemaChange) Unwrap() error { return ErrSchemaChanged }

// A RowError is a row that the destination refused. The applier stops in front of the transaction
// that holds it.
type RowError struct {
	Table schema.Name // at the destination
	Op    string      // "insert", "update", "delete", "truncate"
	Key   string      // the row's key, "id=5"; "" for a table without key
	End   change.LSN  // end of the source transaction; 0 when it is not known yet
	Err   error
}

func (e *RowError) Error() string {
	row := "a row"
	if e.Key != "" {
		row = "row " + e.Key
	}
	return fmt.Sprintf("%s %s of %s: %v", e.Op, row, e.Table.Display(), e.Err)
}

// Unwrap returns the cause.
func (e *RowError) Unwrap() error { return e.Err }

// refusal is an error of the server without the row values that its text may quote.
type refusal struct{ err *pgconn.PgError }

func (r *refusal) Error() string {
	text := r.err.Message
	if strings.HasPrefix(r.err.Code, "22") { // data exceptions quote the offending value
		first, last := strings.IndexByte(text, '"'), strings.LastIndexByte(text, '"')
		if first >= 0 && first < last {
			text = text[:first+1] + "…" + text[last:]
		}
	}
	return fmt.Sprintf("%s (SQLSTATE %s)", text, r.err.Code)
}

func (r *refusal) Unwrap() error { return r.err }

// withoutValues hides row values that a server error may quote.
func withoutValues(err error) error {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return &refusal{pe}
	}
	return err
}

// refused reports whether the database, asked another way, may still take the same rows.
func refused(err error) bool {
	return errors.Is(err, ErrNoSuchRow) || pg.Code(err) != "" && !pg.Retryable(err)
}

// retryable reports whether a new session may do what this one could not.
func retryable(err error) bool {
	return errors.Is(err, errMoved) || !errors.Is(err, context.Canceled) && pg.Retryable(err)
}

// advise says what an operator can do about a row that was refused.
func advise(err error, table schema.Name) error {
	name := table.Display()
	switch code := pg.Code(err); {
	case errors.Is(err, ErrNoSuchRow):
		return hint.Wrap(err, "somebody else changed %s at the destination: run ficus verify to see what differs, put the row back and resume", name)
	case strings.HasPrefix(code, "23"):
		return hint.Wrap(err, "a row at the destination that the source does not have is in the way, or %s has a constraint that the source lacks: remove it and resume", name)
	case strings.HasPrefix(code, "22"):
		return hint.Wrap(err, "a column of %s is narrower than at the source: widen it and resume", name)
	case code == pg.CodeInsufficientPrivilege:
		return hint.Wrap(err, "grant the role INSERT, UPDATE, DELETE and TRUNCATE on %s and resume", name)
	case strings.HasPrefix(code, "42"):
		return hint.Wrap(err, "compare the definition of %s at the destination with the source, and the rules that the playbook has for it", name)
	}
	return err
}
