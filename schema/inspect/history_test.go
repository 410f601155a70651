package inspect

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
)

// TestLeaves: the value of older rows is the default of the moment at which the column came, whatever
// its type, and goes when the rows are written anew. It fails when pg_attrdef is read instead.
func TestLeaves(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, `CREATE TABLE p (id int) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); INSERT INTO p VALUES (1);
		ALTER TABLE p ADD a int[] DEFAULT '{1,2}', ADD v text DEFAULT 'it''s "{}"', ADD u text;
		ALTER TABLE p ALTER v SET DEFAULT 'later'; CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2)`)
	root := schema.Name{Schema: "public", Name: "p"}
	read := func() []Leaf {
		t.Helper()
		leaves, err := Leaves(t.Context(), db.Conn(t), []schema.Name{root})
		if err != nil {
			t.Fatal(err)
		}
		return leaves[root]
	}
	before := read()
	if len(before) != 2 || before[0].Name.Name != "p1" {
		t.Fatalf("got %+v, want the two partitions", before)
	}
	if diff := cmp.Diff(map[string]string{"a": "{1,2}", "v": `it's "{}"`}, before[0].Missing); diff != "" {
		t.Errorf("values of older rows (-want +got):\n%s", diff)
	}
	if len(before[1].Missing) != 0 {
		t.Errorf("a partition that came later has %v", before[1].Missing)
	}
	db.Exec(t, `VACUUM FULL p1`)
	if after := read(); after[0].File == before[0].File || len(after[0].Missing) != 0 || after[1].File != before[1].File {
		t.Errorf("after VACUUM FULL of p1: got %+v, was %+v", after, before)
	}
}

func TestIndexes(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, `CREATE TABLE a (id int PRIMARY KEY, "V v" text); CREATE INDEX "a i" ON a (lower("V v")) WHERE id > 0; CREATE TABLE b (a int REFERENCES a)`)
	conn, err := db.DSN.Connect(t.Context(), "test") // without search_path, as everybody's here
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	got, err := Indexes(t.Context(), conn, []schema.Name{{Schema: "public", Name: "a"}, {Schema: "public", Name: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := schema.Name{Schema: "public", Name: "a"}, schema.Name{Schema: "public", Name: "b"}
	want := []Index{
		{Table: a, Name: "a i", SQL: `CREATE INDEX "a i" ON public.a USING btree (lower("V v")) WHERE (id > 0)`},
		{Table: a, Name: "a_pkey", Constraint: true, SQL: `ALTER TABLE public.a ADD CONSTRAINT a_pkey PRIMARY KEY (id)`},
		{Table: b, Name: "b_a_fkey", Constraint: true, References: a, SQL: `ALTER TABLE public.b ADD CONSTRAINT b_a_fkey FOREIGN KEY (a) REFERENCES public.a(id)`},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("indexes (-want +got):\n%s", diff)
	}
}
