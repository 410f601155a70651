package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
)

// Whatever a stranger does to the target is told, with table, operation and key; what the link does
// is not, in whatever order it writes. Catches: taking a transaction for the link's because the one
// before it was, telling of one that was rolled back, forgetting TRUNCATE or rows that moved.
func TestForeign(t *testing.T) {
	t.Parallel()
	dst := pgtest.DB(t)
	dst.Exec(t, `CREATE SCHEMA ficus; CREATE TABLE ficus.progress (link text PRIMARY KEY, lsn pg_lsn); INSERT INTO ficus.progress VALUES ('l', '0/1');
CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE "B b" (x int, y text, PRIMARY KEY (y, x)); CREATE TABLE keyless (v int); CREATE TABLE other (id int PRIMARY KEY);
CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT`)
	name := func(s string) schema.Name { return schema.Name{Schema: "public", Name: s} }
	var mu sync.Mutex // guards found and uncovered
	var found []string
	var uncovered []schema.Name
	got := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string{}, found...)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Foreign(ctx, ForeignConfig{
			Target: dst.DSN, Name: "shop", Tables: []schema.Name{name("a"), name("B b"), name("keyless"), name("p")}, Every: 20 * time.Millisecond,
			Found: func(f ForeignWrite) {
				mu.Lock()
				defer mu.Unlock()
				found = append(found, fmt.Sprintf("%s %s %s +%d", f.Op, f.Table.Name, f.Key, f.More))
				if f.At.IsZero() || f.LSN == 0 || f.XID == 0 || time.Since(f.At) > time.Minute {
					t.Errorf("%+v", f)
				}
			},
			Uncovered: func(tables []schema.Name, _ string) {
				mu.Lock()
				defer mu.Unlock()
				uncovered = tables
			},
		})
	}()
	pgtest.Eventually(t, "a slot that has found its beginning", func() bool {
		return dst.Int(t, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'ficus_watch_%' AND database = current_database() AND confirmed_flush_lsn IS NOT NULL") == 1
	})
	for _, sql := range []string{
		"BEGIN; UPDATE ficus.progress SET lsn = '0/2'; INSERT INTO a VALUES (1, 'x'), (2, 'y'), (3, 'z'); COMMIT",
		"BEGIN; DELETE FROM a WHERE id = 3; UPDATE ficus.progress SET lsn = '0/3'; COMMIT",
		"INSERT INTO other VALUES (1)",
		"BEGIN; INSERT INTO a VALUES (9, 'no'); ROLLBACK",
		"INSERT INTO keyless VALUES (1); UPDATE keyless SET v = 2", // not watched, and not harmed
		"INSERT INTO a VALUES (4, 'stranger')",
		"SET session_replication_role = replica; UPDATE a SET v = 'w' WHERE id IN (1, 2)",
		"UPDATE a SET id = 20 WHERE id = 2",
		`INSERT INTO "B b" VALUES (7, 'k')`,
		"BEGIN; UPDATE ficus.progress SET lsn = '0/4'; COMMIT; DELETE FROM a WHERE id = 1",
		"INSERT INTO p VALUES (5)",
		"TRUNCATE a",
	} {
		conn := dst.Conn(t)
		if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"insert a id=4 +0", "update a id=1 +1", "update a id=2 +0", "insert B b x=7, y=k +0", "delete a id=1 +0", "insert p1 id=5 +0", "truncate a  +0",
	}
	pgtest.Eventually(t, "all foreign writes", func() bool { return len(got()) >= len(want) })
	stopped := errors.New("enough")
	cancel(stopped)
	if err := <-done; !errors.Is(err, stopped) && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if diff := cmp.Diff(want, got()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]schema.Name{name("keyless")}, uncovered); diff != "" {
		t.Errorf("uncovered (-want +got):\n%s", diff)
	}
	pgtest.Eventually(t, "no slot left behind", func() bool {
		return dst.Int(t, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'ficus_watch_%' AND database = current_database()") == 0
	})
}

// Who wrote is told while the session is there.
func TestForeignRole(t *testing.T) {
	t.Parallel()
	dst := pgtest.DB(t)
	role := "intruder_" + dst.Name
	dst.Exec(t, "CREATE SCHEMA ficus; CREATE TABLE ficus.progress (link text PRIMARY KEY); CREATE TABLE a (id int PRIMARY KEY); CREATE ROLE "+role+" SUPERUSER LOGIN")
	t.Cleanup(func() { dst.Exec(t, "DROP ROLE "+role) })
	told := make(chan ForeignWrite, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Foreign(ctx, ForeignConfig{
			Target: dst.DSN, Name: "shop", Tables: []schema.Name{{Schema: "public", Name: "a"}}, Every: 20 * time.Millisecond,
			Found: func(f ForeignWrite) { told <- f },
		})
	}()
	pgtest.Eventually(t, "a slot that has found its beginning", func() bool {
		return dst.Int(t, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'ficus_watch_%' AND database = current_database() AND confirmed_flush_lsn IS NOT NULL") == 1
	})
	dsn, err := pg.Parse(strings.Replace(dst.URL, "postgres@", role+"@", 1))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := dsn.Connect(t.Context(), "test", pg.Setting("application_name", "psql"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if _, err := conn.Exec(t.Context(), "INSERT INTO public.a VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	f := <-told
	if !slices.Contains(f.Roles, role) {
		t.Errorf("%s: not by %s, whose session is still there", f, role)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("it ended without a reason")
	}
}
