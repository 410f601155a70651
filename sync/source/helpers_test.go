package source_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/source"
)

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.CheckLeaks()) }

var errStopped = errors.New("stopped by the test")

// A rig is a database with a slot, and a store to stream it to.
type rig struct {
	db    *pgtest.Database
	dir   string
	store *eventstore.Store
	cfg   source.Config
}

// newRig runs ddl and publishes the tables of schema public.
func newRig(t *testing.T, db *pgtest.Database, ddl string) *rig {
	t.Helper()
	db.Exec(t, ddl)
	var tables []schema.Name
	for _, name := range db.Strings(t, `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
		AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1`) {
		tables = append(tables, schema.Name{Schema: "public", Name: name})
	}
	err := source.EnsurePublication(t.Context(), db.Conn(t), "ficus_test", tables, source.PublicationOptions{})
	if err != nil {
		t.Fatal(err)
	}
	g := &rig{db: db, dir: t.TempDir()}
	g.open(t)
	g.cfg.DSN, g.cfg.Publications, g.cfg.StatusInterval = db.DSN, []string{"ficus_test"}, 50*time.Millisecond
	g.cfg.Slot = "slot_of_" + db.Name // slots belong to the cluster, which tests share
	g.cfg.Start = createSlot(t, db, g.cfg.Slot)
	return g
}

// open opens the store, again after a close.
func (g *rig) open(t *testing.T) {
	t.Helper()
	var err error
	if g.store, err = eventstore.Open(eventstore.Config{Dir: g.dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.store.Close() })
	if g.cfg.Stream, err = g.store.Stream("test"); err != nil {
		t.Fatal(err)
	}
}

func createSlot(t *testing.T, db *pgtest.Database, name string) change.LSN {
	t.Helper()
	conn, err := db.DSN.ConnectReplication(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	snap, err := source.CreateSlot(t.Context(), conn, name, false)
	if err := errors.Join(err, conn.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	return snap.LSN
}

// start runs a reader; stop ends it and returns Run's error, and is called at the end at the latest.
func (g *rig) start(t *testing.T) (r *source.Reader, stop func() error) {
	t.Helper()
	r, err := source.New(g.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan struct{})
	go func() { // ends with stop
		defer close(done)
		err = r.Run(ctx)
	}()
	stop = func() error {
		cancel(errStopped)
		<-done
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return r, stop
}

// now returns the position that the database has written to.
func (g *rig) now(t *testing.T) change.LSN {
	t.Helper()
	return lsn(t, g.db.Strings(t, "SELECT pg_current_wal_insert_lsn()")[0])
}

func (g *rig) confirmed(t *testing.T) change.LSN {
	t.Helper()
	return lsn(t, g.db.Strings(t, "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1", g.cfg.Slot)[0])
}

func lsn(t *testing.T, text string) change.LSN {
	t.Helper()
	v, err := change.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// received waits until everything the database has written by now is in the stream.
func (g *rig) received(t *testing.T, r *source.Reader) {
	t.Helper()
	upTo := g.now(t)
	pgtest.Eventually(t, "reader at "+upTo.String(), func() bool { return r.Status().Received >= upTo })
}

// walsender returns the process that streams the slot, waiting for it.
func (g *rig) walsender(t *testing.T) int64 {
	t.Helper()
	var pid int64
	pgtest.Eventually(t, "walsender", func() bool {
		pid = g.db.Int(t, "SELECT coalesce((SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1), 0)", g.cfg.Slot)
		return pid != 0
	})
	return pid
}

// A tx is a transaction as it came out of the stream.
type tx struct {
	end     change.LSN
	xid     uint32
	spilled bool
	origin  string
	rows    []string // "insert t(1,abc)"
	shapes  []string // "t(id,v)", in the order of rows, each once in a row
}

// transactions decodes what follows from, as an applier does.
func transactions(t *testing.T, st *eventstore.Stream, from change.LSN) []tx {
	t.Helper()
	r := st.Read(from)
	defer r.Close()
	d := change.NewDecoder()
	pins, err := r.Pins()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pins {
		if _, err := d.Decode(p); err != nil {
			t.Fatal(err)
		}
	}
	var list []tx
	for at := min(from, st.Head()); at < st.Head(); {
		c, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for rest := c.Data; len(rest) > 0; {
			var msg []byte
			if msg, rest, err = change.NextFrame(rest); err != nil {
				t.Fatal(err)
			}
			m, err := d.Decode(msg)
			if err != nil {
				t.Fatal(err)
			}
			switch m.Kind {
			case change.KindBegin:
				list = append(list, tx{spilled: c.Spilled, xid: m.Begin.XID})
			case change.KindCommit:
				list[len(list)-1].end = m.Commit.EndLSN
				at = m.Commit.EndLSN
			case change.KindInsert, change.KindUpdate, change.KindDelete:
				last := &list[len(list)-1]
				last.rows = append(last.rows, text(m.Row))
				if s := shape(m.Row.Rel); len(last.shapes) == 0 || last.shapes[len(last.shapes)-1] != s {
					last.shapes = append(last.shapes, s)
				}
			case change.KindTruncate:
				last := &list[len(list)-1]
				last.rows = append(last.rows, fmt.Sprintf("truncate of %d", len(m.Truncate.Relations)))
			case change.KindOrigin:
				list[len(list)-1].origin = m.Origin
			case change.KindRelation, change.KindType, change.KindMessage, change.KindSubtransaction:
			}
		}
	}
	for i := 1; i < len(list); i++ {
		if list[i].end <= list[i-1].end {
			t.Errorf("transaction that ends at %s follows one that ends at %s", list[i].end, list[i-1].end)
		}
	}
	for len(list) > 0 && list[0].end <= from {
		list = list[1:]
	}
	return list
}

func text(row change.Row) string {
	tuple := row.New
	if row.Op == change.Delete {
		tuple = row.Old
	}
	values := make([]string, len(tuple))
	for i, v := range tuple {
		values[i] = string(v.Data)
	}
	return fmt.Sprintf("%s %s(%s)", row.Op, row.Rel.Name, strings.Join(values, ","))
}

func shape(rel *change.Relation) string {
	names := make([]string, len(rel.Columns))
	for i, c := range rel.Columns {
		names[i] = c.Name
	}
	return rel.Name + "(" + strings.Join(names, ",") + ")"
}

func rows(list []tx) [][]string {
	var all [][]string
	for _, x := range list {
		all = append(all, x.rows)
	}
	return all
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s: (-want +got)\n%s", what, d)
	}
}
