package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// Rows are mended while a session writes to them and a mirror follows, again and again: the mirror
// must find every row as the stream has it afterwards (it fails otherwise), and in the end nothing
// differs. Catches: letting the follower go on before the rows are mended.
func TestMendFollowing(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, loadTables+"CREATE TABLE still (id int PRIMARY KEY, v text); INSERT INTO still SELECT i, 'v' FROM generate_series(1, 100) i")
	m, stop := loaded(t, src, dst, 1)
	defer stop()
	cfg := config(t, src, dst)
	cfg.Follower, cfg.Repairs = m, 1000
	cfg.Mark = "UPDATE public.marked SET n = n + 1"
	dst.Exec(t, "CREATE TABLE marked (n int); INSERT INTO marked VALUES (0)")
	mended := 0
	round := func() {
		s, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		// Rows of b are written to all the time. Under the follower's lock, so that it does not fail over them itself.
		m.mu.Lock()
		dst.Exec(t, `UPDATE b SET note = 'stranger'; UPDATE still SET v = 'bad' WHERE id < 4; DELETE FROM still WHERE id = 50; INSERT INTO still VALUES (200, 'x')`)
		m.mu.Unlock()
		r, err := s.Exact(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.MendFollowing(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got.Again.Differences != 0 || len(got.Repairs) < 5 || got.Again.Paused <= 0 || !got.Again.SameInstant {
			t.Errorf("%d mended, then %d differences, paused %s", len(got.Repairs), got.Again.Differences, got.Again.Paused)
		}
		mended += len(got.Repairs)
	}
	for range 2 {
		round()
		if r := run(t, cfg); r.Differences != 0 {
			t.Fatalf("%d differences are left", r.Differences)
		}
	}
	if n := dst.Int(t, "SELECT n FROM marked"); n != 2 {
		t.Errorf("%d transactions are marked, want 2", n)
	}
	t.Logf("%d rows mended", mended)
}

// What is no longer wrong is left alone, rows that come several times are mended as often as they have
// to be, and tables without a key are compared as a whole; a table that is too large for that is
// refused before anything was changed. Catches: mending a row of a double key twice.
func TestMendFollowingOddRows(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, `CREATE TABLE a (id int, v text); CREATE UNIQUE INDEX ON a (id); ALTER TABLE a ALTER id SET NOT NULL; ALTER TABLE a REPLICA IDENTITY USING INDEX a_id_idx;
INSERT INTO a SELECT i, 'v' FROM generate_series(1, 10) i; CREATE TABLE bag (v int); INSERT INTO bag VALUES (1), (1), (2)`)
	dst.Exec(t, `DROP INDEX a_id_idx; INSERT INTO a SELECT 5, 'v' FROM generate_series(1, 3); UPDATE a SET v = 'w' WHERE id = 6; DELETE FROM a WHERE id = 7;
DELETE FROM bag WHERE ctid = '(0,1)'; INSERT INTO bag VALUES (2), (2)`)
	cfg := config(t, src, dst)
	cfg.Follower = stopFunc(func(context.Context, change.LSN) (func(), error) { return func() {}, nil })
	cfg.Repairs = 100
	session := func() (*Session, *Report) {
		s, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Exact(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s, r
	}
	cfg.WholeRows = 1
	s, r := session()
	dst.Exec(t, "ANALYZE")
	src.Exec(t, "ANALYZE")
	if _, err := s.MendFollowing(t.Context(), r); !errors.Is(err, errTooLarge) || !strings.Contains(hint.Of(err), "resync") {
		t.Errorf("got %v, hint %q", err, hint.Of(err))
	}
	s.Close()
	if again := run(t, cfg); again.Differences != r.Differences {
		t.Errorf("%d differences, want the %d from before: nothing was to be changed", again.Differences, r.Differences)
	}

	cfg.WholeRows = 0
	s, r = session()
	defer s.Close()
	dst.Exec(t, "UPDATE a SET v = 'v' WHERE id = 6") // somebody was faster
	got, err := s.MendFollowing(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	var did []string
	for _, p := range got.Repairs {
		did = append(did, fmt.Sprint(p.Table.Name, " ", p.Kind, " ", p.Key))
	}
	want := "a missing id=7, a extra id=5 x3, bag missing x1, bag extra x2"
	if len(did) != 7 || got.Again.Differences != 0 || run(t, cfg).Differences != 0 {
		t.Errorf("mended %q, then %d differences; want %s", did, got.Again.Differences, want)
	}
}

// A source table that was truncated after the instant looks empty at it: what the target has is not
// taken away for that. Catches: mending without another look at the files.
func TestMendFollowingTruncated(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, 'v' FROM generate_series(1, 10) i")
	dst.Exec(t, "UPDATE a SET v = 'w' WHERE id = 6")
	cfg := config(t, src, dst)
	cfg.Repairs = 100
	truncate := false
	cfg.Follower = stopFunc(func(_ context.Context, lsn change.LSN) (func(), error) {
		if lsn != 0 && truncate {
			src.Exec(t, "TRUNCATE a") //nolint:contextcheck // a test's helper has its own
		}
		return func() {}, nil
	})
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Exact(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	truncate = true
	if _, err := s.MendFollowing(t.Context(), r); !errors.Is(err, errShape) {
		t.Errorf("got %v, want %v", err, errShape)
	}
	if n := dst.Int(t, "SELECT count(*) FROM a"); n != 10 {
		t.Errorf("%d rows on the target, want 10", n)
	}
}

// Where nothing holds the two sides at one instant, only rows are mended that stood still. Catches:
// repairs of what may be on its way.
func TestRepairOnlyOfWhatStoodStill(t *testing.T) {
	t.Parallel()
	cluster := pgtest.NewCluster(t, pgtest.Setting("autovacuum", "off"))
	src, dst := cluster.DB(t), cluster.DB(t)
	const tables = "CREATE TABLE a (id int PRIMARY KEY, v int); INSERT INTO a SELECT i, 0 FROM generate_series(1, 100) i; CREATE TABLE bag (v int); INSERT INTO bag VALUES (1)"
	src.Exec(t, tables)
	dst.Exec(t, tables)
	dst.Exec(t, "UPDATE a SET v = 1 WHERE id IN (1, 2); INSERT INTO bag VALUES (2)")
	cfg := config(t, src, dst)
	cfg.Repairs, cfg.MaxSamples = 10, 1
	writing, stop := context.WithCancel(t.Context())
	conn, done := src.Conn(t), make(chan error, 1)
	go func() {
		for writing.Err() == nil {
			if _, err := conn.Exec(context.WithoutCancel(writing), "UPDATE a SET v = v + 1 WHERE id = 2"); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	var r *Report
	pgtest.Eventually(t, "a comparison that was written to", func() bool {
		r = run(t, cfg)
		return !r.SameInstant && len(r.Repairs) < 3
	})
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(r.Repairs) != 1 || r.Repairs[0].Key != "id=1" || r.Verdict() != Different {
		t.Errorf("%+v, %s, want the repair of id=1 alone", r.Repairs, r.Verdict())
	}
}

// Where the server keeps commit timestamps, a sample says when the target's row was written, and over
// which replication origin, as that of the link is. Catches: asking a server that keeps none.
func TestWriter(t *testing.T) {
	t.Parallel()
	const table = "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, 'v' FROM generate_series(1, 5) i"
	const damage = `UPDATE a SET v = 'w' WHERE id = 1; SELECT pg_replication_origin_create('ficus_test'); SELECT pg_replication_origin_session_setup('ficus_test');
INSERT INTO a VALUES (9, ''); SELECT pg_replication_origin_session_reset()`
	for _, on := range []string{"on", "off"} {
		cluster := pgtest.NewCluster(t, pgtest.Setting("track_commit_timestamp", on))
		src, dst := cluster.DB(t), cluster.DB(t)
		src.Exec(t, table)
		dst.Exec(t, table)
		conn := dst.Conn(t)
		for sql := range strings.SplitSeq(damage, ";") {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		got := map[string]string{}
		for _, s := range run(t, config(t, src, dst)).table(t, "a").Samples {
			got[s.Key] = s.Writer
		}
		if on == "off" {
			if got["id=1"]+got["id=9"] != "" {
				t.Errorf("without timestamps: %q", got)
			}
			continue
		}
		for key, by := range map[string]string{"id=1": "by no replication", "id=9": "by replication origin ficus_test"} {
			when, rest, _ := strings.Cut(strings.TrimPrefix(got[key], "at "), ", ")
			at, err := time.Parse(time.RFC3339Nano, when)
			if err != nil || time.Since(at) > time.Minute || rest != by {
				t.Errorf("%s: %q, want a time of now, %s", key, got[key], by)
			}
		}
	}
}
