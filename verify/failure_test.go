package verify

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/transform"
)

const failureTables = `
CREATE TABLE large (id int PRIMARY KEY, v text);
CREATE TABLE small (id int PRIMARY KEY);
INSERT INTO large SELECT i, repeat('x', 50) FROM generate_series(1, 20000) i;
INSERT INTO small VALUES (1);`

// terminate ends the verifier's sessions in a database.
func terminate(t *testing.T, db *pgtest.Database) {
	t.Helper()
	db.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ficus/verify' AND datname = current_database()")
}

// Whatever breaks, and whenever, the answer is an error.
func TestLostConnectionIsNoProof(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		when func(done, total int64) bool
	}{
		{"in a chunk", func(done, _ int64) bool { return done > 3000 }},
		{"before the rows", func(done, total int64) bool { return done == total }},
	} {
		for _, sd := range sides() {
			t.Run(fmt.Sprintf("%s, %s", tt.name, sd), func(t *testing.T) {
				t.Parallel()
				src, dst := pair(t, failureTables)
				dst.Exec(t, "DELETE FROM large WHERE id = 20000")
				cfg := config(t, src, dst)
				cfg.Workers, cfg.ChunkRows = 1, 1000
				var once sync.Once
				cfg.Progress = func(done, total int64) {
					if tt.when(done, total) {
						once.Do(func() { terminate(t, []*pgtest.Database{src, dst}[sd]) })
					}
				}
				r, err := Run(t.Context(), cfg)
				if err == nil || r != nil || !strings.Contains(err.Error(), sd.String()+": ") {
					t.Errorf("got %+v, error %v", r, err)
				}
			})
		}
	}
}

// TRUNCATE shows through a snapshot: without a check, both sides would be equally empty.
func TestTableRewrittenMeanwhile(t *testing.T) {
	t.Parallel()
	for _, sql := range []string{"TRUNCATE small", "ALTER TABLE small RENAME id TO x", "ALTER TABLE small ALTER id TYPE int8", "DROP TABLE small; CREATE TABLE small (id int PRIMARY KEY)"} {
		src, dst := pair(t, failureTables)
		cfg := config(t, src, dst)
		cfg.Workers, cfg.ChunkRows = 1, 1000
		var once sync.Once
		cfg.Progress = func(int64, int64) {
			once.Do(func() {
				src.Exec(t, sql)
				dst.Exec(t, sql)
			})
		}
		if _, err := Run(t.Context(), cfg); !errors.Is(err, errShape) && pg.Code(err) == "" {
			t.Errorf("%s: got %v, want an error", sql, err)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'x')")
	cfg := config(t, src, dst)
	role := "r_" + src.Name
	dst.Exec(t, "CREATE ROLE "+role+" LOGIN; GRANT SELECT ON a TO "+role)
	t.Cleanup(func() { dst.Exec(t, "DROP OWNED BY "+role+"; DROP ROLE "+role) })
	asRole := func() pg.DSN {
		dsn, err := pg.Parse(strings.Replace(dst.URL, "postgres@", role+"@", 1))
		if err != nil {
			t.Fatal(err)
		}
		if dsn.User() != role {
			t.Fatalf("user is %s", dsn.User())
		}
		return dsn
	}

	steps := []struct{ sql, wantErr, wantHint string }{
		{"ALTER TABLE a ENABLE ROW LEVEL SECURITY", "target: ", "BYPASSRLS"},
		{"ALTER TABLE a DISABLE ROW LEVEL SECURITY; REVOKE SELECT ON a FROM " + role, "permission denied", "needs SELECT"},
		{"GRANT SELECT ON a TO " + role + "; ALTER TABLE a DROP COLUMN v", "table public.a: target: read column types", ""},
		{"DROP TABLE a", "table public.a: target: read column types", "copy the schema first"},
	}
	cfg.Target = asRole()
	if r := run(t, cfg); r.Differences != 0 {
		t.Fatalf("%d differences", r.Differences)
	}
	for _, s := range steps {
		dst.Exec(t, s.sql)
		_, err := Run(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), s.wantErr) || !strings.Contains(hint.Of(err), s.wantHint) {
			t.Errorf("%s:\nerror %v\nhint  %s\nwant  %q, %q", s.sql, err, hint.Of(err), s.wantErr, s.wantHint)
		}
	}
}

// A row that the last step cannot account for is an error, too.
func TestContradictionIsNoProof(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, "CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1), (2)")
	s, err := Open(t.Context(), config(t, src, dst))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := drill{s: s, t: s.tables[0], conns: s.pair(0)}
	var r TableReport
	if err := d.run(t.Context(), &total{rows: 2}, &total{rows: 1}, &r); err == nil || !strings.Contains(err.Error(), "checksums differ") {
		t.Errorf("got %v", err)
	}
	if _, err := d.buckets(t.Context(), 3, [2]*total{{rows: 2}, {rows: 2}}); err == nil || !strings.Contains(err.Error(), "do not add up") {
		t.Errorf("got %v", err)
	}
}

// A stream that breaks in the middle looks like one that ended, if nobody asks.
func TestBrokenStreamIsNotItsEnd(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, "CREATE TABLE a (k text NOT NULL); INSERT INTO a SELECT repeat('x', 1000) || i FROM generate_series(1, 30000) i")
	cfg := config(t, src, dst)
	cfg.Mappings[0].Key = []transform.KeyColumn{{Source: "k", Target: "k"}}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := drill{s: s, t: s.tables[0], conns: s.pair(0)}
	out, done := make(chan entry), make(chan error, 1)
	go func() {
		done <- d.stream(t.Context(), target, 0, nil, out)
		close(out)
	}()
	<-out
	terminate(t, dst) // more is left than the sockets hold
	n := 1
	for range out {
		n++
	}
	if err := <-done; err == nil || n == 30000 {
		t.Errorf("%d rows, error %v", n, err)
	}
}
