package fence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// moved are the tables of every test here.
const moved = `
CREATE TABLE public.t (id serial PRIMARY KEY, v int);
CREATE TABLE public."P q" (id int, v int) PARTITION BY RANGE (id);
CREATE TABLE public.p1 PARTITION OF public."P q" FOR VALUES FROM (0) TO (100) PARTITION BY LIST (v);
CREATE TABLE public.p1a PARTITION OF public.p1 DEFAULT;
CREATE TABLE public.other (id int);
CREATE ROLE %[1]s LOGIN;
GRANT ALL ON ALL TABLES IN SCHEMA public TO %[1]s;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO %[1]s;
`

func open(t *testing.T, db *pgtest.Database, self migrate.Side) *Database {
	t.Helper()
	d, err := New(t.Context(), Config{
		DSN: db.DSN, Self: self,
		Tables:    []schema.Name{{Schema: "public", Name: "t"}, {Schema: "public", Name: "P q"}},
		Sequences: []schema.Name{{Schema: "public", Name: "t_id_seq"}, {Schema: "public", Name: "absent"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// installed returns an armed database and a role without privileges of its own.
func installed(t *testing.T) (*Database, *pgtest.Database, string) {
	t.Helper()
	db := pgtest.DB(t)
	role := "app_" + db.DSN.Database()
	db.Exec(t, fmt.Sprintf(moved, schema.QuoteIdent(role)))
	t.Cleanup(func() {
		db.Exec(t, fmt.Sprintf(`DROP OWNED BY %[1]s; DROP ROLE %[1]s`, schema.QuoteIdent(role)))
	})
	d := open(t, db, migrate.Source)
	ctx := t.Context()
	if err := d.Install(ctx, "m", migrate.Source); err != nil {
		t.Fatal(err)
	}
	if err := d.Arm(ctx); err != nil {
		t.Fatal(err)
	}
	return d, db, role
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused runs sql and wants the fence's error.
func refused(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql)
	if pg.Code(err) != pg.CodeReadOnlyTransaction || !strings.Contains(err.Error(), `migration "m" has fenced`) {
		t.Errorf("%s: got %v, want the fence's refusal", sql, err)
	}
}

func TestGateBindsEveryWriter(t *testing.T) {
	t.Parallel()
	d, db, role := installed(t)
	ctx := t.Context()

	// An old session with an old snapshot, taken while the gate is open.
	old := db.Conn(t)
	for _, sql := range []string{`BEGIN ISOLATION LEVEL REPEATABLE READ`, `SELECT * FROM public.t`} {
		if _, err := old.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	app := db.Conn(t)
	if _, err := app.Exec(ctx, `SET ROLE `+schema.QuoteIdent(role)); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{`INSERT INTO public.t (v) VALUES (1)`, `INSERT INTO public."P q" VALUES (1, 1)`, `INSERT INTO public.p1a VALUES (2, 2)`} {
		if _, err := app.Exec(ctx, sql); err != nil {
			t.Fatalf("gate open: %s: %v", sql, err)
		}
	}

	must(t, d.CloseGate(ctx))
	owner := db.Conn(t)
	for _, conn := range []*pgx.Conn{app, owner} {
		for _, sql := range []string{
			`INSERT INTO public.t (v) VALUES (1)`, `UPDATE public.t SET v = 2`, `DELETE FROM public.t WHERE false`,
			`INSERT INTO public."P q" VALUES (1, 1)`, `INSERT INTO public.p1a VALUES (2, 2)`, `UPDATE public.p1 SET v = 3`,
			`INSERT INTO public.t VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET v = 9`, `COPY public.t FROM PROGRAM 'true'`,
			`WITH w AS (DELETE FROM public.t RETURNING 1) SELECT * FROM w`,
		} {
			if conn == app && strings.Contains(sql, "PROGRAM") {
				continue
			}
			refused(t, conn, sql)
		}
	}
	refused(t, old, `INSERT INTO public.t (v) VALUES (7)`)
	if _, err := old.Exec(ctx, `ROLLBACK`); err != nil { // its lock would keep TRUNCATE waiting
		t.Fatal(err)
	}
	refused(t, owner, `TRUNCATE public.t`)

	// Reading and tables that do not move go on; an applier passes.
	for _, sql := range []string{`SELECT * FROM public.t`, `SELECT * FROM public.t FOR UPDATE`, `INSERT INTO public.other VALUES (1)`} {
		if _, err := owner.Exec(ctx, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if _, err := owner.Exec(ctx, `SET session_replication_role = replica`); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Exec(ctx, `UPDATE public.t SET v = 5`); err != nil {
		t.Errorf("applier: %v", err)
	}

	must(t, d.OpenGate(ctx))
	if _, err := app.Exec(ctx, `INSERT INTO public.t (v) VALUES (1)`); err != nil {
		t.Errorf("gate open again: %v", err)
	}
}

// TestWaitWriters: closing waits for those that passed the gate, prepared ones too, and names them.
func TestWaitWriters(t *testing.T) {
	t.Parallel()
	d, db, _ := installed(t)
	ctx := t.Context()
	writer := db.Conn(t)
	must(t, exec(ctx, writer, `BEGIN`, `INSERT INTO public.p1a VALUES (1, 1)`))
	prepared := db.Conn(t)
	gid := "g_" + db.DSN.Database()
	must(t, exec(ctx, prepared, `BEGIN`, `INSERT INTO public.t (v) VALUES (1)`, `PREPARE TRANSACTION '`+gid+`'`))
	reader := db.Conn(t)
	must(t, exec(ctx, reader, `BEGIN`, `SELECT * FROM public.t`))

	must(t, d.CloseGate(ctx))
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	err := d.WaitWriters(short, nil)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", writer.PgConn().PID())) ||
		!strings.Contains(err.Error(), gid) || strings.Contains(err.Error(), fmt.Sprintf("pid %d", reader.PgConn().PID())) {
		t.Errorf("got %v, want the writer and the prepared transaction named, the reader not", err)
	}
	if hint.Of(err) == "" {
		t.Error("no hint")
	}

	done := make(chan error, 1)
	blocked := make(chan []migrate.Blocker, 10)
	go func() {
		done <- d.WaitWriters(ctx, func(b []migrate.Blocker) {
			select {
			case blocked <- b:
			default:
			}
		})
	}()
	if got := <-blocked; len(got) != 2 {
		t.Errorf("blockers %+v, want two", got)
	}
	must(t, exec(ctx, writer, `COMMIT`))
	select {
	case err := <-done:
		t.Fatalf("returned %v while a prepared transaction holds its lock", err)
	default:
	}
	must(t, exec(ctx, prepared, `COMMIT PREPARED '`+gid+`'`))
	must(t, <-done)
}

// TestNothingSlipsThrough closes the gate again and again under writers: after WaitWriters no row
// may appear.
func TestNothingSlipsThrough(t *testing.T) {
	t.Parallel()
	d, db, _ := installed(t)
	ctx, stop := context.WithCancel(t.Context())
	writers := make(chan error, 4)
	for range cap(writers) {
		conn := db.Conn(t)
		go func() {
			for ctx.Err() == nil {
				_, err := conn.Exec(ctx, `INSERT INTO public.t (v) VALUES (1)`)
				if code := pg.Code(err); err != nil && ctx.Err() == nil && code != pg.CodeReadOnlyTransaction {
					writers <- err
					return
				}
			}
			writers <- nil
		}()
	}
	count := `SELECT count(*) FROM public.t`
	for range 40 {
		before := db.Int(t, count)
		pgtest.Eventually(t, "writers to write", func() bool { return db.Int(t, count) > before })
		must(t, d.CloseGate(t.Context()))
		must(t, d.WaitWriters(t.Context(), nil))
		fenced := db.Int(t, count)
		for range 20 {
			if now := db.Int(t, count); now != fenced {
				t.Fatalf("%d rows slipped through the fence", now-fenced)
			}
		}
		must(t, d.OpenGate(t.Context()))
	}
	stop()
	for range cap(writers) {
		must(t, <-writers)
	}
}

func TestOwnMovesOnlyUpwards(t *testing.T) {
	t.Parallel()
	d, _, _ := installed(t)
	ctx := t.Context()
	want := migrate.Ownership{Migration: "m", Epoch: 1, Owner: migrate.Source, GateOpen: true}
	got, err := d.Ownership(ctx)
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	must(t, d.Own(ctx, 2, migrate.Target))
	must(t, d.Own(ctx, 2, migrate.Target))
	if err := d.Own(ctx, 2, migrate.Source); !errors.Is(err, ErrStaleEpoch) || hint.Of(err) == "" {
		t.Errorf("same epoch for the other side: %v", err)
	}
	if err := d.Own(ctx, 1, migrate.Source); !errors.Is(err, ErrStaleEpoch) {
		t.Errorf("older epoch: %v", err)
	}

	must(t, d.Install(ctx, "m", migrate.Source)) // keeps what is there
	got, err = d.Ownership(ctx)
	must(t, err)
	if got.Epoch != 2 || got.Owner != migrate.Target {
		t.Errorf("installing again reset the row: %+v", got)
	}
	if err := d.Install(ctx, "n", migrate.Source); !errors.Is(err, migrate.ErrForeign) || hint.Of(err) == "" {
		t.Errorf("other migration: %v", err)
	}
}

func TestGateOpensForTheOwnerOnly(t *testing.T) {
	t.Parallel()
	d, _, _ := installed(t)
	ctx := t.Context()
	must(t, d.CloseGate(ctx))
	must(t, d.CloseGate(ctx))
	must(t, d.OpenGate(ctx))
	must(t, d.OpenGate(ctx))
	must(t, d.CloseGate(ctx))
	must(t, d.Own(ctx, 2, migrate.Target))
	if err := d.OpenGate(ctx); !errors.Is(err, ErrNotOwner) {
		t.Errorf("the target owns: %v", err)
	}
	if o, err := d.Ownership(ctx); err != nil || o.GateOpen {
		t.Errorf("gate %+v, %v", o, err)
	}
}

// TestLateOpenGate: a request to open the gate that reaches the server after the gate was closed
// once more does nothing.
func TestLateOpenGate(t *testing.T) {
	t.Parallel()
	d, db, _ := installed(t)
	ctx := t.Context()
	must(t, d.CloseGate(ctx))
	holder := db.Conn(t) // keeps the late request between its two statements
	must(t, exec(ctx, holder, `BEGIN`, `SELECT pg_advisory_xact_lock(hashtext('ficus.gate'))`))
	late := make(chan error, 1)
	go func() { late <- d.OpenGate(ctx) }()
	pgtest.Eventually(t, "the late request to wait", func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 1
	})
	must(t, exec(ctx, holder, `SELECT setval('ficus.gate', last_value + 2) FROM ficus.gate`, `COMMIT`)) // a CloseGate that overtook it
	if err := <-late; !errors.Is(err, ErrGateMoved) {
		t.Errorf("late request: %v", err)
	}
	if o, err := d.Ownership(ctx); err != nil || o.GateOpen {
		t.Errorf("gate %+v, %v", o, err)
	}
}

// TestOwnRace: of two attempts at one epoch for different owners exactly one wins.
func TestOwnRace(t *testing.T) {
	t.Parallel()
	d, _, _ := installed(t)
	for epoch := int64(2); epoch < 30; epoch++ {
		errs := make(chan error, 2)
		for _, side := range []migrate.Side{migrate.Source, migrate.Target} {
			go func() { errs <- d.Own(t.Context(), epoch, side) }()
		}
		a, b := <-errs, <-errs
		if (a == nil) == (b == nil) {
			t.Fatalf("epoch %d: got %v and %v, want one winner", epoch, a, b)
		}
	}
}

func TestSequences(t *testing.T) {
	t.Parallel()
	d, db, _ := installed(t)
	ctx := t.Context()
	name := `"public"."t_id_seq"`
	next := func() int64 {
		t.Helper()
		seqs, err := d.Sequences(ctx)
		must(t, err)
		if len(seqs) != 1 || seqs[0].Name != name {
			t.Fatalf("got %+v", seqs)
		}
		return seqs[0].Next
	}
	if got := next(); got != 1 {
		t.Errorf("untouched: next %d, want 1", got)
	}
	db.Exec(t, `SELECT nextval('public.t_id_seq') FROM generate_series(1, 41)`)
	if got := next(); got != 42 {
		t.Errorf("called 41 times: next %d, want 42", got)
	}
	must(t, d.SetSequences(ctx, []migrate.Sequence{{Name: name, Next: 100}, {Name: `"public"."gone"`, Next: 5}}, 1000))
	if got := next(); got != 1100 {
		t.Errorf("set: next %d, want 1100", got)
	}
	if got := db.Int(t, `SELECT nextval('public.t_id_seq')`); got != 1100 {
		t.Errorf("nextval %d, want 1100", got)
	}
	must(t, d.SetSequences(ctx, []migrate.Sequence{{Name: name, Next: 7}}, 0))
	if got := next(); got != 1101 {
		t.Errorf("went backward: next %d, want 1101", got)
	}
	must(t, d.SetSequences(ctx, []migrate.Sequence{{Name: name, Next: 1<<31 - 10}}, 1000))
	if got := next(); got != 1<<31-1 {
		t.Errorf("beyond the end: next %d, want %d", got, 1<<31-1)
	}
}

// TestSequenceOfAnotherName: a sequence is found by the column that it feeds.
func TestSequenceOfAnotherName(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, `CREATE SCHEMA "C r m"; CREATE TABLE "C r m"."Cust" ("I d" bigint GENERATED BY DEFAULT AS IDENTITY, other serial);
		CREATE SEQUENCE public.users_id_seq; CREATE SEQUENCE public.free_seq`)
	name := func(n string) schema.Name { return schema.Name{Schema: "public", Name: n} }
	table := schema.Name{Schema: "C r m", Name: "Cust"}
	d, err := New(t.Context(), Config{
		DSN: db.DSN, Self: migrate.Target,
		Sequences: []schema.Name{name("users_id_seq"), name("free_seq"), name("gone_seq")},
		Serials: map[schema.Name]Serial{
			name("users_id_seq"): {table, "I d"}, name("free_seq"): {table, "absent"}, name("gone_seq"): {name("absent"), "id"},
		},
	})
	must(t, err)
	t.Cleanup(d.Close)
	must(t, d.SetSequences(t.Context(), []migrate.Sequence{{Name: `"public"."users_id_seq"`, Next: 500}, {Name: `"public"."free_seq"`, Next: 7}}, 0))
	got, err := d.Sequences(t.Context())
	must(t, err)
	if want := []migrate.Sequence{{Name: `"public"."free_seq"`, Next: 7}, {Name: `"public"."users_id_seq"`, Next: 500}}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := db.Int(t, `INSERT INTO "C r m"."Cust" DEFAULT VALUES RETURNING "I d"`); n != 500 {
		t.Errorf("next row gets %d", n)
	}
	if n := db.Int(t, `SELECT nextval('public.users_id_seq')`); n != 1 {
		t.Errorf("the sequence that nobody uses was set to %d", n)
	}
}

func TestArmKeepsTheApplicationRunning(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	role := "app_" + db.DSN.Database()
	db.Exec(t, fmt.Sprintf(moved, schema.QuoteIdent(role)))
	t.Cleanup(func() {
		db.Exec(t, fmt.Sprintf(`DROP OWNED BY %[1]s; DROP ROLE %[1]s`, schema.QuoteIdent(role)))
	})
	d := open(t, db, migrate.Source)
	ctx := t.Context()
	must(t, d.Install(ctx, "m", migrate.Source))

	holder := db.Conn(t)
	must(t, exec(ctx, holder, `BEGIN`, `INSERT INTO public.t (v) VALUES (1)`))
	armed := make(chan error, 1)
	go func() { armed <- d.Arm(ctx) }()
	app := db.Conn(t)
	for range 20 { // never longer than the lock time-out behind Arm, however long the holder stays
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		if _, err := app.Exec(short, `INSERT INTO public.t (v) VALUES (2)`); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	must(t, exec(ctx, holder, `COMMIT`))
	must(t, <-armed)
	if got := db.Strings(t, `SELECT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE tgname = 'ficus_fence' ORDER BY 1`); !cmp.Equal(got, []string{"P q", "p1", "p1a", "t"}) {
		t.Errorf("armed %q", got)
	}
	must(t, d.Arm(ctx))
	must(t, d.Uninstall(ctx))
	must(t, d.Uninstall(ctx))
	if n := db.Int(t, `SELECT count(*) FROM pg_trigger WHERE tgname = 'ficus_fence'`) + db.Int(t, `SELECT count(*) FROM pg_namespace WHERE nspname = 'ficus'`); n != 0 {
		t.Errorf("%d things left behind", n)
	}
	if o, err := d.Ownership(ctx); err != nil || o != (migrate.Ownership{}) {
		t.Errorf("ownership after uninstall: %+v, %v", o, err)
	}
}

func exec(ctx context.Context, conn *pgx.Conn, sqls ...string) error {
	for _, sql := range sqls {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}
