package pg

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// How often AwaitSnapshot looks, and for how long. What it waits for takes microseconds, or as long as a
// process on a busy machine is kept from running.
const (
	snapshotPoll     = 2 * time.Millisecond
	snapshotPatience = 2 * time.Second
)

// AwaitSnapshot returns once the snapshot of a new replication slot can be read. conn is in a
// transaction that adopted it, and has read no table yet.
//
// Such a snapshot is made from WAL: a transaction counts as committed as soon as its commit record is
// there, which is a moment before the server marks it as committed. Who reads rows of it in that moment
// does not see them, and, worse, marks them as rolled back for everybody: the source itself loses them.
// Source: pgsql-hackers, "Race conditions in logical decoding", January 2026.
//
// So it waits for transactions that the snapshot takes for ended and that still hold the lock on their
// id. One that waits for a synchronous standby holds it, too, and was marked before; the wait ends after
// a while, whoever is left.
func AwaitSnapshot(ctx context.Context, conn *pgx.Conn) error {
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&text); err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	deadline := time.Now().Add(snapshotPatience)
	tick := time.NewTicker(snapshotPoll)
	defer tick.Stop()
	for {
		n, err := ending(ctx, conn, text)
		if err != nil || n == 0 || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// ending counts the transactions that a snapshot takes for ended and that are not, in whatever snapshot
// conn is: locks know none. They name an id by its lower half; the upper is that of the snapshot's end.
//
// A slot's snapshot may begin after its end: what is older than its beginning has ended in any case.
func ending(ctx context.Context, conn *pgx.Conn, snapshot string) (n int, err error) {
	begin, rest, _ := strings.Cut(snapshot, ":")
	end, running, _ := strings.Cut(rest, ":")
	if b, e := xid(begin), xid(end); b > e {
		snapshot = begin + ":" + begin + ":" + running
	}
	err = conn.QueryRow(ctx, `
		SELECT count(*) FROM (SELECT $1::text::pg_snapshot AS s, pg_snapshot_xmax($1::text::pg_snapshot)::text::bigint AS edge) AS b
		JOIN LATERAL (
			SELECT (b.edge - l.transactionid::text::bigint) & 4294967295 AS back FROM pg_locks AS l
			WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
		) AS x ON x.back BETWEEN 1 AND 2147483647 AND x.back < b.edge
		WHERE pg_visible_in_snapshot((b.edge - x.back)::text::xid8, b.s)`, snapshot).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("look for transactions that are about to end: %w", err)
	}
	return n, nil
}

// xid is the number of a transaction; 0 where the text is none, which the server then says.
func xid(text string) uint64 {
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}
