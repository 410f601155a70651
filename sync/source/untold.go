package source

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// Servers do not tell of every subtransaction that is rolled back after it was streamed. One that they had written
// to disk first, of more than 4,096 changes, is streamed from there, and only what still has changes in memory
// afterwards is marked as streamed; of what is not marked a rollback is not sent. That happens where a connection
// begins in the middle of a transaction, or a row was not complete when memory was full.
// TestStreamedRolledBackUntold shows it with 14 to 18.
// Source: PostgreSQL source, ReorderBufferTruncateTXN and ReorderBufferRestoreChanges in
// src/backend/replication/logical/reorderbuffer.c.
//
// So the server is asked, when a streamed transaction commits, what became of those that it was not told of.

// errUntold says that the server no longer knows what became of a subtransaction: the transaction has to come
// again, after its commit.
var errUntold = errors.New("the server no longer knows whether a part of a streamed transaction was rolled back")

// mostAsked is how many subtransactions are asked for at a time.
const mostAsked = 50_000

// untoldSQL lists those of some subtransactions, given by the lower half of their ids, that did not commit; whole
// is false for those that are too old to tell. The walsender may be ahead of what snapshots see: one that is in
// progress belongs to a commit that is about to become visible, and an id may be newer than the snapshot's, so its upper
// half is that of the nearest id, on either side (PostgreSQL manual, "Transactions and Identifiers").
const untoldSQL = `
SELECT x, status IS NOT NULL FROM (
	SELECT x, pg_xact_status((next + ((x - next + 2147483648) & 4294967295) - 2147483648)::text::xid8) AS status
	FROM unnest($1::bigint[]) AS x, (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next) AS n) AS s
WHERE status IS NULL OR status = 'aborted'`

// An inquiry asks a source about subtransactions, over a session of its own.
type inquiry struct {
	dsn  pg.DSN
	conn *pgx.Conn // nil before the first question
}

// rolledBack returns those of the subtransactions that were rolled back. Their transaction has committed.
func (q *inquiry) rolledBack(ctx context.Context, subs []uint32) (gone []uint32, err error) {
	if q.conn == nil {
		if q.conn, err = q.dsn.Connect(ctx, "subtransactions"); err != nil {
			return nil, err
		}
	}
	for len(subs) > 0 {
		n := min(len(subs), mostAsked)
		ids := make([]int64, n)
		for i, x := range subs[:n] {
			ids[i] = int64(x)
		}
		subs = subs[n:]
		rows, err := q.conn.Query(ctx, untoldSQL, ids)
		if err != nil {
			return nil, fmt.Errorf("ask what was rolled back: %w", err)
		}
		var x int64
		var known bool
		if _, err = pgx.ForEachRow(rows, []any{&x, &known}, func() error {
			if !known {
				return errUntold
			}
			gone = append(gone, uint32(x))
			return nil
		}); err != nil {
			return nil, fmt.Errorf("ask what was rolled back: %w", err)
		}
	}
	return gone, nil
}

func (q *inquiry) close(ctx context.Context) {
	if q.conn != nil {
		hangUp(ctx, q.conn.PgConn())
	}
}
