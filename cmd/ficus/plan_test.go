package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestPlanTellsHowEachTableMoves: format with its reason, that of the stream, replica identity with its
// reason, parts.
func TestPlanTellsHowEachTableMoves(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.a (id int PRIMARY KEY, v text); CREATE TABLE public.b (id int NOT NULL, v regclass); CREATE UNIQUE INDEX b_id ON public.b (id);
		ALTER TABLE public.b REPLICA IDENTITY USING INDEX b_id; CREATE TABLE public.c (v text); CREATE TABLE public.d (id int PRIMARY KEY); ALTER TABLE public.d REPLICA IDENTITY NOTHING;
		CREATE TABLE public.e (v text); ALTER TABLE public.e REPLICA IDENTITY FULL; CREATE TABLE public.big (id int PRIMARY KEY, v text); INSERT INTO public.big SELECT i, repeat('x', 1000) FROM generate_series(1, 5000) i;
		CREATE TABLE public.p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (9); CREATE TABLE public.p2 PARTITION OF public.p DEFAULT;
		ANALYZE`)
	file := filepath.Join(t.TempDir(), "book.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "name: book\nsource: %s\ntarget: %s\ncopy: {chunk: 1MB}\n", source.URL, target.URL), 0o600))
	plan := func(args ...string) map[string]string {
		p := ficus(t, t.TempDir(), append([]string{"plan", "-f", file}, args...)...)
		p.wait()
		got := map[string]string{}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, l := range p.lines {
			if l["type"] == "table" {
				if l["stream"] != "text" {
					t.Errorf("%v: the stream is %v", l["source"], l["stream"])
				}
				got[fmt.Sprint(l["source"])] = fmt.Sprintf("%v rows, %v %v, %v %v, %v parts", l["rows"], l["format"], l["text_because"], l["replica_identity"], l["identity_because"], l["parts"])
			}
		}
		return got
	}
	const (
		keyless  = "no key of the table is carried over unchanged"
		nothing  = "its REPLICA IDENTITY is NOTHING, so the stream would not say which row changed"
		regclass = `column "v" is of type regclass, whose binary form is a number that differs between databases`
	)
	want := map[string]string{
		"public.a": "-1 rows, binary , primary key , 1 parts", "public.b": "-1 rows, text " + regclass + ", index , 1 parts",
		"public.c": "-1 rows, binary , full, set by Ficus " + keyless + ", 1 parts",
		"public.d": "-1 rows, binary , full, set by Ficus " + nothing + ", 1 parts",
		"public.e": "-1 rows, binary , full , 1 parts", "public.big": "5000 rows, binary , primary key , 6 parts", "public.p": "-1 rows, binary , primary key , 2 parts",
	}
	got := plan()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	want["public.c"] = "-1 rows, binary , inserts only " + keyless + ", 1 parts"
	want["public.d"] = "-1 rows, binary , inserts only " + nothing + ", 1 parts"
	if diff := cmp.Diff(want, plan("--no-replica-identity")); diff != "" {
		t.Errorf("with --no-replica-identity: -want +got:\n%s", diff)
	}
}

// TestPlanExpectsAStall: a transaction that writes while the plan is made shows in what clients would wait for;
// one that only reads, or writes in another database of the server, does not.
//
// It fails when readers count, and when the age is not taken.
func TestPlanExpectsAStall(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.a (id int PRIMARY KEY)`)
	file := filepath.Join(t.TempDir(), "book.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "name: book\nsource: %s\ntarget: %s\n", source.URL, target.URL), 0o600))
	begin := func(sql string) (end func()) {
		tx, err := source.Conn(t).Begin(t.Context())
		must(t, err)
		_, err = tx.Exec(t.Context(), sql)
		must(t, err)
		return func() { must(t, tx.Rollback(t.Context())) }
	}
	plan := func() map[string]any {
		p := ficus(t, t.TempDir(), "plan", "-f", file)
		defer p.wait()
		return p.line("expected_stall", nil)
	}
	endRead := begin(`SELECT * FROM public.a`)
	if quiet := plan(); number(quiet["write_transactions"]) != 0 || number(quiet["low_ns"]) <= 0 || quiet["low_ns"] != quiet["high_ns"] {
		t.Errorf("nobody writes: %v", quiet)
	}
	endRead()
	endWrite := begin(`INSERT INTO public.a VALUES (1)`)
	if busy := plan(); number(busy["write_transactions"]) != 1 || number(busy["longest_write_ns"]) < 2e9 || number(busy["high_ns"]) < 2e9 || number(busy["high_ns"]) < number(busy["low_ns"]) {
		t.Errorf("a transaction writes for more than two seconds: %v", busy)
	}
	endWrite()
}
