package apply

// Table ficus.conflicts, at the destination: one row for each row that OnConflict decided, written in
// the same transaction as the rows. It is made where OnConflict is SourceWins, and goes with schema
// ficus.
//
//	id         bigint       in the order of decisions
//	link       text
//	at         timestamptz  of the target transaction
//	lsn        pg_lsn       end of the source transaction
//	table_name text         at the destination
//	op         text         of the source: insert, update, delete
//	key        text         of the source's row, "id=5"; '' for a table without key
//	conflict   text         what the destination refused
//	decision   text         what was done instead, with the keys of rows that were removed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
)

// OnConflict says what happens with a row that the destination refuses because its own rows are not
// the source's.
type OnConflict uint8

// The choices.
const (
	// Stop ends Run in front of the transaction.
	Stop OnConflict = iota
	// SourceWins makes the destination's rows as the source's: a row that an update wants and that is
	// not there is inserted, one that a delete wants is not missed, and one that stands in the way of
	// a unique key of the source is removed. Each decision is recorded. All else stops as ever.
	SourceWins
)

// String returns the choice as a word.
func (c OnConflict) String() string {
	switch c {
	case Stop:
		return "stop"
	case SourceWins:
		return "source-wins"
	}
	return fmt.Sprintf("OnConflict(%d)", uint8(c))
}

const (
	// decideRows is how many rows are tried at a time once a batch is known to have conflicts: after
	// each conflict what follows is sent again.
	decideRows = 200
	// mostInTheWay bounds how often one row is tried; each time another unique key is in the way.
	mostInTheWay = 32

	codeUniqueViolation = "23505"
)

const installConflictsSQL = `
SELECT pg_advisory_xact_lock(hashtext('ficus.install'));
CREATE TABLE IF NOT EXISTS ficus.conflicts (
	id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	link       text NOT NULL,
	at         timestamptz NOT NULL DEFAULT now(),
	lsn        pg_lsn,
	table_name text NOT NULL,
	op         text NOT NULL,
	key        text NOT NULL,
	conflict   text NOT NULL,
	decision   text NOT NULL
)`

// installConflicts makes the table and returns how many decisions the link has recorded.
func installConflicts(ctx context.Context, conn *pgx.Conn, link string) (decided int64, err error) {
	if _, err := conn.PgConn().Exec(ctx, installConflictsSQL).ReadAll(); err != nil {
		return 0, hint.Wrap(fmt.Errorf("create ficus.conflicts: %w", err), "the role needs CREATE on schema ficus of the destination")
	}
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM ficus.conflicts WHERE link = $1`, link).Scan(&decided); err != nil {
		return 0, fmt.Errorf("count the conflicts of %s: %w", link, err)
	}
	return decided, nil
}

// decide writes the rows one by one in source order, and decides those that the database refuses.
func (w *writer) decide(ctx context.Context, b *batch, begin []command, stmts []stmt) error {
	for len(stmts) > 0 {
		now := stmts[:min(len(stmts), decideRows)]
		failed, err := w.run(ctx, append(begin, simple("SAVEPOINT decision")), now)
		begin = nil
		switch {
		case err == nil:
		case failed < 0 || !refused(err):
			return err
		default:
			if _, err := w.run(ctx, []command{simple("ROLLBACK TO SAVEPOINT decision")}, now[:failed]); err != nil {
				return err
			}
			if err := w.settle(ctx, b, &now[failed], err); err != nil {
				return err
			}
			now = now[:failed+1]
		}
		if _, err := w.run(ctx, []command{simple("RELEASE SAVEPOINT decision")}, nil); err != nil {
			return err
		}
		stmts = stmts[len(now):]
	}
	return nil
}

// settle does for one row what the source's change of it was to bring about; why is how the
// destination refused it. It returns the error that the applier stops with where that is not possible.
func (w *writer) settle(ctx context.Context, b *batch, s *stmt, why error) error {
	o, first := s.source, why
	var conflicts, decisions []string
	for range mostInTheWay {
		conflict, decision, next, err := w.giveWay(ctx, s, why, b.endOf(o))
		switch {
		case errors.Is(err, errUndecided):
			return rowError(b, s, err)
		case err != nil:
			return err
		}
		if decision == "" {
			break
		}
		conflicts, decisions = append(conflicts, conflict), append(decisions, decision)
		if next == nil {
			return w.recordDecision(ctx, b, o, conflicts, decisions)
		}
		s = next
		if err := w.prepare(ctx, []stmt{*s}); err != nil {
			return err
		}
		failed, err := w.run(ctx, []command{simple("SAVEPOINT attempt")}, []stmt{*s})
		if err == nil {
			return w.recordDecision(ctx, b, o, conflicts, decisions)
		}
		if failed < 0 || !refused(err) {
			return err
		}
		if _, err := w.run(ctx, []command{simple("ROLLBACK TO SAVEPOINT attempt")}, nil); err != nil {
			return err
		}
		why = err
	}
	return rowError(b, &stmt{shape: s.shape, source: o}, first)
}

// errUndecided says that source-wins does not cover a refusal.
var errUndecided = errors.New("source-wins does not decide this")

// giveWay makes room for a statement that was refused. It returns what to try next, nil when nothing
// is left to do, and no decision where the conflict is none that may be decided.
func (w *writer) giveWay(ctx context.Context, s *stmt, why error, end change.LSN) (conflict, decision string, next *stmt, err error) {
	if m, ok := errors.AsType[*miss](why); ok {
		if m.hit > 0 { // more than one row of that key: which one would be a guess
			return "", "", nil, nil
		}
		return missing(s)
	}
	pe, ok := errors.AsType[*pgconn.PgError](why)
	if !ok || pe.Code != codeUniqueViolation || s.shape.verb == verbTruncate || s.shape.verb == verbDelete {
		return "", "", nil, nil
	}
	removed, err := w.remove(ctx, s, pe, end)
	if errors.Is(err, errUndecided) {
		err = fmt.Errorf("%w; %w", why, err)
	}
	if err != nil {
		return "", "", nil, err
	}
	if len(removed) == 0 { // not equal by the type's own operator, as with some collations
		return "", "", nil, nil
	}
	return "unique key " + pe.ConstraintName, "removed " + strings.Join(removed, "; "), s, nil
}

// missing decides an update or delete of a row that is not there.
func missing(s *stmt) (conflict, decision string, next *stmt, err error) {
	t, o := s.shape.table, s.source
	switch {
	case o.kind == opDelete:
		return ErrNoSuchRow.Error(), "nothing to delete", nil, nil
	case o.kind == opUpdate && s.shape.verb == verbDelete: // the insert comes as a statement of its own
		return ErrNoSuchRow.Error(), "inserted", nil, nil
	case o.kind != opUpdate:
		return "", "", nil, nil
	}
	var unknown []string
	for _, c := range t.columns {
		if c.param >= 0 && o.row[c.param].Kind == change.Unchanged {
			unknown = append(unknown, schema.QuoteIdent(c.name))
		}
	}
	if len(unknown) > 0 {
		return "", "", nil, hint.Wrap(fmt.Errorf("%w; %w: the update leaves out the large value of %s", ErrNoSuchRow, errUndecided, strings.Join(unknown, ", ")),
			"put the row back as the source has it and resume; or ALTER TABLE %s REPLICA IDENTITY FULL on the source, for updates to come", t.mapping.Source.Name)
	}
	return ErrNoSuchRow.Error(), "inserted", &stmt{shape: shape{table: t, verb: verbInsert}, rows: []imagePair{{row: o.row}}, source: o}, nil
}

// remove deletes the rows that hold the unique values of a statement's new row, and returns their
// keys; they count as touched at end. It does so only for a key that the source enforces at once as well: then the source, which is
// ahead of us, cannot have had the other row at this point of its history.
func (w *writer) remove(ctx context.Context, s *stmt, pe *pgconn.PgError, end change.LSN) ([]string, error) {
	t := s.shape.table
	var columns []string
	err := w.conn.QueryRow(ctx, `SELECT coalesce(array_agg(a.attname::text ORDER BY k.ord), '{}') FROM pg_index i
		JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace
		CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k(attnum, ord) JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
		WHERE n.nspname = $1 AND x.relname = $2 AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AND k.ord <= i.indnkeyatts`,
		pe.SchemaName, pe.ConstraintName).Scan(&columns)
	if err != nil {
		return nil, fmt.Errorf("read index %s: %w", pe.ConstraintName, err)
	}
	if len(columns) == 0 {
		return nil, fmt.Errorf("%w: %s has a condition or an expression", errUndecided, pe.ConstraintName)
	}
	if !t.uniqueAtSource(columns) {
		return nil, fmt.Errorf("%w: the source does not keep %s unique, so the row in the way may be its own", errUndecided, schema.QuoteIdents(columns))
	}

	d := &builder{}
	var on, keys []string
	for _, name := range columns {
		c := t.columns[slices.IndexFunc(t.columns, func(c column) bool { return c.name == name })]
		if s.shape.masked(c.param) {
			return nil, fmt.Errorf("%w: the update leaves out the value of %q", errUndecided, name)
		}
		on = append(on, fmt.Sprintf("%s %s %s", c.compared(), c.equal, c.cast(d.param(false, c.param))))
	}
	for _, k := range t.key {
		keys = append(keys, "t."+schema.QuoteIdent(k.name)+"::pg_catalog.text")
	}
	text := fmt.Sprintf("DELETE FROM %s AS t USING %s WHERE %s RETURNING %s", t.target.sql(), d.u(), strings.Join(on, " AND "), strings.Join(append(keys, "''"), ", "))
	result := w.conn.PgConn().ExecParams(ctx, text, textArrays(d.args, s.rows), nil, []int16{pgx.BinaryFormatCode}, nil).Read()
	if result.Err != nil {
		return nil, withoutValues(result.Err)
	}
	removed := make([]string, len(result.Rows))
	for i, row := range result.Rows {
		gone := op{table: t, key: make([]change.Value, len(t.key))}
		for j := range t.key {
			gone.key[j] = change.Value{Kind: change.Text, Data: row[j]}
		}
		removed[i] = cmp.Or(t.keyText(&gone), "a row")
		if t.touches {
			w.displaced = append(w.displaced, t.touched(gone.key, end))
		}
	}
	return removed, nil
}

// uniqueAtSource reports whether the source keeps the columns that these of the target are made from
// unique, at once and not only at commit.
func (t *table) uniqueAtSource(columns []string) bool {
	source := make([]string, 0, len(columns))
	for _, c := range t.mapping.Columns {
		if c.Expr == "" && slices.Contains(columns, c.Target) {
			source = append(source, c.Source)
		}
	}
	slices.Sort(source)
	return len(source) == len(columns) && slices.ContainsFunc(t.mapping.Source.Unique, func(u []string) bool {
		return slices.Equal(slices.Sorted(slices.Values(u)), source)
	})
}

// recordDecision writes down what was decided about one row. The end of a transaction that comes in
// parts is not known yet; sealDecisions adds it.
func (w *writer) recordDecision(ctx context.Context, b *batch, o *op, conflicts, decisions []string) error {
	end := ""
	if !b.part {
		end = b.endOf(o).String()
	}
	_, err := w.run(ctx, []command{simple(
		`INSERT INTO ficus.conflicts (link, lsn, table_name, op, key, conflict, decision) VALUES ($1, nullif($2, '')::pg_lsn, $3, $4, $5, $6, $7)`,
		w.link, end, o.table.target.name.Display(), o.kind.String(), o.table.keyText(o), strings.Join(conflicts, "; "), strings.Join(decisions, "; "),
	)}, nil)
	if err != nil {
		return fmt.Errorf("record a decision: %w", err)
	}
	w.decided++
	return nil
}

// sealDecisions gives the decisions on a transaction that came in parts its end.
func (w *writer) sealDecisions(end change.LSN) command {
	return simple(`UPDATE ficus.conflicts SET lsn = $2::text::pg_lsn WHERE link = $1 AND lsn IS NULL`, w.link, end.String())
}
