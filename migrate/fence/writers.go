package fence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
)

// A BlockerAnswer says what is done with sessions that a closing fence waits for.
type BlockerAnswer string

// The answers. Prepared transactions, and sessions of Ficus itself, are only ever waited for.
const (
	BlockersWait      BlockerAnswer = "wait"      // nothing: the promotion is undone when its budget is used up
	BlockersCancel    BlockerAnswer = "cancel"    // statements that run are cancelled; it does not touch idle sessions
	BlockersTerminate BlockerAnswer = "terminate" // the sessions are ended
)

// writersSQL finds transactions with a write lock on a fenced table. A statement takes its lock
// before its triggers read the gate, so no transaction that passed is missing here.
const writersSQL = `
SELECT DISTINCT l.virtualtransaction
FROM pg_locks l JOIN pg_trigger t ON t.tgrelid = l.relation AND t.tgname = '` + trigger + `'
WHERE l.locktype = 'relation' AND l.granted
AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
AND l.pid IS DISTINCT FROM pg_backend_pid()`

// WaitWriters implements [migrate.Database].
func (d *Database) WaitWriters(ctx context.Context, blocked func([]migrate.Blocker)) error {
	writers, err := d.writers(ctx, "")
	if err != nil {
		return d.wrap("look for writers", err)
	}

	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	report := time.NewTicker(time.Second)
	defer report.Stop()
	patience := time.NewTimer(d.cfg.BlockersAfter)
	defer patience.Stop()
	var ended []migrate.Blocker // that were cancelled or terminated, or could not be
	for {
		left, err := d.writers(ctx, ` AND l.virtualtransaction = ANY($1)`, writers)
		switch {
		case err == nil && len(left) == 0:
			return nil
		case err == nil:
			writers = left
		case ctx.Err() == nil:
			return d.wrap("wait for writers", err)
		}
		select {
		case <-ctx.Done():
			return d.blockedError(ctx, writers, ended)
		case <-report.C:
			if b, err := d.blockers(ctx, writers); err == nil && blocked != nil && len(b) > 0 {
				blocked(withEnded(b, ended))
			}
		case <-patience.C:
			if ended = d.end(ctx, writers); len(ended) > 0 && blocked != nil {
				blocked(ended)
			}
		case <-poll.C:
		}
	}
}

// end does with blockers what the playbook says, and returns those with whom it did, or tried to. A
// session is taken by the transaction that it is in at that moment: one that went on to another stays.
func (d *Database) end(ctx context.Context, writers []string) []migrate.Blocker {
	call, word := "pg_cancel_backend", migrate.BlockerCancelled
	switch d.cfg.Blockers {
	case BlockersCancel:
	case BlockersTerminate:
		call, word = "pg_terminate_backend", migrate.BlockerTerminated
	case BlockersWait:
		return nil
	}
	all, err := d.blockers(ctx, writers)
	if err != nil {
		return nil // it is only waited for, as without
	}
	var ended []migrate.Blocker
	for _, b := range all {
		idle := strings.HasPrefix(b.State, "idle")
		if b.PID == 0 || idle && d.cfg.Blockers == BlockersCancel || strings.HasPrefix(b.Application, "ficus/") {
			continue
		}
		var done bool
		err := d.pool.QueryRow(ctx, `SELECT `+call+`(l.pid) FROM pg_locks l WHERE l.pid = $1 AND l.locktype = 'virtualxid' AND l.virtualxid = ANY($2)`, b.PID, writers).Scan(&done)
		switch {
		case errors.Is(err, pgx.ErrNoRows): // it has ended by itself
			continue
		case pg.Code(err) == pg.CodeInsufficientPrivilege:
			b.Ended = migrate.BlockerForbidden
		case err != nil || !done:
			continue
		default:
			b.Ended = word
		}
		ended = append(ended, b)
	}
	return ended
}

// withEnded notes on blockers what was done with them.
func withEnded(bs, ended []migrate.Blocker) []migrate.Blocker {
	for i := range bs {
		for _, e := range ended {
			if e.PID == bs[i].PID && e.PID != 0 {
				bs[i].Ended = e.Ended
			}
		}
	}
	return bs
}

func (d *Database) writers(ctx context.Context, condition string, args ...any) ([]string, error) {
	rows, err := d.pool.Query(ctx, writersSQL+condition, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// blockedError names who is still running now that the time is up.
func (d *Database) blockedError(ctx context.Context, writers []string, ended []migrate.Blocker) error {
	cause := context.Cause(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	bs, err := d.blockers(ctx, writers)
	if err != nil {
		return d.wrap("wait for writers", errors.Join(cause, err))
	}
	who := make([]string, len(bs))
	for i, b := range withEnded(bs, ended) {
		who[i] = b.String()
	}
	return hint.Wrap(d.wrap("wait for writers", fmt.Errorf("still running: %s: %w", strings.Join(who, ", "), cause)),
		"end these transactions, for example with pg_terminate_backend(pid) or ROLLBACK PREPARED, then promote again; promote.blockers in the playbook lets Ficus do it")
}

// blockers describes writers. The virtual transaction of a prepared one keeps the number it had in
// its backend, so it is found by the lock on its own transaction id.
func (d *Database) blockers(ctx context.Context, writers []string) ([]migrate.Blocker, error) {
	rows, err := d.pool.Query(ctx, `
		SELECT coalesce(a.pid, 0), coalesce(p.gid, ''), coalesce(a.usename, p.owner, '')::text,
			coalesce(a.application_name, ''), CASE WHEN p.gid IS NULL THEN coalesce(a.state, 'hidden from this role') ELSE 'prepared' END, coalesce(a.query, ''),
			extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared, clock_timestamp()))::float8
		FROM unnest($1::text[]) w(vxid)
		LEFT JOIN pg_locks x ON x.virtualtransaction = w.vxid AND x.locktype = 'transactionid' AND x.pid IS NULL
		LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid AND p.database = current_database()
		LEFT JOIN (SELECT DISTINCT virtualtransaction, pid FROM pg_locks WHERE pid IS NOT NULL) l ON l.virtualtransaction = w.vxid
		LEFT JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE a.pid IS NOT NULL OR p.gid IS NOT NULL`, writers)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (migrate.Blocker, error) {
		var b migrate.Blocker
		var age float64
		err := row.Scan(&b.PID, &b.GID, &b.Role, &b.Application, &b.State, &b.Query, &age)
		b.Age = time.Duration(age * float64(time.Second))
		b.Query = shape(b.Query)
		return b, err
	})
}
