package manifest

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
)

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.CheckLeaks()) }

const link = "ficus_test_forward"

// orders is a table with a name that has to be quoted, twice.
func orders() schema.Name { return schema.Name{Schema: "Sales, old", Name: `or"ders`} }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func snapshot(t *testing.T, text string) change.Snapshot {
	t.Helper()
	s, err := change.ParseSnapshot(text)
	must(t, err)
	return s
}

// session returns a database with the manifest, and a session in it.
func session(t *testing.T) (*pgtest.Database, *pgx.Conn) {
	t.Helper()
	db := pgtest.DB(t)
	conn := db.Conn(t)
	must(t, Install(t.Context(), conn))
	must(t, Install(t.Context(), conn)) // what is there stays
	return db, conn
}

// known reads one table; nil when the manifest does not know it.
func known(t *testing.T, db DB, name schema.Name) *Table {
	t.Helper()
	tables, err := Read(t.Context(), db, link)
	must(t, err)
	return tables[name]
}

// begun begins table orders with two parts.
func begun(t *testing.T, db DB) *Table {
	t.Helper()
	table := &Table{Source: orders(), Base: snapshot(t, "10:20:12,14"), Until: 0x100, Shape: "abc", Relations: []string{"a 1/2", "b 3/4"}, Parts: 2}
	must(t, Begin(t.Context(), db, link, table))
	return table
}

var same = cmp.Comparer(func(a, b change.Snapshot) bool { return a.String() == b.String() })

// TestNotInstalled: a database without a manifest knows nothing, and a transaction that asks goes on.
// It fails when Read meets the missing table instead of asking for it: that ends the transaction.
func TestNotInstalled(t *testing.T) {
	t.Parallel()
	conn := pgtest.DB(t).Conn(t)
	must(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		tables, err := Read(t.Context(), tx, link)
		if err != nil || len(tables) != 0 {
			t.Errorf("read %v, %v", tables, err)
		}
		_, err = tx.Exec(t.Context(), `SELECT 1`)
		return err
	}))
	must(t, Forget(t.Context(), conn, link))
}

// TestCopy follows a table through a copy: what is read is what was written, at every step.
func TestCopy(t *testing.T) {
	t.Parallel()
	_, conn := session(t)
	ctx := t.Context()
	other := schema.Name{Schema: "public", Name: "other"}
	must(t, Require(ctx, conn, link, other))
	must(t, Begin(ctx, conn, "another link", &Table{Source: orders(), Base: snapshot(t, "1:1:"), Until: 1, Parts: 1}))
	must(t, Finish(ctx, conn, "another link", orders(), Part{Relation: `"a"`, To: Open, Rows: 99, Bytes: 99}))
	want := begun(t, conn)
	check := func(what string, complete bool) {
		t.Helper()
		got := known(t, conn, orders())
		if diff := cmp.Diff(want, got, same); diff != "" || got.Complete() != complete {
			t.Fatalf("%s: complete %t (-want +got):\n%s", what, got.Complete(), diff)
		}
	}
	check("begun", false)

	second, first := Part{Relation: `"a"`, From: 5, To: Open, Rows: 7, Bytes: 70}, Part{Relation: `"a"`, From: 0, To: 5, Rows: 5, Bytes: 50}
	must(t, Finish(ctx, conn, link, orders(), second))
	want.Done = []Part{second}
	check("one of two parts", false)
	want.Base, want.Until, want.Mended = snapshot(t, "30:30:"), 0x200, -3
	must(t, Rebase(ctx, conn, link, want, want.Base, want.Until, want.Mended))
	check("on another base", false)
	want.Parts = 3
	must(t, Recut(ctx, conn, link, want, 3))
	check("cut otherwise", false)
	last := Part{Relation: `"b"`, From: 0, To: 0}
	must(t, Finish(ctx, conn, link, orders(), first))
	must(t, Finish(ctx, conn, link, orders(), last))
	want.Done = []Part{first, second, last}
	check("all parts", true)
	if rows, bytes := known(t, conn, orders()).Copied(); rows != 5+7-3 || bytes != 120 {
		t.Errorf("copied %d rows, %d bytes", rows, bytes)
	}

	want = begun(t, conn)
	if want.Run != 2 {
		t.Errorf("the second copy is run %d", want.Run)
	}
	check("begun again", false) // without parts and mended rows
	if required := known(t, conn, other); required.Complete() || !required.Base.IsZero() {
		t.Errorf("a table that has to be copied: %+v", required)
	}
	must(t, Finish(ctx, conn, link, other, Part{Relation: "x", To: Open}))
	if known(t, conn, other).Complete() {
		t.Error("a table without a base is complete")
	}

	must(t, Forget(ctx, conn, link))
	must(t, Forget(ctx, conn, link))
	if left := known(t, conn, orders()); left != nil {
		t.Errorf("left: %+v", left)
	}
	if there, err := Read(ctx, conn, "another link"); err != nil || len(there) != 1 || len(there[orders()].Done) != 1 {
		t.Errorf("the other link's: %v, %v", there, err)
	}
}

// TestOnePartOnce: the same part cannot be finished twice.
func TestOnePartOnce(t *testing.T) {
	t.Parallel()
	_, conn := session(t)
	begun(t, conn)
	must(t, Finish(t.Context(), conn, link, orders(), Part{Relation: `"a"`, To: 5}))
	if err := Finish(t.Context(), conn, link, orders(), Part{Relation: `"a"`, To: Open}); err == nil {
		t.Error("the part was recorded again")
	}
}

// TestTaken: after a claim nothing of an earlier run counts any more. It fails for each of the three
// when its statement does not look at the run.
func TestTaken(t *testing.T) {
	t.Parallel()
	_, conn := session(t)
	table := begun(t, conn)
	must(t, Enter(t.Context(), conn, link, orders(), table.Run))
	must(t, Claim(t.Context(), conn, link))
	for what, err := range map[string]error{
		"enter":  Enter(t.Context(), conn, link, orders(), table.Run),
		"rebase": Rebase(t.Context(), conn, link, table, table.Base, table.Until, 0),
		"recut":  Recut(t.Context(), conn, link, table, 9),
	} {
		if !errors.Is(err, ErrTaken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	now := known(t, conn, orders())
	if now.Run != table.Run+1 || now.Parts != table.Parts {
		t.Errorf("after the claim: %+v", now)
	}
	must(t, Enter(t.Context(), conn, link, orders(), now.Run))
}

// TestClaimWaits: who claims a table waits for parts that are about to be finished, and then knows
// of them; parts do not wait for one another. It fails when Enter takes no lock, or one that
// excludes other parts.
func TestClaimWaits(t *testing.T) {
	t.Parallel()
	db, conn := session(t)
	ctx := t.Context()
	table := begun(t, conn)
	var parts [2]pgx.Tx
	for i := range parts {
		tx, err := db.Conn(t).Begin(ctx)
		must(t, err)
		must(t, Enter(ctx, tx, link, orders(), table.Run))
		must(t, Finish(ctx, tx, link, orders(), Part{Relation: `"a"`, From: int64(i), To: int64(i) + 1}))
		parts[i] = tx
	}
	claimer := db.Conn(t)
	pid := claimer.PgConn().PID()
	claimed := make(chan error, 1)
	go func() { claimed <- Claim(context.WithoutCancel(ctx), claimer, link) }()
	waits := func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'`, int64(pid)) == 1
	}
	pgtest.Eventually(t, "the claim to wait", waits)
	must(t, parts[0].Commit(ctx))
	must(t, parts[1].Rollback(ctx))
	must(t, <-claimed)
	if now := known(t, conn, orders()); now.Run != table.Run+1 || len(now.Done) != 1 {
		t.Errorf("after the claim: %+v", now)
	}
}

// TestRename: tables that swapped their names keep what was copied of them, however often it is asked for.
// It fails without the record of what was carried out, and when names are given one after the other.
func TestRename(t *testing.T) {
	t.Parallel()
	_, conn := session(t)
	other := schema.Name{Schema: "public", Name: "other"}
	table := begun(t, conn)
	must(t, Finish(t.Context(), conn, link, orders(), Part{Relation: "r", To: Open, Rows: 7}))
	must(t, Require(t.Context(), conn, link, other))
	for range 3 {
		must(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			return Rename(t.Context(), tx, link, "once", map[schema.Name]schema.Name{orders(): other, other: orders()})
		}))
	}
	if got := known(t, conn, other); got == nil || got.Shape != table.Shape || len(got.Done) != 1 {
		t.Errorf("under its new name: %+v", got)
	}
	if got := known(t, conn, orders()); got == nil || got.Parts != 1 || len(got.Done) != 0 {
		t.Errorf("the other one: %+v", got)
	}
}
