package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/pg"
)

const (
	// flushBytes is how much of a pipeline is buffered before it goes out, so that the server
	// starts on the first statements while the last are still being encoded.
	flushBytes = 64 << 10

	codeDivisionByZero = "22012"
)

// lockSQL locks the progress row where it stands at $2, and moveSQL moves it from there; they raise an
// error where it does not.
const (
	lockSQL = `SELECT 1 / count(*) FROM (SELECT FROM ficus.progress WHERE link = $1 AND lsn = $2::text::pg_lsn FOR UPDATE) AS p`
	moveSQL = `WITH moved AS (UPDATE ficus.progress SET lsn = $3::text::pg_lsn, signal = coalesce(nullif($4, ''), signal),
		epoch = coalesce(nullif($5::bigint, 0), epoch), updated_at = now() WHERE link = $1 AND lsn = $2::text::pg_lsn RETURNING 1)
		SELECT 1 / count(*) FROM moved`
)

// A writer writes batches to the destination, over one session. Its own methods are the slow path,
// which writes one batch at a time; a lane over it is the fast one.
type writer struct {
	*session
	link  string
	at    change.LSN                                        // the destination stands here
	open  bool                                              // a target transaction is open: parts of a large one are in it
	touch func(context.Context, []eventstore.Touched) error // nil when keys are not recorded

	sourceWins bool // see OnConflict

	tally

	displaced []eventstore.Touched // rows of the open target transaction that sourceWins removed
}

// A tally is of one target transaction.
type tally struct {
	replayed bool // a part of it took the slow path
	parallel bool // it went over a session of the crew
	rows     int  // of the parts before the last one
	decided  int  // rows that sourceWins decided
}

// A command is one statement in a pipeline.
type command struct {
	prepared
	params [][]byte                      // binary for a prepared statement, else text
	check  func(pgconn.CommandTag) error // nil when any result will do
}

func simple(text string, params ...string) command {
	c := command{prepared: prepared{text: text}}
	for _, p := range params {
		c.params = append(c.params, []byte(p))
	}
	return c
}

// write brings one batch to the destination, row by row in source order. Unless more parts follow, it
// is committed on return. With again, the fast path was refused and has left its transaction failed.
func (w *writer) write(ctx context.Context, b *batch, again bool) error {
	if err := w.writeOps(ctx, b, again); err != nil {
		return err
	}
	if w.touch != nil {
		if err := w.touch(ctx, append(touched(planInOrder(b.ops), b.end()), w.displaced...)); err != nil {
			return fmt.Errorf("record touched keys: %w", err)
		}
	}
	if b.more {
		w.rows += len(b.ops)
		return nil
	}
	return w.commit(ctx, b)
}

func (w *writer) writeOps(ctx context.Context, b *batch, again bool) (err error) {
	begin := w.begin(b)
	w.open = true
	if again {
		if begin, err = w.undo(ctx, b, begin); err != nil {
			return err
		}
	}
	w.replayed = true
	stmts := planInOrder(b.ops)
	if err := w.prepare(ctx, stmts); err != nil {
		return err
	}
	failed, err := w.run(ctx, begin, stmts)
	if err == nil || failed < 0 || !refused(err) {
		return err
	}
	if !w.sourceWins {
		return rowError(b, &stmts[failed], err)
	}
	if begin, err = w.undo(ctx, b, begin); err != nil {
		return err
	}
	return w.decide(ctx, b, begin, stmts)
}

// undo takes back what the batch wrote, and returns what has to go before its rows now.
func (w *writer) undo(ctx context.Context, b *batch, begin []command) ([]command, error) {
	undo := simple("ROLLBACK")
	if b.part {
		undo, begin = simple("ROLLBACK TO SAVEPOINT part"), nil
	}
	_, err := w.run(ctx, []command{undo}, nil)
	return begin, err
}

// rollback undoes the open target transaction.
func (w *writer) rollback(ctx context.Context) error {
	_, err := w.run(ctx, []command{simple("ROLLBACK")}, nil)
	w.open = false
	return err
}

// begin returns what goes before a batch's rows. The progress row is locked first: a session of
// ours that was cut off may still be committing what we are about to write again.
func (w *writer) begin(b *batch) []command {
	var cmds []command
	if !w.open {
		w.displaced = nil
		cmds = append(cmds, simple("BEGIN"), simple(lockSQL, w.link, w.at.String()))
	}
	if b.part {
		if w.open { // the part before is done: savepoints do not pile up
			cmds = append(cmds, simple("RELEASE SAVEPOINT part"))
		}
		cmds = append(cmds, simple("SAVEPOINT part"))
	}
	return cmds
}

// commit ends the target transaction and moves the progress with it.
func (w *writer) commit(ctx context.Context, b *batch) error {
	end := b.end()
	commit := simple("COMMIT")
	commit.check = func(tag pgconn.CommandTag) error {
		if tag.String() != "COMMIT" {
			return fmt.Errorf("transaction ended by %s", tag)
		}
		return nil
	}
	cmds := []command{w.move(w.at, b), commit}
	if w.decided > 0 {
		cmds = slices.Insert(cmds, 0, w.sealDecisions(end))
	}
	if _, err := w.run(ctx, cmds, nil); err != nil {
		return fmt.Errorf("commit everything up to %s: %w", end, err)
	}
	w.open, w.at = false, end
	return nil
}

// move returns the command that moves the progress from one position to the end of a batch.
func (w *writer) move(from change.LSN, b *batch) command {
	signal, epoch := "", int64(0)
	for _, t := range b.txns {
		if n := len(t.signals); n > 0 {
			signal = t.signals[n-1]
		}
		epoch = max(epoch, t.epoch)
	}
	return simple(moveSQL, w.link, from.String(), b.end().String(), signal, strconv.FormatInt(epoch, 10))
}

// run sends commands and statements in one go and checks what they did. When a statement fails its
// index is returned, else -1.
func (w *writer) run(ctx context.Context, cmds []command, stmts []stmt) (failed int, err error) {
	pipe := w.conn.PgConn().StartPipeline(ctx)
	defer func() {
		if closed := pipe.Close(); err == nil && closed != nil {
			failed, err = -1, withoutValues(closed)
		}
	}()
	if err := w.send(pipe, cmds, stmts); err != nil {
		return -1, err
	}
	for _, c := range cmds {
		if err := result(pipe, c.check); err != nil {
			if c.text == lockSQL && pg.Code(err) == codeDivisionByZero {
				err = fmt.Errorf("progress of %s at %s: %w", w.link, w.at, errMoved)
			}
			return -1, err
		}
	}
	for i := range stmts {
		if err := result(pipe, stmts[i].check); err != nil {
			return i, err
		}
	}
	return -1, nil
}

func (w *writer) send(pipe *pgconn.Pipeline, cmds []command, stmts []stmt) error {
	buffered := 0
	for i := range len(cmds) + len(stmts) {
		var c command
		if i < len(cmds) {
			c = cmds[i]
		} else {
			c = w.command(&stmts[i-len(cmds)])
		}
		if c.name != "" {
			pipe.SendQueryPrepared(c.name, c.params, []int16{pgx.BinaryFormatCode}, nil)
		} else {
			pipe.SendQueryParams(c.text, c.params, nil, nil, nil)
		}
		for _, p := range c.params {
			buffered += len(p)
		}
		if buffered < flushBytes {
			continue
		}
		buffered = 0
		if err := pipe.Flush(); err != nil {
			return err
		}
	}
	return pipe.Sync()
}

// result reads what one command did.
func result(pipe *pgconn.Pipeline, check func(pgconn.CommandTag) error) error {
	res, err := pipe.GetResults()
	if err != nil {
		return withoutValues(err)
	}
	rr, ok := res.(*pgconn.ResultReader)
	if !ok {
		return fmt.Errorf("unexpected %T from the server", res)
	}
	tag, err := rr.Close()
	if err != nil {
		return withoutValues(err)
	}
	if check == nil {
		return nil
	}
	return check(tag)
}

// prepare makes the server know the statements' shapes.
func (w *writer) prepare(ctx context.Context, stmts []stmt) error {
	if err := w.forget(ctx); err != nil {
		return err
	}
	for i := range stmts {
		s := stmts[i].shape
		if s.verb == verbTruncate || w.known[statement{shape: s}] != nil {
			continue
		}
		p := w.named()
		p.text, p.args = s.sql(viaText, false)
		if _, err := w.conn.PgConn().Prepare(ctx, p.name, p.text, nil); err != nil {
			name := s.table.target.name
			return advise(fmt.Errorf("prepare the %s of %s: %w", s.verb, name.Display(), withoutValues(err)), name)
		}
		w.known[statement{shape: s}] = p
	}
	return nil
}

func (w *writer) command(s *stmt) command {
	if s.shape.verb == verbTruncate {
		text, _ := s.shape.sql(viaText, false)
		return simple(text)
	}
	p := w.known[statement{shape: s.shape}]
	return command{prepared: *p, params: textArrays(p.args, s.rows)}
}

// check compares how many rows a statement hit with how many it was for. Where a mapping has a
// condition not every row is at the destination, and only too many would be wrong.
func (s *stmt) check(tag pgconn.CommandTag) error {
	if s.shape.verb == verbTruncate {
		return nil
	}
	hit, want := tag.RowsAffected(), int64(len(s.rows))
	if hit == want || hit < want && s.shape.table.mapping.Where != "" {
		return nil
	}
	return &miss{hit, want}
}

// rowError says which row, of those written one by one, the database refused.
func rowError(b *batch, s *stmt, err error) error {
	t := s.shape.table
	e := &RowError{Table: t.target.name, Op: s.source.kind.String(), Key: t.keyText(s.source), Err: err}
	if _, ok := errors.AsType[*miss](err); ok {
		e.Err = ErrNoSuchRow // not how many: it was for one
	}
	if !b.part {
		e.End = b.endOf(s.source)
	}
	return advise(e, t.target.name)
}
