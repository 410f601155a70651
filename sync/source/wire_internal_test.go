package source

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// A slowConn comes back late from a write, as one does when the machine has too much to do: the answer
// may be there before.
type slowConn struct {
	net.Conn

	slow *atomic.Int32 // writes
}

func (c slowConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if c.slow.Add(-1) >= 0 {
		err = errors.Join(err, backoff.Sleep(context.Background(), 100*time.Millisecond))
	}
	return n, err
}

// TestHijackAfterASlowWrite: pgconn reads in the background once a write was slow. What the server says
// after the connection was taken over must not end there.
//
// It fails when hijack does not stop that reading, CopyBothResponse is missing, and when a connection that stays
// slow ends the reader.
func TestHijackAfterASlowWrite(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, "CREATE PUBLICATION p")
	db.Exec(t, "SELECT pg_create_logical_replication_slot('slow_"+db.Name+"', 'pgoutput')")
	var slow atomic.Int32
	slowly := func(cfg *pgx.ConnConfig) {
		dial := cfg.DialFunc
		cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			return slowConn{c, &slow}, err
		}
	}
	conn, err := db.DSN.ConnectReplication(t.Context(), "test", slowly)
	if err != nil {
		t.Fatal(err)
	}
	slow.Store(1)
	if _, err := conn.Exec(t.Context(), "SELECT 1").ReadAll(); err != nil {
		t.Fatal(err)
	}
	w, err := hijack(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if err := w.start("slow_"+db.Name, 0, pluginOptions(w.major, StreamingOff, []string{"p"})); err != nil {
		t.Fatal(err)
	}

	if conn, err = db.DSN.ConnectReplication(t.Context(), "test", slowly); err != nil {
		t.Fatal(err)
	}
	slow.Store(1000)
	if _, err := conn.Exec(t.Context(), "SELECT 1").ReadAll(); err != nil {
		t.Fatal(err)
	}
	if _, err := hijack(t.Context(), conn); err == nil || !new(Reader).mends(err, new(faults)) {
		t.Errorf("a connection that stays slow: got %v, want an error that another connection mends", err)
	}
}

// TestAskedBeforeItIsVisible: the server sends a commit before it shows it to others, so that the ids asked
// for may be newer than any that a snapshot knows of.
//
// It fails when an id is taken for one of the past because no snapshot sees it.
func TestAskedBeforeItIsVisible(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, "CREATE TABLE t (id int)")
	tx, err := db.Conn(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var subs []uint32
	for i, end := range []string{"RELEASE s", "ROLLBACK TO s", "RELEASE s"} {
		var xid int64
		for _, sql := range []string{"SAVEPOINT s", "INSERT INTO public.t VALUES (1)"} {
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.QueryRow(t.Context(), "SELECT max(xmin::text::bigint) FROM public.t").Scan(&xid); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), end); err != nil {
			t.Fatal(err)
		}
		if subs = append(subs, uint32(xid)); i > 0 && subs[i] <= subs[i-1] {
			t.Fatalf("ids of subtransactions: %v", subs)
		}
	}
	q := inquiry{dsn: db.DSN}
	defer q.close(t.Context())
	gone, err := q.rolledBack(t.Context(), subs)
	if err != nil || !slices.Equal(gone, subs[1:2]) {
		t.Errorf("rolled back: got %v, %v; want %v", gone, err, subs[1:2])
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if gone, err := q.rolledBack(t.Context(), subs); err != nil || !slices.Equal(gone, subs[1:2]) {
		t.Errorf("rolled back, after the commit: got %v, %v; want %v", gone, err, subs[1:2])
	}
}
