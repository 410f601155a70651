package source_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/source"
)

// connect lets a new reader receive what is written by now, and says whether it compared the newest
// transaction.
func (g *rig) connect(t *testing.T) (compared bool) {
	t.Helper()
	var log bytes.Buffer
	g.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	r, stop := g.start(t)
	g.received(t, r)
	if err := stop(); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	return strings.Contains(log.String(), "compares_newest=true")
}

// TestNewestComesAgain: a slot that was told of nothing sends the newest stored transaction again,
// whatever its form, and it is not stored again. Tables that left the publication meanwhile, other
// publications, and large transactions that hold nothing of ours are no reason for an alarm.
//
// It fails when the position asked for is the end of that transaction; when Asked is not compared; when
// streamed transactions without rows are stored.
func TestNewestComesAgain(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 14, 15, 16, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			g := newRig(t, pgtest.DB(t, pgtest.Version(major)),
				"CREATE TABLE public.t (id int PRIMARY KEY, v text); CREATE TABLE public.u (id int PRIMARY KEY, v text); CREATE TABLE public.w (id int)")
			streamEarly(t, g.db)
			g.cfg.Ack, g.cfg.Applied = source.AckApplied, func() change.LSN { return g.cfg.Start }
			publish := func(insertOnly []schema.Name, names ...string) {
				t.Helper()
				tables := insertOnly
				for _, n := range names {
					tables = append(tables, schema.Name{Schema: "public", Name: n})
				}
				if err := source.EnsurePublication(t.Context(), g.db.Conn(t), "ficus_test", tables, source.PublicationOptions{InsertOnly: insertOnly}); err != nil {
					t.Fatal(err)
				}
			}
			w := []schema.Name{{Schema: "public", Name: "w"}}
			publish(w, "t", "u")
			g.cfg.Publications = append(g.cfg.Publications, source.InsertPublication("ficus_test"))
			const large = "SELECT i, repeat('x', 1000) FROM generate_series(1, 3000) i"
			want := 0
			for _, c := range []struct {
				name   string
				sql    string
				stored int
			}{
				{"small", "INSERT INTO t VALUES (-1)", 1},
				{"large", "INSERT INTO t " + large, 1},
				{"of subtransactions", "BEGIN; SAVEPOINT a; DELETE FROM t; ROLLBACK TO a; SAVEPOINT b; INSERT INTO u " + large + "; RELEASE b; COMMIT", 1},
				{"a truncation", "TRUNCATE t, u", 1},
				{"rolled back", "BEGIN; SAVEPOINT a; INSERT INTO t " + large + "; ROLLBACK TO a; CREATE TABLE public.n AS " + large + "; COMMIT", 0},
				{"nothing of ours", "CREATE TABLE public.m AS " + large, 0},
			} {
				g.db.Exec(t, c.sql)
				g.connect(t) // stores it
				want += c.stored
				compared := g.connect(t)
				if got := len(transactions(t, g.cfg.Stream, 0)); got != want || !compared {
					t.Errorf("%s: %d transactions stored, compared %t; want %d", c.name, got, compared, want)
				}
			}
			g.db.Exec(t, "INSERT INTO u VALUES (-2)")
			g.connect(t)
			publish(w, "t")
			if !g.connect(t) {
				t.Error("a table left the publication: not compared")
			}
			g.db.Exec(t, "INSERT INTO w VALUES (1)")
			g.connect(t)
			publish(nil, "t")
			g.cfg.Publications = g.cfg.Publications[:1]
			if g.connect(t) {
				t.Error("compared with what another publication brought")
			}
			if got := len(transactions(t, g.cfg.Stream, 0)); got != want+2 {
				t.Errorf("%d transactions stored, want %d", got, want+2)
			}
		})
	}
}
