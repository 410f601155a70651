package snapshot

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// sourceError says what went wrong while reading.
func sourceError(err error) error {
	read := fmt.Errorf("read from the source: %w", withoutValues(err))
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return read
	}
	switch {
	case pe.Code == "42501" && strings.Contains(pe.Message, "row-level security"):
		return hint.Wrap(read, "a policy would hide rows from this role: connect as the table's owner or as a role with BYPASSRLS")
	case pe.Code == "42501":
		return hint.Wrap(read, "give the source's role SELECT on the table")
	case pe.Code == "42P01" || pe.Code == "42703":
		return hint.Wrap(read, "the table was changed after it was inspected: start again")
	case pe.Code == "53100":
		return hint.Wrap(read, "the source's disk is full: make room there and start again; what is copied stays")
	case strings.HasPrefix(pe.Code, "22"):
		return hint.Wrap(read, "an expression of this table's rule fails for some row: make it hold for every row, or exclude rows with where")
	}
	return read
}

// targetError says what went wrong while writing, in which row of the chunk and which column.
func targetError(err error) error {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return fmt.Errorf("write to the target: %w", err)
	}
	write := fmt.Errorf("write to the target: %w", withoutValues(err))
	switch {
	case strings.HasPrefix(pe.Code, "22"):
		return hint.Wrap(write, "the target's column does not take a value that the source has: compare the column's type on both sides, or convert it with a rule (columns)")
	case pe.Code == "23502":
		return hint.Wrap(write, "the source has NULL there, or nothing: drop the constraint on the target, give the column a default, or compute it with a rule (columns)")
	case strings.HasPrefix(pe.Code, "23"):
		return hint.Wrap(write, "the source has rows that this constraint of the target refuses: drop the constraint, or correct the rows on the source")
	case pe.Code == "53100":
		return hint.Wrap(write, "the target's disk is full: make room and start again")
	case pe.Code == "42501":
		return hint.Wrap(write, "give the target's role INSERT and TRUNCATE on the table, or let it own the table")
	}
	return write
}

// withoutValues keeps what an error says about a row's place and drops what it says about its
// contents, which do not belong in a log.
func withoutValues(err error) error {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return err
	}
	msg := pe.Message
	if first, last := strings.Index(msg, `"`), strings.LastIndex(msg, `"`); strings.HasPrefix(pe.Code, "22") && first < last {
		msg = msg[:first] + "(not shown)" + msg[last+1:]
	}
	if at := copyPlace.FindStringSubmatch(pe.Where); at != nil {
		msg += fmt.Sprintf(", in row %s of the chunk", at[1])
		if at[2] != "" {
			msg += fmt.Sprintf(", column %q", at[2])
		}
	}
	return &valueFreeError{text: fmt.Sprintf("%s (SQLSTATE %s)", msg, pe.Code), err: err}
}

// copyPlace finds the place in the context of an error of COPY FROM, "COPY t, line 3, column a: ...".
var copyPlace = regexp.MustCompile(`, line (\d+)(?:, column ([^:]+))?`)

// A valueFreeError shows another text than the error that it wraps.
type valueFreeError struct {
	text string
	err  error
}

func (e *valueFreeError) Error() string { return e.text }
func (e *valueFreeError) Unwrap() error { return e.err }
