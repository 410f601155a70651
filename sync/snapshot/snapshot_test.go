package snapshot_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/snapshot"
)

// bigTable has 30000 rows on some 500 pages.
const bigTable = `CREATE TABLE big (id int PRIMARY KEY, n int, pad text);
	INSERT INTO big SELECT i, 0, repeat('x', 80) FROM generate_series(1, 30000) i;
	CREATE TABLE other (id int PRIMARY KEY, n int); INSERT INTO other SELECT i, 0 FROM generate_series(1, 1000) i;`

const bigTarget = `CREATE TABLE big (id int PRIMARY KEY, n int, pad text); CREATE TABLE other (id int PRIMARY KEY, n int)`

func TestManyChunksUnderWrites(t *testing.T) {
	t.Parallel()
	m := newMove(t, bigTable, bigTarget, nil)
	m.cfg.Workers, m.cfg.ChunkBytes = 4, 64<<10

	ctx, stop := context.WithCancel(t.Context())
	var rounds atomic.Int64
	wrote := make(chan error, 1)
	conn := m.src.Conn(t)
	go func() { // rows move to other pages, appear, and vanish
		defer close(wrote)
		for i := 0; ctx.Err() == nil; i++ {
			_, err := conn.Exec(context.WithoutCancel(ctx), `WITH u AS (UPDATE big SET n = n + 1 WHERE id % 50 = $1 % 50 RETURNING 1),
				d AS (DELETE FROM big WHERE id = $1 % 30000)
				INSERT INTO big SELECT 1000000 + $1 * 100 + i, -1, 'new' FROM generate_series(1, 50) i`, i)
			if err != nil {
				wrote <- err
				return
			}
			rounds.Add(1)
		}
	}()
	pgtest.Eventually(t, "writers write", func() bool { return rounds.Load() > 3 })
	before := rounds.Load()
	res := m.run(t)
	during := rounds.Load() - before
	stop()
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if during == 0 {
		t.Error("nothing was written during the copy")
	}
	m.same(t, "SELECT * FROM big")
	m.same(t, "SELECT * FROM other")
	if res.Tables != 2 || res.Rows != 31000 || res.Bytes < 31000*10 {
		t.Errorf("result %+v, want 2 tables and 31000 rows", res)
	}
}

// TestChangedSinceInspection copies a table that is larger, and one that is smaller, than when it was inspected.
func TestChangedSinceInspection(t *testing.T) {
	t.Parallel()
	m := newMove(t, bigTable, bigTarget, nil)
	if _, err := m.frozen.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	m.src.Exec(t, "INSERT INTO big SELECT i, 1, repeat('y', 80) FROM generate_series(30001, 60000) i; TRUNCATE other")
	m.cfg.Snapshot, m.frozen = export(t, m.src)
	m.cfg.ChunkBytes = 1 << 20
	m.run(t)
	m.same(t, "SELECT * FROM big")
	m.same(t, "SELECT * FROM other")
}

func TestRepeatAfterInterruption(t *testing.T) {
	t.Parallel()
	m := newMove(t, bigTable, bigTarget+`; INSERT INTO big VALUES (1, 2, 'left over'), (-1, -1, 'left over')`, nil)
	m.cfg.Workers, m.cfg.ChunkBytes = 2, 16<<10
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	m.cfg.Progress = func(p snapshot.Table) {
		if p.Rows > 0 {
			cancel(interrupted)
		}
	}
	// The report comes while chunks are left; on a machine that copies faster, Run ends well.
	if _, err := snapshot.Run(ctx, m.cfg); err != nil && !errors.Is(err, interrupted) {
		t.Fatalf("got %v, want the cause of the cancellation", err)
	}
	m.cfg.Progress = nil
	m.run(t)
	m.run(t)
	m.same(t, "SELECT * FROM big")
	m.same(t, "SELECT * FROM other")
}

func TestCancelStopsPromptly(t *testing.T) {
	t.Parallel()
	for _, blocked := range []string{"target", "source"} {
		t.Run(blocked, func(t *testing.T) {
			t.Parallel()
			m := newMove(t, bigTable, bigTarget, nil)
			m.cfg.Workers = 1
			release := blockCopy(t, m, blocked)
			ctx, cancel := context.WithCancelCause(t.Context())
			interrupted := errors.New("interrupted")
			done := make(chan error, 1)
			go func() {
				_, err := snapshot.Run(ctx, m.cfg)
				done <- err
			}()
			pgtest.Eventually(t, "the copy waits", func() bool { return waiting(t, m.src) || waiting(t, m.dst) })
			start := time.Now()
			cancel(interrupted)
			select {
			case err := <-done:
				if !errors.Is(err, interrupted) {
					t.Errorf("got %v, want the cause", err)
				}
			case <-time.After(pgtest.Patience):
				t.Fatal("still running long after the cancellation")
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("took %v to stop", took)
			}
			release()
			for _, db := range []*pgtest.Database{m.src, m.dst} {
				pgtest.Eventually(t, "sessions end", func() bool {
					return db.Int(t, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ficus/copy'") == 0
				})
			}
		})
	}
}

// blockCopy makes the copy of big stand still on one side.
func blockCopy(t *testing.T, m *move, side string) (release func()) {
	t.Helper()
	db, lock := m.src, "LOCK TABLE big IN ACCESS EXCLUSIVE MODE"
	if side == "target" {
		// The copy may empty the tables, but its first row waits.
		db, lock = m.dst, "SELECT pg_advisory_xact_lock(1)"
		m.dst.Exec(t, `CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_catalog.pg_advisory_xact_lock(1); RETURN NEW; END$$;
			CREATE TRIGGER wait BEFORE INSERT ON big FOR EACH ROW EXECUTE FUNCTION wait(); ALTER TABLE big ENABLE ALWAYS TRIGGER wait`)
	}
	conn := db.Conn(t)
	if _, err := conn.Exec(t.Context(), "BEGIN; "+lock); err != nil {
		t.Fatal(err)
	}
	return func() { _ = conn.Close(t.Context()) }
}

func waiting(t *testing.T, db *pgtest.Database) bool {
	t.Helper()
	return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
		AND application_name = 'ficus/copy' AND wait_event_type = 'Lock'`) > 0
}

func TestProgress(t *testing.T) {
	t.Parallel()
	m := newMove(t, bigTable+"CREATE TABLE empty (id int); ANALYZE", bigTarget+"; CREATE TABLE empty (id int)", nil)
	m.cfg.ChunkBytes = 256 << 10
	last := map[string]snapshot.Table{}
	m.cfg.Progress = func(p snapshot.Table) {
		before := last[p.Name.Name]
		if before.Done || p.Rows < before.Rows || p.Bytes < before.Bytes {
			t.Errorf("%+v after %+v", p, before)
		}
		last[p.Name.Name] = p
	}
	m.run(t)
	for name, rows := range map[string]int64{"big": 30000, "other": 1000, "empty": 0} {
		if p := last[name]; !p.Done || p.Rows != rows || p.TotalRows > rows || p.Format != snapshot.Binary {
			t.Errorf("%s: last progress %+v, want %d rows, done", name, p, rows)
		}
	}
}

// TestTellsWhatIsDone: whoever is told of a table finds its rows, and hears of each table once and of
// each worker once. It notices a table that is told of before its last chunk is committed.
func TestTellsWhatIsDone(t *testing.T) {
	t.Parallel()
	m := newMove(t, bigTable, bigTarget, nil)
	m.cfg.Workers, m.cfg.ChunkBytes = 3, 64<<10
	var mu sync.Mutex
	told, idle := map[string]int64{}, 0
	conn := m.dst.Conn(t)
	m.cfg.Copied = func(ctx context.Context, target schema.Name) {
		mu.Lock()
		defer mu.Unlock()
		var rows int64
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM "+target.String()).Scan(&rows); err != nil {
			t.Error(err)
		}
		told[target.Name] += rows
	}
	m.cfg.Idle = func(context.Context) {
		mu.Lock()
		defer mu.Unlock()
		idle++
	}
	m.run(t)
	if diff := cmp.Diff(map[string]int64{"big": 30000, "other": 1000}, told); diff != "" || idle != 3 {
		t.Errorf("rows of the tables told of (-want +got):\n%s; %d workers told", diff, idle)
	}
}

func TestLargeValues(t *testing.T) {
	t.Parallel()
	const ddl = `CREATE TABLE large (id int PRIMARY KEY, t text, b bytea, tag %s); ALTER TABLE large ALTER t SET STORAGE EXTERNAL`
	for format, tag := range map[string]string{snapshot.Binary: "text", snapshot.Text: "varchar(10)"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			m := newMove(t, strings.ReplaceAll(ddl, "%s", "text")+`; INSERT INTO large
				SELECT i, repeat('0123456789abcdef' || i, 1000000), decode(repeat('00ff5c0a', 1000000), 'hex'), 'x' FROM generate_series(1, 3) i`,
				strings.ReplaceAll(ddl, "%s", tag), nil)
			var got string
			m.cfg.Progress = func(p snapshot.Table) { got = p.Format }
			m.run(t)
			if got != format {
				t.Errorf("format %s, want %s", got, format)
			}
			m.same(t, "SELECT id, length(t), md5(t), length(b), md5(b), tag FROM large")
		})
	}
}

func TestFrozenWhereOneChunkFills(t *testing.T) {
	t.Parallel()
	m := newMove(t, bigTable, bigTarget+"; INSERT INTO big VALUES (-1); INSERT INTO other VALUES (-1)", nil)
	if m.dst.Int(t, "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_visibility'") == 0 {
		t.Log("no pg_visibility here to see it with")
		return
	}
	m.dst.Exec(t, "CREATE EXTENSION pg_visibility")
	m.run(t)
	if n := m.dst.Int(t, "SELECT all_frozen FROM pg_visibility_map_summary('big')"); n == 0 {
		t.Error("no page of big is frozen")
	}
	m.same(t, "SELECT * FROM big")
	m.same(t, "SELECT * FROM other") // too small for it
}
