package verify

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/transform"
)

func TestRules(t *testing.T) {
	t.Parallel()
	src, dst := pgtest.DB(t), pgtest.DB(t)
	src.Exec(t, `CREATE TABLE "Üsers ""x""" (id int PRIMARY KEY, "full name" text, email text, secret text, deleted bool NOT NULL, score numeric);
INSERT INTO "Üsers ""x""" SELECT i, 'N' || i, 'E' || i || '@X', 's', i % 3 = 0, i / 4.0 FROM generate_series(1, 3000) i`)
	dst.Exec(t, `CREATE SCHEMA shop; CREATE TABLE shop."cust'omers" (key bigint PRIMARY KEY, name varchar(50), email text, grade int, score float8);
INSERT INTO shop."cust'omers" SELECT i, 'N' || i, 'e' || i || '@x', 2 * i, i / 4.0 FROM generate_series(1, 3000) i WHERE i % 3 <> 0`)
	cfg := Config{Source: src.DSN, Target: dst.DSN, ChunkRows: 100, Mappings: mappings(t, src, map[string]transform.Rule{
		`public."Üsers ""x"""`: {
			To: `shop."cust'omers"`, Where: "NOT deleted", Drop: []string{"secret", "deleted"},
			Columns: map[string]string{"key": "id", "name": `"full name"`, "email": "lower(email)", "grade": "id * 2"},
		},
	})}
	if r := run(t, cfg); r.Differences != 0 || r.Rows != 2000 || r.TargetRows != 2000 {
		t.Fatalf("%d differences in %d and %d rows, want 0 in 2000: %+v", r.Differences, r.Rows, r.TargetRows, r.Tables)
	}

	dst.Exec(t, `UPDATE shop."cust'omers" SET email = 'E1@x' WHERE key = 1; UPDATE shop."cust'omers" SET grade = 0, name = NULL WHERE key = 2;
INSERT INTO shop."cust'omers" VALUES (3, 'N3', 'e3@x', 6, 0.75)`)
	const want = "0 1 2 [changed id=1 [email] changed id=2 [name grade] extra id=3 []]"
	for _, keys := range []Keys{nil, touched(map[string][][]string{`Üsers "x"`: ids(1, 10)})} {
		cfg.Keys = keys
		r := run(t, cfg)
		if got := summary(r.Tables[0]); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		for _, s := range r.Tables[0].Samples {
			if rows := src.Strings(t, s.SourceSQL); (len(rows) == 1) != (s.Kind == Changed) {
				t.Errorf("%s gives %q", s.SourceSQL, rows)
			}
			if rows := dst.Strings(t, s.TargetSQL); len(rows) != 1 {
				t.Errorf("%s gives %q", s.TargetSQL, rows)
			}
		}
	}
}

func TestPartitions(t *testing.T) {
	t.Parallel()
	src, dst := pgtest.DB(t), pgtest.DB(t)
	const rows = "INSERT INTO x SELECT i, i % 7, 'v' || i FROM generate_series(1, 6000) i"
	src.Exec(t, `CREATE TABLE x (id int, p int, v text, PRIMARY KEY (id, p)) PARTITION BY LIST (p);
CREATE TABLE x0 PARTITION OF x FOR VALUES IN (0); CREATE TABLE x1 (v text, p int NOT NULL, id int NOT NULL);
ALTER TABLE x ATTACH PARTITION x1 FOR VALUES IN (1); CREATE TABLE xn PARTITION OF x DEFAULT PARTITION BY HASH (p);
CREATE TABLE xn0 PARTITION OF xn FOR VALUES WITH (MODULUS 1, REMAINDER 0);`+rows)
	dst.Exec(t, "CREATE TABLE x (v text, id int, p int, PRIMARY KEY (id, p)); "+
		"INSERT INTO x (id, p, v) SELECT i, i % 7, 'v' || i FROM generate_series(1, 6000) i ORDER BY random()")
	cfg := config(t, src, dst)
	cfg.ChunkRows = 200
	if len(cfg.Mappings) != 1 {
		t.Fatalf("%d mappings, want 1", len(cfg.Mappings))
	}
	if r := run(t, cfg); r.Differences != 0 || r.Rows != 6000 {
		t.Errorf("%d differences in %d rows, want 0 in 6000", r.Differences, r.Rows)
	}
	src.Exec(t, "DELETE FROM x1 WHERE id = 8; UPDATE xn SET v = 'w' WHERE id = 9")
	if got, want := summary(run(t, cfg).table(t, "x")), "0 1 1 [changed id=9, p=2 [v] extra id=8, p=1 []]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Children of an inheritance parent have mappings of their own, so the parent's is without them.
func TestInheritance(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, `CREATE TABLE x (id int PRIMARY KEY); CREATE TABLE y (n int, PRIMARY KEY (id)) INHERITS (x);
INSERT INTO x VALUES (1); INSERT INTO y VALUES (1, 1), (2, 2);`)
	cfg := config(t, src, dst)
	if r := run(t, cfg); r.Differences != 0 || r.table(t, "x").Rows != 1 || r.table(t, "y").Rows != 2 {
		t.Errorf("got %+v", r.Tables)
	}
	dst.Exec(t, "DELETE FROM y WHERE id = 1; INSERT INTO x VALUES (2)")
	r := run(t, cfg)
	if got := []string{summary(r.table(t, "x")), summary(r.table(t, "y"))}; !cmp.Equal(got, []string{"0 1 0 [extra id=2 []]", "1 0 0 [missing id=1 []]"}) {
		t.Errorf("got %q", got)
	}
}

func TestTableWithoutColumns(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, "CREATE TABLE x (); INSERT INTO x DEFAULT VALUES; INSERT INTO x DEFAULT VALUES")
	cfg := config(t, src, dst)
	if r := run(t, cfg); r.Differences != 0 || r.Rows != 2 {
		t.Errorf("%d differences in %d rows", r.Differences, r.Rows)
	}
	dst.Exec(t, "INSERT INTO x DEFAULT VALUES")
	if got := summary(run(t, cfg).table(t, "x")); got != "0 1 0 [extra  []]" {
		t.Errorf("got %s", got)
	}
}

func TestDatabasesOfDifferentEncoding(t *testing.T) {
	t.Parallel()
	src, dst := pgtest.DB(t), pgtest.DB(t)
	dst.Exec(t, "CREATE DATABASE "+dst.Name+"_latin1 ENCODING LATIN1 LOCALE 'C' TEMPLATE template0")
	t.Cleanup(func() { dst.Exec(t, "DROP DATABASE "+dst.Name+"_latin1") })
	latin1 := *dst
	latin1.DSN = dst.DSN.WithDatabase(dst.Name + "_latin1")

	const sql = `CREATE TABLE x (k text PRIMARY KEY, v text); INSERT INTO x VALUES ('ä', 'é'), ('ö', 'ß')`
	src.Exec(t, sql)
	conn, err := latin1.DSN.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), "SET search_path = public; "+sql); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, src, &latin1)
	if r := run(t, cfg); r.Differences != 0 || r.Tables[0].Method != MethodText {
		t.Errorf("%d differences by %s", r.Differences, r.Tables[0].Method)
	}
	src.Exec(t, "UPDATE x SET v = 'e' WHERE k = 'ä'")
	if got := summary(run(t, cfg).table(t, "x")); got != "0 0 1 [changed k=ä [v]]" {
		t.Errorf("got %s", got)
	}
}
