package pg_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// Counted are transactions that still hold their id although the snapshot takes them for ended, those of
// sessions and prepared ones, and no others: not one that the snapshot knows to run, and not one that is
// younger than it. Catches: a snapshot that begins after its end, as slots make them, taken for an error.
func TestEnding(t *testing.T) {
	t.Parallel()
	cluster := pgtest.NewCluster(t, pgtest.Setting("max_prepared_transactions", "5"), pgtest.Setting("autovacuum", "off"))
	db := cluster.DB(t)
	conn := db.Conn(t)
	begin := func(prepare bool) int64 {
		c := db.Conn(t)
		if _, err := c.Exec(t.Context(), "BEGIN"); err != nil {
			t.Fatal(err)
		}
		var xid int64
		if err := c.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text::bigint").Scan(&xid); err != nil {
			t.Fatal(err)
		}
		if prepare {
			if _, err := c.Exec(t.Context(), "PREPARE TRANSACTION 'p'"); err != nil {
				t.Fatal(err)
			}
		}
		return xid
	}
	a, b, c := begin(false), begin(true), begin(false)
	for _, tt := range []struct {
		snapshot string
		want     int
	}{
		{fmt.Sprintf("%d:%d:", c+1, c+1), 3},
		{fmt.Sprintf("%d:%d:%d,%d,%d", a, c+1, a, b, c), 0},
		{fmt.Sprintf("%d:%d:%d", a, c+1, a), 2},
		{fmt.Sprintf("%d:%d:%d,%d", a, c+1, a, c), 1},
		{fmt.Sprintf("%d:%d:", b, b), 1},
		{fmt.Sprintf("%d:%d:", a, a), 0},
		{fmt.Sprintf("%d:%d:", c, b), 2}, // as a slot's may be
	} {
		if got, err := pg.Ending(t.Context(), conn, tt.snapshot); err != nil || got != tt.want {
			t.Errorf("snapshot %s with transactions %d, %d, %d: got %d, %v, want %d", tt.snapshot, a, b, c, got, err, tt.want)
		}
	}
	db.Exec(t, "ROLLBACK PREPARED 'p'")
	if got, err := pg.Ending(t.Context(), conn, fmt.Sprintf("%d:%d:", c+1, c+1)); err != nil || got != 2 {
		t.Errorf("after one has ended: got %d, %v, want 2", got, err)
	}
}

// A snapshot of the server's own making waits for nobody, and one that takes a running transaction for
// ended waits no longer than it must.
func TestAwaitSnapshot(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	other, conn := db.Conn(t), db.Conn(t)
	for _, sql := range []string{"BEGIN", "SELECT pg_current_xact_id()"} {
		if _, err := other.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Exec(t.Context(), "BEGIN ISOLATION LEVEL REPEATABLE READ"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // it would wait for two
	defer cancel()
	if err := pg.AwaitSnapshot(ctx, conn); err != nil {
		t.Error(err)
	}
}
