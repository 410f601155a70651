package fence

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

// A moment is a place in a writing transaction at which the gate closes.
type moment string

const (
	beforeStatement moment = "after BEGIN and a snapshot, before the statement"
	beforeGate      moment = "in the statement, which has its lock, before it reads the gate"
	afterGate       moment = "in the statement, after it has read the gate"
	uncommitted     moment = "after the statement, before COMMIT"
	preparedTx      moment = "after PREPARE TRANSACTION"
)

// TestEveryInterleaving closes the gate at every moment of a writing transaction, for every way to write.
// Triggers before and behind the fence's let a statement stand still there. Once WaitWriters has
// returned, nothing that the writer still does changes a row; and it waits for no longer than the writer's lock lives.
//
// It fails when locks of TRUNCATE are not looked for, when prepared transactions are left out, when the
// trigger reads the ownership row instead of the gate, and when WaitWriters does not wait.
func TestEveryInterleaving(t *testing.T) { //nolint:tparallel // its parts share one gate
	t.Parallel()
	statements := map[string]string{
		"insert":    `INSERT INTO public.t VALUES (7, 7)`,
		"upsert":    `INSERT INTO public.t VALUES (1, 7) ON CONFLICT (id) DO UPDATE SET v = 7`,
		"update":    `UPDATE public.t SET v = v + 1`,
		"delete":    `DELETE FROM public.t WHERE id = 1`,
		"with":      `WITH w AS (DELETE FROM public.t RETURNING 1) SELECT count(*) FROM w`,
		"truncate":  `TRUNCATE public.t`,
		"copy":      `COPY public.t FROM STDIN`,
		"function":  `DO 'BEGIN UPDATE public.t SET v = v + 1; END'`,
		"partition": `INSERT INTO public.p1a VALUES (3, 3)`,
	}
	d, db, _ := installed(t)
	db.Exec(t, `CREATE FUNCTION public.stop() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF current_setting('test.stop', true) = TG_ARGV[0] THEN PERFORM pg_advisory_xact_lock_shared(42); END IF;
			RETURN NULL;
		END $$;
		CREATE TRIGGER a_stop BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON public.t FOR EACH STATEMENT EXECUTE FUNCTION public.stop('before');
		CREATE TRIGGER z_stop BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON public.t FOR EACH STATEMENT EXECUTE FUNCTION public.stop('after');
		CREATE TRIGGER a_stop BEFORE INSERT ON public.p1a FOR EACH STATEMENT EXECUTE FUNCTION public.stop('before');
		CREATE TRIGGER z_stop BEFORE INSERT ON public.p1a FOR EACH STATEMENT EXECUTE FUNCTION public.stop('after')`)
	for name, sql := range statements {
		for _, at := range []moment{beforeStatement, beforeGate, afterGate, uncommitted, preparedTx} {
			t.Run(name+", "+string(at), func(t *testing.T) {
				interleave(t, d, db, sql, at)
			})
		}
	}
}

// rows are all rows of the fenced tables, as text.
const rows = `SELECT coalesce(string_agg(r, ',' ORDER BY r), '') FROM (SELECT t::text FROM public.t UNION ALL SELECT 'p' || p::text FROM public."P q" p) x(r)`

func interleave(t *testing.T, d *Database, db *pgtest.Database, sql string, at moment) {
	t.Helper()
	ctx := t.Context()
	db.Exec(t, `TRUNCATE public.t, public."P q"; INSERT INTO public.t VALUES (1, 1), (2, 2)`)
	holder := db.Conn(t) // lets the statement go on
	must(t, exec(ctx, holder, `SELECT pg_advisory_lock(42)`))
	w := db.Conn(t)
	stop := map[moment]string{beforeGate: "before", afterGate: "after"}[at]
	isolation := "READ COMMITTED"
	if at == beforeStatement { // the oldest snapshot that there can be
		isolation = "REPEATABLE READ"
	}
	must(t, exec(ctx, w, `SET test.stop = '`+stop+`'`, `BEGIN ISOLATION LEVEL `+isolation, `SELECT 1 FROM pg_class LIMIT 1`))

	gid := "g" + fmt.Sprint(w.PgConn().PID())
	wrote := make(chan error, 1)
	write := func() { wrote <- writeRows(ctx, w, sql) }
	switch at {
	case beforeStatement:
	case beforeGate, afterGate:
		go write()
		pgtest.Eventually(t, "the statement to stand still", func() bool {
			return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'advisory'`, w.PgConn().PID()) == 1
		})
	case uncommitted, preparedTx:
		write()
		must(t, <-wrote)
		if at == preparedTx {
			must(t, exec(ctx, w, `PREPARE TRANSACTION '`+gid+`'`))
		}
	}

	must(t, d.CloseGate(ctx))
	defer func() { must(t, d.OpenGate(t.Context())) }()
	returned, fenced := make(chan struct{}), make(chan string, 1)
	go func() {
		if err := d.WaitWriters(ctx, nil); err != nil {
			t.Error(err)
		}
		close(returned)
		fenced <- db.Strings(t, rows)[0] //nolint:contextcheck // the helper has the test's; a writer's lock may hold it up
	}()
	if at == beforeStatement {
		<-returned
		go write()
	} else {
		select {
		case <-returned:
			t.Errorf("the fence did not wait for a writer that holds its lock")
		case <-time.After(30 * time.Millisecond): // a slow machine may miss it here; the rows tell then
		}
	}
	must(t, exec(ctx, holder, `SELECT pg_advisory_unlock(42)`))
	passes := finishWriter(ctx, t, w, at, gid, wrote)
	<-returned
	if before, after := <-fenced, db.Strings(t, rows)[0]; before != after {
		t.Errorf("a write slipped through the fence: %s, then %s", before, after)
	}
	again := at == afterGate && strings.Contains(sql, "CONFLICT") // it reads the gate for the insert, then for the update
	if want := !again && (at == afterGate || at == uncommitted || at == preparedTx); passes != want {
		t.Errorf("the writer committed: %t, want %t", passes, want)
	}
}

// finishWriter lets the writer come to its end, and reports whether it committed.
func finishWriter(ctx context.Context, t *testing.T, w *pgx.Conn, at moment, gid string, wrote chan error) bool {
	t.Helper()
	switch at {
	case preparedTx:
		must(t, exec(ctx, w, `COMMIT PREPARED '`+gid+`'`))
		return true
	case uncommitted:
		must(t, exec(ctx, w, `COMMIT`))
		return true
	case beforeStatement, beforeGate, afterGate:
	}
	if err := <-wrote; err != nil {
		if pg.Code(err) != pg.CodeReadOnlyTransaction {
			t.Errorf("refused with %v", err)
		}
		must(t, exec(ctx, w, `ROLLBACK`))
		return false
	}
	must(t, exec(ctx, w, `COMMIT`))
	return true
}

func writeRows(ctx context.Context, w *pgx.Conn, sql string) error {
	if strings.HasPrefix(sql, "COPY") {
		_, err := w.PgConn().CopyFrom(ctx, strings.NewReader("8\t8\n"), sql)
		return err
	}
	_, err := w.Exec(ctx, sql)
	return err
}

// TestBlockersEnd: with promote.blockers the sessions that a closing fence waits for are cancelled or ended, and
// nobody else is: not readers, nor writers of other tables, nor prepared transactions. They are named, without
// values of rows.
//
// It fails when cancelling is tried on idle sessions, when sessions are ended that only read, and when
// literals show.
func TestBlockersEnd(t *testing.T) {
	t.Parallel()
	_, db, _ := installed(t)
	ctx := t.Context()
	for answer, want := range map[BlockerAnswer]map[string]migrate.BlockerEnd{
		BlockersWait:      {"idle": "", "active": ""},
		BlockersCancel:    {"idle": "", "active": migrate.BlockerCancelled},
		BlockersTerminate: {"idle": migrate.BlockerTerminated, "active": migrate.BlockerTerminated},
	} {
		d, err := New(ctx, Config{DSN: db.DSN, Self: migrate.Source, Blockers: answer, BlockersAfter: 20 * time.Millisecond})
		must(t, err)
		idle, active, reader, elsewhere := db.Conn(t), db.Conn(t), db.Conn(t), db.Conn(t)
		must(t, exec(ctx, idle, `BEGIN`, `INSERT INTO public.t (v) VALUES (4711)`))
		must(t, exec(ctx, active, `BEGIN`, `INSERT INTO public.t (v) VALUES (4711)`))
		slept := make(chan error, 1)
		go func() { slept <- exec(ctx, active, `SELECT pg_sleep(600), '4711'`) }()
		pgtest.Eventually(t, "the session to be active", func() bool {
			return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'`, active.PgConn().PID()) == 1
		})
		must(t, exec(ctx, reader, `BEGIN`, `SELECT * FROM public.t`))
		must(t, exec(ctx, elsewhere, `BEGIN`, `INSERT INTO public.other VALUES (1)`))

		must(t, d.CloseGate(ctx))
		short, cancel := context.WithTimeout(ctx, 400*time.Millisecond)
		got := map[uint32]migrate.BlockerEnd{}
		err = d.WaitWriters(short, func(bs []migrate.Blocker) {
			for _, b := range bs {
				got[uint32(b.PID)] = b.Ended
				if strings.Contains(b.Query, "4711") || b.Query == "" {
					t.Errorf("%s: %s shows its values", answer, b)
				}
			}
		})
		cancel()
		if ended := answer == BlockersTerminate; (err == nil) != ended {
			t.Errorf("%s: WaitWriters: %v", answer, err)
		} else if err != nil && strings.Contains(err.Error(), "4711") {
			t.Errorf("%s: %v shows values", answer, err)
		}
		for name, conn := range map[string]*pgx.Conn{"idle": idle, "active": active} {
			if end := got[conn.PgConn().PID()]; end != want[name] {
				t.Errorf("%s: the %s session: %q, want %q", answer, name, end, want[name])
			}
		}
		for name, conn := range map[string]*pgx.Conn{"reader": reader, "writer of another table": elsewhere} {
			if err := exec(ctx, conn, `ROLLBACK`); err != nil {
				t.Errorf("%s: the %s: %v", answer, name, err)
			}
		}
		_ = idle.Close(ctx)
		_ = active.PgConn().CancelRequest(ctx) // where it still sleeps
		if err := <-slept; err == nil {
			t.Errorf("%s: the session slept on", answer)
		}
		_ = active.Close(ctx)
		must(t, d.OpenGate(ctx))
		d.Close()
	}
}
