package apply

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestCopiedText: whatever text a value is, COPY stores that text.
//
// It fails when a backslash, a tab or a line end goes out as it is, when an empty text becomes NULL or NULL
// a text, and when a row that is split between two messages loses a byte.
func TestCopiedText(t *testing.T) {
	t.Parallel()
	const ddl = `CREATE TABLE one (v text); CREATE TABLE two (a text, b text, id int PRIMARY KEY)`
	values := []string{
		`''`, `NULL`, `'\'`, `'\\'`, `'\.'`, `'\N'`, `E'\t'`, `E'\n'`, `E'\r\n'`, `E'a\tb\nc\\d\re'`, `E'\\\n'`, `'"'`,
		`'é漢😀'`, `E'\b\f\v'`, `E'\x01\x7f'`, `repeat(E'\\\t\n', 100000)`, `repeat('x', 70000)`, `'\x41'`, `'end\'`, `' '`,
	}
	for _, major := range []int{13, 15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			o, target := newOrigin(t, ddl, nil), newTarget(t, ddl, pgtest.Version(major))
			var rows []string
			for i, v := range values {
				rows = append(rows, fmt.Sprintf("(%s, %s, %d)", v, values[len(values)-1-i], i))
			}
			o.tx(t, "INSERT INTO one VALUES ("+strings.Join(values, "), (")+"); INSERT INTO two VALUES "+strings.Join(rows, ", "))
			a := o.start(t, target, byCopy)
			a.wait(t, o.pull(t))
			o.equal(t, target)
			if n := a.Stats().Replayed; n != 0 {
				t.Errorf("%d batches took the slow path", n)
			}
			got := target.Strings(t, `SELECT md5(string_agg(id || '/' || coalesce(a, 'NULL') || '/' || coalesce(b, 'NULL'), '|' ORDER BY id)) FROM two`)
			want := o.Strings(t, `SELECT md5(string_agg(id || '/' || coalesce(a, 'NULL') || '/' || coalesce(b, 'NULL'), '|' ORDER BY id)) FROM two`)
			if got[0] != want[0] {
				t.Error("texts differ")
			}
		})
	}
}

// TestCopiedColumns: COPY writes what INSERT writes into identity columns, generated ones, domains, columns
// in another order, partitions, and where a "char" of an old server needs help.
//
// It fails when the fields are not in the order of the columns that the statement names, or when a table
// with a value that needs help is copied.
func TestCopiedColumns(t *testing.T) {
	t.Parallel()
	const (
		source = `CREATE DOMAIN d AS varchar(5) CHECK (value <> ''); CREATE TYPE e AS ENUM ('a', 'b');
			CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a d, b e[], c numeric(5, 1), g int GENERATED ALWAYS AS (id * 2) STORED, x xml, ch "char");
			CREATE TABLE p (id int PRIMARY KEY, v text)`
		dest = `CREATE DOMAIN d AS varchar(5) CHECK (value <> ''); CREATE TYPE e AS ENUM ('a', 'b');
			CREATE TABLE t (x xml, g int, c numeric(5, 1), b e[], id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a d, ch "char");
			CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
			CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (50); CREATE TABLE p2 PARTITION OF p DEFAULT`
	)
	for _, major := range []int{13, 15} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			o, target := newOrigin(t, source, nil), newTarget(t, strings.Replace(dest, "g int", "g int GENERATED ALWAYS AS (id * 2) STORED", 1), pgtest.Version(major))
			o.tx(t, `INSERT INTO t (a, b, c, x, ch) SELECT 'a' || i % 9, ARRAY['a', 'b', NULL]::e[], i / 7.0, ('<a>' || i || '</a>')::xml,
				CASE WHEN i % 2 = 0 THEN '\351' ELSE 'c' END::"char" FROM generate_series(1, 200) i; INSERT INTO p SELECT i, i FROM generate_series(1, 100) i`)
			a := o.start(t, target, byCopy)
			a.wait(t, o.pull(t))
			if n := target.Int(t, `SELECT count(*) FROM t WHERE ch = (-23)::"char"`); n != 100 {
				t.Errorf("%d values of 100 are the byte e9", n)
			}
			for _, db := range []*pgtest.Database{o.Database, target} { // versions print it in different ways
				db.Exec(t, "ALTER TABLE t DROP COLUMN ch")
			}
			o.inspect(t, nil)
			o.equal(t, target)
			if n := a.Stats().Replayed; n != 0 {
				t.Errorf("%d batches took the slow path", n)
			}
		})
	}
}

// TestCopyRefused: a row that a COPY is refused for is found and named, and everything up to its transaction
// is there once; when it is out of the way the rest comes, also what was on its way behind it.
//
// It fails when data that follow a refused COPY are taken for something else than data, and when the answer
// that begins a COPY is taken for its end.
func TestCopyRefused(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, v text)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	target.Exec(t, "INSERT INTO t VALUES (1234, 'in the way')")
	ends := o.ends(t, 30, func(i int) string {
		return fmt.Sprintf("INSERT INTO t SELECT i, repeat('text ', 50) FROM generate_series(%d, %d) i", i*100, i*100+99)
	})
	a := o.start(t, target, byCopy, limit(150))
	err := a.fails(t)
	refused, ok := errors.AsType[*RowError](err)
	if !ok || refused.Key != "id=1234" || refused.Op != "insert" || refused.End != ends[12] {
		t.Fatalf("got %v (%+v), want row 1234 of %s", err, refused, ends[12])
	}
	if strings.Contains(err.Error(), "text text") {
		t.Errorf("the error has values: %v", err)
	}
	if n := target.Int(t, "SELECT count(*) FROM t WHERE v <> 'in the way'"); n != 1200 {
		t.Errorf("%d rows, want the 1200 before", n)
	}
	target.Exec(t, "DELETE FROM t WHERE id = 1234")
	a = o.start(t, target, byCopy, limit(150))
	a.wait(t, ends[29])
	o.equal(t, target)
}
