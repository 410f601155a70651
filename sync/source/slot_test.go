package source_test

import (
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/source"
)

func TestSlot(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
	slot := "slot_of_" + db.Name
	conn, err := db.DSN.ConnectReplication(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	snap, err := source.CreateSlot(t.Context(), conn, slot, false)
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "INSERT INTO t VALUES (2)")

	reader := db.Conn(t)
	tx, err := reader.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := tx.Exec(t.Context(), "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SET TRANSACTION SNAPSHOT '"+snap.Name+"'"); err != nil {
		t.Fatal(err)
	}
	if err := tx.QueryRow(t.Context(), "SELECT count(*) FROM t").Scan(&n); err != nil || n != 1 {
		t.Errorf("the exported snapshot sees %d rows, %v; want the one before the slot", n, err)
	}

	state, err := source.SlotState(t.Context(), db.Conn(t), slot)
	if err != nil || !state.Exists || state.Active || state.ConfirmedFlush != snap.LSN || state.Restart == 0 || state.WALStatus != "reserved" {
		t.Errorf("state %+v, %v; want an inactive slot at %s", state, err, snap.LSN)
	}
	if _, err := source.CreateSlot(t.Context(), conn, slot, false); hint.Of(err) == "" {
		t.Errorf("a second slot of the same name: %v without a hint", err)
	}
	if err := source.DropSlot(t.Context(), pgtest.DB(t).Conn(t), slot); err != nil {
		t.Errorf("drop from another database: %v", err)
	}
	if state, err := source.SlotState(t.Context(), db.Conn(t), slot); err != nil || !state.Exists {
		t.Errorf("dropped from another database: %+v, %v", state, err)
	}
	for range 2 {
		if err := source.DropSlot(t.Context(), db.Conn(t), slot); err != nil {
			t.Errorf("drop: %v", err)
		}
	}
	state, err = source.SlotState(t.Context(), db.Conn(t), slot)
	if err != nil || state != (source.State{}) {
		t.Errorf("state after drop %+v, %v", state, err)
	}

	if _, err := source.CreateSlot(t.Context(), conn, slot, true); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the temporary slot to go with its session", func() bool {
		return db.Int(t, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", slot) == 0
	})
}

func TestCreateSlotWithoutLogicalWAL(t *testing.T) {
	t.Parallel()
	c := pgtest.NewCluster(t, pgtest.Setting("wal_level", "replica"), pgtest.Setting("max_replication_slots", "1"))
	conn, err := c.DB(t).DSN.ConnectReplication(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	_, err = source.CreateSlot(t.Context(), conn, "s", false)
	if !strings.Contains(hint.Of(err), "wal_level") {
		t.Errorf("got %v with hint %q", err, hint.Of(err))
	}
}

// published lists what a publication holds and publishes.
func published(t *testing.T, db *pgtest.Database, name string) []string {
	t.Helper()
	return db.Strings(t, `
		SELECT p.pubinsert::int::text || p.pubupdate::int || p.pubdelete::int || p.pubtruncate::int || p.pubviaroot::int,
		       coalesce((SELECT string_agg(prrelid::regclass::text, ' ' ORDER BY prrelid::regclass::text)
		                 FROM pg_publication_rel WHERE prpubid = p.oid), '')
		FROM pg_publication p WHERE pubname = $1`, name)
}

func TestPublication(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, `
		CREATE TABLE public.a (id int PRIMARY KEY);
		CREATE TABLE public.heir () INHERITS (public.a);
		CREATE TABLE public."No Key" (v int);
		CREATE TABLE public.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
		CREATE TABLE public.part1 PARTITION OF public.parts FOR VALUES FROM (0) TO (10)`)
	table := func(name string) schema.Name { return schema.Name{Schema: "public", Name: name} }
	ensure := func(opts source.PublicationOptions, names ...string) {
		t.Helper()
		var tables []schema.Name
		for _, n := range names {
			tables = append(tables, table(n))
		}
		if err := source.EnsurePublication(t.Context(), db.Conn(t), "Pub", tables, opts); err != nil {
			t.Fatal(err)
		}
	}
	keyless := source.PublicationOptions{InsertOnly: []schema.Name{table("No Key")}}

	ensure(keyless, "a", "No Key", "parts")
	equal(t, "full", published(t, db, "Pub"), []string{"11111|a parts"})
	equal(t, "inserts", published(t, db, "Pub_ins"), []string{`10011|"No Key"`})
	db.Exec(t, `INSERT INTO "No Key" VALUES (1); UPDATE "No Key" SET v = 2; DELETE FROM "No Key"`) // or the application fails

	db.Exec(t, `CREATE SCHEMA ficus; CREATE TABLE ficus.signal (nonce text PRIMARY KEY);
		CREATE TABLE ficus.ownership (epoch bigint PRIMARY KEY); CREATE TABLE ficus.progress (lsn pg_lsn)`)
	for range 2 {
		ensure(source.PublicationOptions{}, "a")
		equal(t, "with our own tables", published(t, db, "Pub"), []string{"11111|a ficus.ownership ficus.signal"})
		equal(t, "inserts, none any more", published(t, db, "Pub_ins"), []string(nil))
	}
	db.Exec(t, "DROP SCHEMA ficus CASCADE")
	ensure(source.PublicationOptions{})
	equal(t, "empty", published(t, db, "Pub"), []string{"11111|"})

	err := source.EnsurePublication(t.Context(), db.Conn(t), "Pub", []schema.Name{table("nowhere")}, keyless)
	if hint.Of(err) == "" || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a table that does not exist: %v with hint %q", err, hint.Of(err))
	}
	ensure(keyless, "a", "No Key")
	for range 2 {
		if err := source.DropPublication(t.Context(), db.Conn(t), "Pub"); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "publications left", db.Strings(t, "SELECT pubname FROM pg_publication"), []string(nil))
}
