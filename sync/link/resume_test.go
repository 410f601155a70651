package link

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/apply"
)

// copied is what the tests of this file copy, in chunks of one page.
const copied = tables + `
CREATE TABLE public.wide (id text COLLATE "C" PRIMARY KEY, u int UNIQUE, big text, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
ALTER TABLE public.wide ALTER big SET STORAGE EXTERNAL;
CREATE TABLE public.swap (id int PRIMARY KEY DEFERRABLE, v text);`

const copiedRows = `
INSERT INTO public.account SELECT i, 100, repeat('x', i % 50) FROM generate_series(1, 9000) i;
INSERT INTO public.entry SELECT i % 100, i % 3 FROM generate_series(1, 6000) i;
INSERT INTO public.event SELECT i, i % 20 FROM generate_series(1, 9000) i;
INSERT INTO public.wide SELECT 'w\' || i || E'\t', i, CASE WHEN i % 20 = 0 THEN repeat(md5(i::text), 200) END, i FROM generate_series(1, 5000) i;
INSERT INTO public.swap SELECT i, repeat('s', 40) FROM generate_series(1, 4000) i;`

var onePage = LoadConfig{Workers: 2, ChunkBytes: 8 << 10}

// churn changes rows of every table in every way until the returned function is called.
func (f *faulty) churn(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var writers sync.WaitGroup
	for session := range 2 {
		conn := f.from.Conn(t)
		writers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(session), 3))
			tick := time.NewTicker(3 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				end := []string{"COMMIT", "COMMIT", "COMMIT", "ROLLBACK"}[r.IntN(4)]
				own := func(most int) int { return 2*(1+r.IntN(most/2-1)) + session } // rows of this session
				id := (i+1)*2 + session
				_, err := conn.Exec(context.WithoutCancel(ctx), fmt.Sprintf(`BEGIN;
					UPDATE public.account SET balance = balance + 1, note = repeat('n', %[1]d %% 300) WHERE id = %[1]d;
					UPDATE public.account SET id = -id WHERE abs(id) = %[2]d;
					DELETE FROM public.account WHERE abs(id) = %[3]d; INSERT INTO public.account VALUES (%[3]d, 5, 'back');
					SAVEPOINT a;
					UPDATE public.wide SET n = n + 1 WHERE u = %[4]d;
					SAVEPOINT b;
					INSERT INTO public.wide (id, u, n) VALUES ('new' || %[5]d, 100000 + %[5]d, 1);
					ROLLBACK TO b;
					RELEASE a;
					SAVEPOINT c;
					INSERT INTO public.wide (id, u, big, n) VALUES (E'n\n\\' || %[5]d, 200000 + %[5]d, repeat('b', %[5]d %% 5000), 1);
					DELETE FROM public.wide WHERE u = %[6]d;
					RELEASE c;
					UPDATE public.event SET at = (at + 7) %% 20 WHERE id = %[7]d;
					INSERT INTO public.entry VALUES (%[5]d, 7); DELETE FROM public.entry WHERE ctid = (SELECT ctid FROM public.entry WHERE account = %[8]d AND amount = %[9]d LIMIT 1);
					UPDATE public.wide SET id = id || '.' WHERE u = %[10]d;
					SET CONSTRAINTS ALL DEFERRED;
					UPDATE public.swap SET id = %[11]d + %[12]d - id WHERE id IN (%[11]d, %[12]d);
					%[13]s`, own(8000), own(8000), own(8000), own(4900), id, own(4900), own(8000), own(90), session,
					own(4900), own(3800), own(3800), end))
				if err != nil {
					t.Errorf("churn: %v", err)
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		writers.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// chunks lists the finished parts, with the transaction that wrote each.
func (f *faulty) chunks(t *testing.T) map[string]string {
	t.Helper()
	parts := map[string]string{}
	for _, line := range f.to.Strings(t, `SELECT table_name, relation, from_page, xmin FROM ficus.manifest_part`) {
		at := strings.LastIndex(line, "|")
		parts[line[:at]] = line[at+1:]
	}
	return parts
}

// incomplete returns those of the tables of which not every part is finished.
func (f *faulty) incomplete(t *testing.T, tables ...string) []string {
	t.Helper()
	return f.to.Strings(t, `SELECT n FROM unnest($1::text[]) n WHERE NOT EXISTS (
		SELECT FROM ficus.manifest m WHERE m.table_name = '"public"."' || n || '"' AND parts <=
			(SELECT count(*) FROM ficus.manifest_part p WHERE (p.link, p.table_name) = (m.link, m.table_name)))`, tables)
}

// awaitChunks waits until so many parts are finished that were not before.
func (f *faulty) awaitChunks(t *testing.T, before map[string]string, n int) {
	t.Helper()
	pgtest.Eventually(t, fmt.Sprint(n, " chunks"), func() bool {
		if f.to.Int(t, `SELECT count(to_regclass('ficus.manifest_part'))`) == 0 {
			return false
		}
		more := 0
		for part, xmin := range f.chunks(t) {
			if before[part] != xmin {
				more++
			}
		}
		return more >= n
	})
}

// kept checks that none of the parts that were finished before was copied again, but for those of
// tables that have to be.
func (f *faulty) kept(t *testing.T, before map[string]string, again ...string) {
	t.Helper()
	now := f.chunks(t)
	kept := 0
	for part, xmin := range before {
		switch {
		case !strings.Contains(strings.Join(again, " "), strings.SplitN(part, `"`, 5)[3]):
			kept++
			if now[part] != xmin {
				t.Errorf("part %s was copied again", part)
			}
		case now[part] == xmin:
			t.Errorf("part %s was not copied again", part)
		}
	}
	if kept == 0 && len(again) == 0 {
		t.Error("there was nothing to keep")
	}
}

// TestLoadKilled kills a process that copies, again and again, while rows change in every way, and
// lets another go on. What was finished is not read again.
//
// It fails when a rebase does not delete the keys of changed rows (rows twice, or rows that are gone),
// does not read recent rows again (rows missing), or when the applier applies what a base sees, or
// compares positions instead.
func TestLoadKilled(t *testing.T) {
	t.Parallel()
	for i := range rounds(1) {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			testLoadKilled(t)
		})
	}
}

func testLoadKilled(t *testing.T) {
	t.Helper()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), copied, copiedRows)
	text, err := json.Marshal(child{Name: f.name(), From: f.from.URL, To: f.to.URL, Dir: f.dir, Load: true})
	must(t, err)
	stop := f.churn(t)
	var again []string // without a key that is checked at once, they are copied again unless they are complete
	before := map[string]string{}
	for range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+string(text))
		cmd.Stderr = os.Stderr
		must(t, cmd.Start())
		f.awaitChunks(t, before, 40)
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed, or had just finished
		if len(before) > 0 {
			f.kept(t, before, again...)
		}
		before, again = f.chunks(t), f.incomplete(t, "entry", "swap")
	}
	tables := []string{"account", "entry", "event", "wide", "swap"}
	finished := len(tables) - len(f.incomplete(t, tables...))
	f.open(t)
	result, err := f.link.Load(t.Context(), onePage)
	must(t, err)
	f.kept(t, before, again...)
	if want := f.to.Int(t, `SELECT (SELECT count(*) FROM public.account) + (SELECT count(*) FROM public.entry) + (SELECT count(*) FROM public.event)
		+ (SELECT count(*) FROM public.wide) + (SELECT count(*) FROM public.swap)`); result.Rows != want || result.Tables != 6 {
		t.Errorf("loaded %+v, the target has %d rows", result, want)
	}
	if n := f.to.Int(t, `SELECT count(DISTINCT base) FROM ficus.manifest`); n < 2 && finished > 0 {
		t.Errorf("%d bases: none of %d tables kept that of an earlier run", n, finished)
	}
	stopLink := run(t, f.link)
	stop()
	f.equal(t)
	stopLink()
}

// interrupt begins or continues a copy and stops it when so many chunks are finished; the next open
// link is that of another process. It returns what was logged.
func (f *faulty) interrupt(t *testing.T, chunks int) string {
	t.Helper()
	f.open(t)
	var log bytes.Buffer
	f.link.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := f.link.Load(ctx, onePage)
		done <- err
	}()
	f.awaitChunks(t, nil, chunks)
	interrupted := errors.New("interrupted")
	cancel(interrupted)
	if err := <-done; !errors.Is(err, interrupted) {
		t.Fatalf("the copy ended with %v", err)
	}
	f.close(t)
	return log.String()
}

// resume finishes a copy that was interrupted and returns what was logged.
func (f *faulty) resume(t *testing.T) string {
	t.Helper()
	f.open(t)
	var log bytes.Buffer
	f.link.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	_, err := f.link.Load(t.Context(), onePage)
	must(t, err)
	return log.String()
}

// TestLoadResumesAfterDDL: what happened to a half copied table between two runs decides whether its
// finished parts can stay. The largest is copied first.
//
// "vacuumed" and "shrunk" fail when a rebase does not delete the keys of changed rows, or does not
// read recent rows again; "rewritten" when the relation's file is not compared.
func TestLoadResumesAfterDDL(t *testing.T) {
	t.Parallel()
	const noOther = `TRUNCATE public.account, public.wide, public.swap, public.entry`
	for _, c := range []struct {
		name, first string
		sql         string // between the runs
		why         string // the table is copied again, "" when it is not
	}{
		{"nothing", ``, ``, ""},
		{"rewritten", ``, `DELETE FROM public.wide WHERE u < 3000; VACUUM FULL public.wide`, "rewritten"},
		{"truncated", ``, `TRUNCATE public.wide; INSERT INTO public.wide (id, n) VALUES ('only', 1)`, "truncated"},
		{"vacuumed", ``, `DELETE FROM public.wide WHERE u % 3 = 0; VACUUM public.wide; INSERT INTO public.wide (id, u, n) SELECT 'x' || i, -i, i FROM generate_series(1, 900) i`, ""},
		{"shrunk", ``, `DELETE FROM public.wide WHERE u > 100; VACUUM public.wide; UPDATE public.wide SET id = id || u, n = 0 WHERE u % 2 = 0`, ""},
		{"added column", ``, `ALTER TABLE public.wide ADD more int DEFAULT 7; UPDATE public.wide SET more = u`, "columns"},
		{"partitioned", noOther, ``, ""},
		{"partitions move", noOther, `UPDATE public.event SET at = (at + 7) % 20; DELETE FROM public.event WHERE id % 5 = 0`, ""},
		{"partition replaced", noOther, `DROP TABLE public.event_a; CREATE TABLE public.event_c PARTITION OF public.event FOR VALUES FROM (0) TO (10)`, "partitioned otherwise"},
		{
			"keyless", noOther + `; TRUNCATE public.event; INSERT INTO public.entry SELECT i, i FROM generate_series(1, 9000) i`,
			`DELETE FROM public.entry WHERE account % 3 = 0`, "no key",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), copied, copiedRows)
			f.each(t, c.first)
			f.interrupt(t, 20)
			before := f.chunks(t)
			f.each(t, c.sql)
			for sql := range strings.SplitSeq(c.sql, "; ") {
				if strings.Contains(sql, "event_") || strings.Contains(sql, "ALTER") {
					f.to.Exec(t, sql)
				}
			}
			f.inspect(t.Context(), t)
			log := f.resume(t)
			if c.why == "" {
				f.kept(t, before)
			} else {
				f.kept(t, before, "wide", "event", "entry")
			}
			if !strings.Contains(log, c.why) || (c.why == "") != strings.Contains(log, "copy resumed") {
				t.Errorf("log (want %q):\n%s", c.why, log)
			}
			run(t, f.link)
			f.equal(t)
		})
	}
}

// each runs statements at the source one by one: VACUUM wants to be alone.
func (f *faulty) each(t *testing.T, statements string) {
	t.Helper()
	for sql := range strings.SplitSeq(statements, "; ") {
		if sql != "" {
			f.from.Exec(t, sql)
		}
	}
}

// TestLoadStartsOverWhenNothingFits: a slot that is gone cannot be resumed from.
func TestLoadStartsOverWhenNothingFits(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), copied, copiedRows)
	f.interrupt(t, 100)
	pgtest.Eventually(t, "the slot to be free", func() bool {
		return f.from.Int(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active`, f.name()) == 1
	})
	f.from.Exec(t, `SELECT pg_drop_replication_slot($1)`, f.name())
	f.from.Exec(t, `DELETE FROM public.account WHERE id < 50`)
	if log := f.resume(t); !strings.Contains(log, "slot does not exist") || strings.Contains(log, "copy resumed") {
		t.Errorf("log:\n%s", log)
	}
	run(t, f.link)
	f.equal(t)
}

// TestResync copies tables again while others are ahead, and is interrupted on the way.
func TestResync(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), copied, copiedRows)
	f.load(t)
	stop := f.churn(t)
	stopLink := run(t, f.link)
	pgtest.Eventually(t, "the link to apply", func() bool { return f.link.Applied() > 0 })
	stopLink()

	wide, event := schema.Name{Schema: "public", Name: "wide"}, schema.Name{Schema: "public", Name: "event"}
	f.to.Exec(t, `DELETE FROM public.wide WHERE u % 2 = 0; UPDATE public.event SET at = 3 WHERE id < 100; UPDATE public.wide SET n = -n`)
	f.to.Exec(t, `CREATE TABLE public.child (w text REFERENCES public.wide); `)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := f.link.Resync(ctx, []schema.Name{wide, event}, onePage)
		done <- err
	}()
	pgtest.Eventually(t, "some chunks", func() bool {
		return f.to.Int(t, `SELECT count(*) FROM ficus.manifest m JOIN ficus.manifest_part p USING (link, table_name) WHERE m.run > 1`) > 20
	})
	cancel()
	if err := <-done; err == nil {
		t.Fatal("the resync was done before it was interrupted")
	}
	f.close(t)
	f.open(t)
	if err := f.stopped(t); !errors.Is(err, apply.ErrUnfinished) {
		t.Fatalf("run after an interrupted resync: %v", err)
	}
	before := f.chunks(t)
	_, err := f.link.Resync(t.Context(), []schema.Name{wide, event}, onePage)
	must(t, err)
	f.kept(t, before)
	run(t, f.link)
	stop()
	f.equal(t)
	whole := map[string]bool{}
	must(t, f.link.Stream().Touches().Scan(0, func(table string, key []byte) error {
		whole[table] = whole[table] || len(key) == 0
		return nil
	}))
	want := map[string]bool{event.String(): true, wide.String(): true, `"public"."account"`: false}
	for table, touched := range want {
		if whole[table] != touched {
			t.Errorf("%s is touched as a whole: %t", table, whole[table])
		}
	}
}

// TestResyncSeesWhatWasApplied: a commit that waits for a synchronous standby is in the WAL, is streamed
// and applied, and nobody at the origin sees it. A copy made then must not lack it, for it will not come
// again. Transactions that are idle or prepared are nothing to wait for.
//
// It fails when a base is taken without waiting for commits.
func TestResyncSeesWhatWasApplied(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, smallCluster(t).DB(t), pgtest.DB(t), tables, rows)
	f.load(t)
	stopLink := run(t, f.link)
	f.settle(t)
	idle := f.from.Conn(t)
	_, err := idle.Exec(t.Context(), `BEGIN; INSERT INTO public.account VALUES (888888, 1, 'idle')`)
	must(t, err)
	standby := func(name string) {
		f.from.Exec(t, `ALTER SYSTEM SET synchronous_standby_names = '`+name+`'`)
		f.from.Exec(t, `SELECT pg_reload_conf()`)
		pgtest.Eventually(t, "the setting", func() bool { return f.from.Strings(t, `SHOW synchronous_standby_names`)[0] == name })
	}
	standby("nobody")
	conn, committed := f.from.Conn(t), make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.WithoutCancel(t.Context()), `INSERT INTO public.account VALUES (777777, 1, 'applied, not visible')`)
		committed <- err
	}()
	pgtest.Eventually(t, "the row to be applied", func() bool { return f.to.Int(t, `SELECT count(*) FROM public.account WHERE id = 777777`) == 1 })
	if n := f.from.Int(t, `SELECT count(*) FROM public.account WHERE id = 777777`); n != 0 {
		t.Fatal("the row is visible at the origin already")
	}
	stopLink()
	resynced := make(chan error, 1)
	go func() {
		_, err := f.link.Resync(context.WithoutCancel(t.Context()), []schema.Name{{Schema: "public", Name: "account"}}, onePage)
		resynced <- err
	}()
	pgtest.Eventually(t, "the resync to wait", func() bool {
		return len(resynced) > 0 || f.from.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/wait'`) == 1
	})
	standby("")
	must(t, <-committed)
	must(t, <-resynced) // although one transaction is idle
	_, err = idle.Exec(t.Context(), `COMMIT`)
	must(t, err)
	run(t, f.link)
	f.equal(t)
}

// TestRemapRefuses: what a running link cannot take is refused before anything is changed, and it goes on.
func TestRemapRefuses(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
	f.load(t)
	stop := run(t, f.link)
	f.settle(t)
	stop()
	published := `SELECT count(*) FROM pg_publication_tables WHERE pubname LIKE $1 || '%'`
	before := f.from.Int(t, published, f.name())
	ddl := `CREATE TABLE public.keyless (v int)`
	f.from.Exec(t, ddl+`; ALTER TABLE public.keyless REPLICA IDENTITY NOTHING`)
	f.to.Exec(t, ddl)
	mappings := f.mappings
	f.inspect(t.Context(), t)
	keyless := schema.Name{Schema: "public", Name: "keyless"}

	// Inserts alone go through a publication of their own, which the slot would look for in the past.
	err := f.link.Remap(t.Context(), f.mappings, f.full, []schema.Name{keyless})
	if err == nil || !strings.Contains(err.Error(), "table public.keyless cannot join it") || !strings.Contains(hint.Of(err), "primary key or REPLICA IDENTITY FULL") {
		t.Errorf("remap: %v, hint %q", err, hint.Of(err))
	}
	if _, err := f.link.Resync(t.Context(), []schema.Name{keyless}, LoadConfig{}); err == nil || !strings.Contains(err.Error(), "table public.keyless is not one that it moves") {
		t.Errorf("resync: %v", err)
	}
	if n := f.from.Int(t, published, f.name()); n != before || f.to.Int(t, `SELECT count(*) FROM ficus.manifest WHERE table_name LIKE '%keyless%'`) != 0 {
		t.Errorf("%d tables are published, %d were", n, before)
	}
	f.from.Exec(t, `INSERT INTO public.keyless VALUES (1); INSERT INTO public.entry VALUES (-1, 1)`)
	f.mappings = mappings
	stop = run(t, f.link)
	f.equal(t)
	stop()
}

// TestRemap adds a table that has rows, and that an open transaction is writing to, to a link.
func TestRemap(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
	f.load(t)
	stopLink := run(t, f.link)
	f.settle(t)
	stopLink()

	ddl := `CREATE TABLE public.late (id int PRIMARY KEY, v text)`
	f.from.Exec(t, ddl+`; INSERT INTO public.late SELECT i, 'x' FROM generate_series(1, 500) i`)
	f.to.Exec(t, ddl)
	elsewhere, open := pgtest.DB(t).Conn(t), f.from.Conn(t) // another database's transactions hold nobody up
	_, err := elsewhere.Exec(t.Context(), `CREATE TABLE t (n int); BEGIN; INSERT INTO t VALUES (1)`)
	must(t, err)
	_, err = open.Exec(t.Context(), `BEGIN; INSERT INTO public.late VALUES (1000, 'open')`)
	must(t, err)
	f.inspect(t.Context(), t)
	remapped := make(chan error, 1)
	go func() { remapped <- f.link.Remap(context.WithoutCancel(t.Context()), f.mappings, f.full, nil) }()
	pgtest.Eventually(t, "the publication to hold the table", func() bool {
		return f.from.Int(t, `SELECT count(*) FROM pg_publication_tables WHERE tablename = 'late' AND pubname = $1`, f.name()) == 1
	})
	select {
	case err := <-remapped:
		t.Fatalf("remap did not wait for a transaction from before: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	_, err = open.Exec(t.Context(), `COMMIT`)
	must(t, err)
	must(t, <-remapped)
	_, err = elsewhere.Exec(t.Context(), `COMMIT`)
	must(t, err)
	if err := f.stopped(t); !errors.Is(err, apply.ErrUnfinished) {
		t.Fatalf("run before the new table is copied: %v", err)
	}
	f.from.Exec(t, `UPDATE public.late SET v = 'y' WHERE id < 10`)
	_, err = f.link.Resync(t.Context(), []schema.Name{{Schema: "public", Name: "late"}}, LoadConfig{})
	must(t, err)
	f.from.Exec(t, `UPDATE public.late SET v = 'z' WHERE id < 5`)
	run(t, f.link)
	f.equal(t)
}
