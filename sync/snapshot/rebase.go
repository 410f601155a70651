package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/manifest"
)

// rebase brings the finished pages of a half copied table from the base that they were read under
// (the old one) to this run's (the new one), in one target transaction. It returns why that cannot
// be done, "" when it was.
//
//  1. The key of every row that a transaction changed which the new base sees and the old one does
//     not, before and after the change, is deleted at the target.
//  2. The rows of finished pages whose xmin is not below the old base's are read, under the new base.
//     What the target has under their keys is deleted, and they are stored.
//  3. The other pages are copied under the new base, by the chunks that follow.
//
// Then the table holds what the new base sees, each row once. Take a row version that it sees:
//
//   - The old base saw it too, and its xmin is old. Nobody changed it between, so it has kept its
//     place: the relation's file is the same. In finished pages it was copied then. No step deletes
//     it: its key was its own all the time, since the key cannot be violated even for a moment, so
//     nobody else changed a row of that key. In other pages step 3 copies it.
//   - Its xmin is not below the old base's. That is so for all that the old base did not see: who had
//     not ended then has an id from there on, and so have its savepoints, which no snapshot lists.
//     In finished pages step 2 stores it, whether the target has it or not. In others, step 3 does.
//
// And a version at the target that the new base does not see was deleted or replaced by somebody
// whom it sees and the old one does not: step 1 removes it.
//
// Positions do not come into it: a transaction's commit is in the WAL, and so may have been
// streamed, before others see it.
func (c *copier) rebase(ctx context.Context, pulse *pg.Pulse, dst *pgx.Conn, t *table, kept *manifest.Table) (why string, err error) {
	src, err := c.openSource(ctx, pulse)
	if err != nil {
		return "", err
	}
	defer closeSession(ctx, src.Conn)
	tx, err := dst.Begin(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // an error here follows one that is returned

	if err := c.guard(ctx, tx); err != nil {
		return "", err
	}
	if err := manifest.Enter(ctx, tx, c.cfg.Link, t.m.Source.Name, kept.Run); err != nil {
		return "", err
	}
	r := &rebasing{c: c, t: t, kept: kept, pulse: pulse, src: src, dst: dst, tx: tx}
	if err := r.stage(ctx); errors.Is(err, ErrUnfollowable) {
		return err.Error(), nil
	} else if err != nil {
		return "", err
	}
	gained, err := r.replace(ctx)
	if err != nil {
		return "", err
	}
	if err := manifest.Rebase(ctx, tx, c.cfg.Link, kept, c.cfg.Base, c.cfg.Until, gained); err != nil {
		return "", err
	}
	if err := tx.Commit(ctx); err != nil {
		return "", err
	}
	kept.Base, kept.Until, kept.Mended = c.cfg.Base, c.cfg.Until, kept.Mended+gained
	return "", nil
}

// A rebasing is one call of rebase. Two temporary tables of its transaction hold what it found:
//
//	ficus_keys  keys of rows that have to go
//	ficus_rows  rows of finished pages that have to be stored
type rebasing struct {
	c     *copier
	t     *table
	kept  *manifest.Table
	pulse *pg.Pulse
	src   *reader
	dst   *pgx.Conn
	tx    pgx.Tx
}

// stage fills the temporary tables.
func (r *rebasing) stage(ctx context.Context) error {
	columns := schema.QuoteIdents(r.t.m.TargetColumns())
	for _, sql := range []string{
		"CREATE TEMPORARY TABLE ficus_keys ON COMMIT DROP AS SELECT " + r.key("") + " FROM " + r.t.m.Target.String() + " WITH NO DATA",
		"CREATE TEMPORARY TABLE ficus_rows ON COMMIT DROP AS SELECT " + columns + " FROM " + r.t.m.Target.String() + " WITH NO DATA",
	} {
		if _, err := r.tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("stage changed rows: %w", targetError(err))
		}
	}
	if err := r.stageKeys(ctx); err != nil {
		return err
	}
	in := "COPY pg_temp.ficus_rows (" + columns + ") FROM STDIN WITH (FORMAT " + r.t.format + ")"
	for _, p := range r.kept.Done {
		if _, err := pump(ctx, r.src, r.dst.PgConn(), r.recent(p), in, &table{}); err != nil { // counted when it is replaced
			return err
		}
	}
	for _, sql := range []string{
		"INSERT INTO pg_temp.ficus_keys SELECT " + r.key("") + " FROM pg_temp.ficus_rows",
		"ANALYZE pg_temp.ficus_keys",
	} {
		if _, err := r.tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("stage changed rows: %w", targetError(err))
		}
	}
	return nil
}

// stageKeys stores what Changed hands over. COPY reads each value as its type does.
func (r *rebasing) stageKeys(ctx context.Context) error {
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	var changed error
	done := make(chan struct{})
	go func() { // ends with Changed, which ends with its context or when nobody reads the pipe any more
		defer close(done)
		var line []byte
		wake := r.pulse.Rest() // it waits for the stream
		defer func() { wake() }()
		changed = r.c.cfg.Changed(reading, r.t.m, r.kept.Base, func(key [][]byte) error {
			line = line[:0]
			for i, v := range key {
				if i > 0 {
					line = append(line, '\t')
				}
				line = appendText(line, v)
			}
			line = append(line, '\n')
			wake()
			_, err := pw.Write(line)
			wake = r.pulse.Rest()
			return err
		})
		pw.CloseWithError(changed) // EOF when nil
	}()
	_, err := r.dst.PgConn().CopyFrom(ctx, pr, "COPY pg_temp.ficus_keys FROM STDIN")
	if err != nil {
		_ = pr.CloseWithError(errStopped)
		cancel()
	}
	<-done
	switch {
	case changed != nil && (err == nil || !stoppedBy(changed)):
		return changed
	case err != nil:
		return targetError(err)
	}
	return nil
}

// appendText appends a value in COPY's text format.
// Source: PostgreSQL manual, COPY, "Text Format".
func appendText(line, value []byte) []byte {
	for _, b := range value {
		switch b {
		case '\\':
			line = append(line, '\\', '\\')
		case '\n':
			line = append(line, '\\', 'n')
		case '\r':
			line = append(line, '\\', 'r')
		case '\t':
			line = append(line, '\\', 't')
		default:
			line = append(line, b)
		}
	}
	return line
}

// recent returns the statement that reads the rows of a finished part whose xmin is not below the
// old base's. Ids are compared on their circle, without epoch: more rows than needed do no harm.
func (r *rebasing) recent(p manifest.Part) string {
	since := uint32(r.kept.Base.Xmin()) // rows have the lower half only
	conditions := append(pages{p.From, p.To}.conditions(),
		fmt.Sprintf("(xmin::text::bigint - %d + 4294967296) %% 4294967296 < %d", since, int64(maxAge)))
	i := slices.IndexFunc(r.t.src.pieces, func(s piece) bool { return s.name.String() == p.Relation })
	return r.t.copyOut(r.t.src.pieces[i], conditions)
}

// replace deletes and stores at the target what the temporary tables hold, and returns how many rows
// that added. Keys are compared as the text of rows: that needs no operator of any type, and means
// the very values that were copied.
func (r *rebasing) replace(ctx context.Context) (gained int64, err error) {
	if _, err := r.tx.Exec(ctx, "SET LOCAL enable_nestloop = off"); err != nil { // there may be no index
		return 0, err
	}
	gone, err := r.tx.Exec(ctx, "DELETE FROM "+r.t.truncated()+" t USING (SELECT DISTINCT ROW("+r.key("")+")::text AS k FROM pg_temp.ficus_keys) c "+
		"WHERE ROW("+r.key("t.")+")::text = c.k")
	if err != nil {
		return 0, fmt.Errorf("delete changed rows: %w", targetError(err))
	}
	columns := schema.QuoteIdents(r.t.m.TargetColumns())
	come, err := r.tx.Exec(ctx, "INSERT INTO "+r.t.m.Target.String()+" ("+columns+") OVERRIDING SYSTEM VALUE SELECT "+columns+" FROM pg_temp.ficus_rows")
	if err != nil {
		return 0, fmt.Errorf("store changed rows: %w", targetError(err))
	}
	return come.RowsAffected() - gone.RowsAffected(), nil
}

// key returns the target's key columns, each behind prefix.
func (r *rebasing) key(prefix string) string {
	names := make([]string, len(r.t.m.Key))
	for i, k := range r.t.m.Key {
		names[i] = prefix + schema.QuoteIdent(k.Target)
	}
	return strings.Join(names, ", ")
}
