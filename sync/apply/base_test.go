package apply

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/manifest"
)

// writeManifest records a table as copied under a base, in so many parts of which one is finished.
func writeManifest(t *testing.T, target *pgtest.Database, name, snapshot string, until change.LSN, parts int) {
	t.Helper()
	conn := target.Conn(t)
	if err := manifest.Install(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	base, err := change.ParseSnapshot(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	table := &manifest.Table{Source: schema.Name{Schema: "public", Name: name}, Base: base, Until: until, Parts: parts}
	if err := errors.Join(
		manifest.Begin(t.Context(), conn, "test", table),
		manifest.Finish(t.Context(), conn, "test", table.Source, manifest.Part{Relation: table.Source.String(), To: manifest.Open}),
	); err != nil {
		t.Fatal(err)
	}
}

// xidOf runs SQL in a transaction and returns its id.
func (o *origin) xidOf(t *testing.T, sql string) uint64 {
	t.Helper()
	tx, err := o.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var xid string
	if _, err := tx.Exec(t.Context(), "SET LOCAL search_path = public; "+sql); err != nil {
		t.Fatal(err)
	}
	if err := tx.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text").Scan(&xid); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(xid, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestBaseDecidesByVisibility: of two transactions that commit before the snapshot's position, the
// first was not visible in it yet, as happens between a commit's WAL record and the moment when others
// see it. It is applied, and the second, which the copy holds, is not.
//
// It fails when positions are compared instead, and when the bases are not read.
func TestBaseDecidesByVisibility(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)"
	o := newOrigin(t, ddl, nil)
	target := newTarget(t, ddl)
	before := o.xidOf(t, "INSERT INTO t VALUES (1, 'seen by all')")
	late := o.xidOf(t, "INSERT INTO t VALUES (2, 'late'); INSERT INTO other VALUES (1)")
	seen := o.xidOf(t, "SAVEPOINT a; INSERT INTO t VALUES (3, 'seen'); RELEASE a; INSERT INTO other VALUES (2)")
	after := o.xidOf(t, "UPDATE t SET v = v || '!'")
	until := o.pull(t)
	o.xidOf(t, "INSERT INTO t VALUES (4, 'later')")
	end := o.pull(t)

	writeManifest(t, target, "t", fmt.Sprintf("%d:%d:%d", late, after, late), until, 1)
	target.Exec(t, "INSERT INTO t VALUES (1, 'seen by all'), (3, 'seen')") // what that snapshot saw
	if !slices.IsSorted([]uint64{before, late, seen, after}) {
		t.Fatalf("ids %d, %d, %d, %d", before, late, seen, after)
	}
	for _, rows := range []int{0, 1} { // also in parts, and again from the beginning
		r := o.start(t, target, limit(rows))
		r.wait(t, end)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		o.equal(t, target)
	}
}

// TestBaseHoldsOldShapes: what a table did before it was copied in its present shape is of no
// interest, neither rows of another shape nor a TRUNCATE, also under another name.
func TestBaseHoldsOldShapes(t *testing.T) {
	t.Parallel()
	const other = "CREATE TABLE other (id int PRIMARY KEY)"
	o := newOrigin(t, "CREATE TABLE old (id int PRIMARY KEY, gone text);"+other, nil)
	target := newTarget(t, "CREATE TABLE t (id int PRIMARY KEY, v text);"+other)
	o.xidOf(t, "INSERT INTO old VALUES (1, 'x'); INSERT INTO other VALUES (1)")
	o.xidOf(t, "ALTER TABLE old RENAME TO t; ALTER TABLE t DROP gone; ALTER TABLE t ADD v text; INSERT INTO t VALUES (2, 'y')")
	o.xidOf(t, "TRUNCATE t, other; INSERT INTO t VALUES (3, 'z'); INSERT INTO other VALUES (5)")
	last := o.xidOf(t, "INSERT INTO t VALUES (4, 'copied')")
	until := o.pull(t)
	o.inspect(t, nil)
	writeManifest(t, target, "t", fmt.Sprintf("%d:%[1]d:", last+1), until, 1)
	target.Exec(t, "INSERT INTO t VALUES (3, 'z'), (4, 'copied')")
	o.xidOf(t, "DELETE FROM t WHERE id = 3")
	r := o.start(t, target)
	r.wait(t, o.pull(t))
	o.equal(t, target)
}

// TestBaseHoldsHalfOfATruncate: a copy of the referencing table holds a TRUNCATE of both, which is
// applied to the other alone. PostgreSQL does not truncate a table that another one refers to.
//
// It fails when what is left of such a TRUNCATE is truncated.
func TestBaseHoldsHalfOfATruncate(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent); CREATE TABLE other (id int)"
	o := newOrigin(t, ddl, nil)
	target := newTarget(t, ddl)
	o.xidOf(t, "INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 1); INSERT INTO other VALUES (1)")
	o.xidOf(t, "TRUNCATE parent, other RESTART IDENTITY CASCADE")
	last := o.xidOf(t, "INSERT INTO parent VALUES (3); INSERT INTO child VALUES (3, 3)")
	until := o.pull(t)
	writeManifest(t, target, "child", fmt.Sprintf("%d:%[1]d:", last+1), until, 1)
	target.Exec(t, "SET session_replication_role = replica; INSERT INTO child VALUES (3, 3); RESET session_replication_role")
	r := o.start(t, target)
	r.wait(t, until)
	o.equal(t, target)
}

// TestBaseUnfinished: nothing is applied beside a table that is copied in part.
func TestBaseUnfinished(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY)"
	o := newOrigin(t, ddl, nil)
	target := newTarget(t, ddl)
	writeManifest(t, target, "t", "5:5:", 1, 2)
	o.tx(t, "INSERT INTO t VALUES (1)")
	o.pull(t)
	if err := o.start(t, target).fails(t); !errors.Is(err, ErrUnfinished) || hint.Of(err) == "" {
		t.Errorf("got %v, hint %q", err, hint.Of(err))
	}
	if diff := cmp.Diff([]string{"0"}, target.Strings(t, "SELECT count(*) FROM t")); diff != "" {
		t.Errorf("rows were applied:\n%s", diff)
	}
}

// TestBasesArePassed: once the last position is passed, nothing is looked up any more.
func TestBasesArePassed(t *testing.T) {
	t.Parallel()
	sees, err := change.ParseSnapshot("10:20:")
	if err != nil {
		t.Fatal(err)
	}
	rel := &change.Relation{Namespace: "public", Name: "t"}
	b := bases{named: map[schema.Name]base{{Schema: "public", Name: "t"}: {sees, 100}}, until: 100}
	for _, c := range []struct {
		commit change.LSN
		xid    uint32
		want   bool
	}{{50, 15, true}, {99, 15, true}, {50, 20, false}, {100, 15, false}, {50, 15, false}} {
		b.pass(c.commit)
		if got := b.holds(rel, c.commit, c.xid); got != c.want {
			t.Errorf("commit at %s of %d: %t", c.commit, c.xid, got)
		}
	}
	if b.named != nil {
		t.Error("the bases were kept")
	}
}
