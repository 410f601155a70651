package dump

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
)

// TestGraph walks through both sections in random orders, several jobs at a time. Whatever the
// order, an object comes after those that it depends on, a key shares its table with nobody, what
// may need the order that pg_dump found is built alone, and everything is built. It notices a graph
// without the wait between two keys, between stages, or for what an object depends on.
func TestGraph(t *testing.T) {
	t.Parallel()
	source := pgtest.DB(t)
	source.Exec(t, everything(t))
	source.Exec(t, `CREATE TABLE part (id int, at date, n int, UNIQUE (id, at), UNIQUE (n, id, at)) PARTITION BY RANGE (at);
		CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
		CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY RANGE (id);
		CREATE TABLE part_2_1 PARTITION OF part_2 FOR VALUES FROM (1) TO (9); CREATE INDEX ON part (n)`)
	d := open(t, Config{Source: source.DSN, Analyze: []schema.Name{name("public", "part"), name("public", "event")}})
	for _, section := range [][2]stage{{stageKeys, stageStatistics}, {stageChecks, stageEvents}} {
		var todo []*entry
		for _, e := range d.entries {
			if e.stage >= section[0] && e.stage <= section[1] {
				todo = append(todo, e)
			}
		}
		for seed := range uint64(100) {
			if left := walk(t, d, todo, rand.New(rand.NewPCG(seed, 3))); left != 0 {
				t.Fatalf("%d of %d entries never had their turn", left, len(todo))
			}
		}
	}
}

// walk does what a schedule does, without a server, and returns how many entries it never came to.
func walk(t *testing.T, d *Dump, todo []*entry, r *rand.Rand) (left int) {
	t.Helper()
	done := map[*entry]bool{}
	waiting := map[int]*entry{} // by number in the archive
	for _, e := range todo {
		if e.id != 0 {
			waiting[e.id] = e
		}
	}
	var ready, running []*job
	var release func(j *job)
	release = func(j *job) {
		for _, n := range j.next {
			switch n.waits--; {
			case n.waits > 0:
			case n.entry == nil:
				release(n)
			default:
				ready = append(ready, n)
			}
		}
	}
	for _, f := range d.graph(todo) {
		release(f.gate)
	}
	for len(ready)+len(running) > 0 {
		if len(ready) > 0 && r.IntN(2) == 0 {
			at := r.IntN(len(ready))
			j := ready[at]
			ready = slices.Delete(ready, at, at+1)
			for _, id := range j.entry.deps {
				if dep := waiting[id]; dep != nil && !done[dep] && dep != j.entry {
					t.Errorf("%s is built before %s", j.entry, dep)
				}
			}
			for _, other := range running {
				key := other.table != nil && other.table == j.table && (j.entry.stage == stageKeys || other.entry.stage == stageKeys)
				if key || j.entry.stage == other.entry.stage && (j.entry.stage == stageForeignKeys || j.entry.stage >= stageRest) {
					t.Errorf("%s is built together with %s", j.entry, other.entry)
				}
			}
			running = append(running, j)
		} else if len(running) > 0 {
			at := r.IntN(len(running))
			done[running[at].entry] = true
			release(running[at])
			running = slices.Delete(running, at, at+1)
		}
	}
	return len(todo) - len(done)
}

// TestIndexesBeside builds a table's indexes and statistics when it is filled and a session is free,
// and all others at the end.
func TestIndexesBeside(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE a (id int PRIMARY KEY, n int); CREATE INDEX a_n ON a (n); CREATE TABLE b (id int PRIMARY KEY);
		CREATE TABLE p (id int PRIMARY KEY) PARTITION BY HASH (id); CREATE TABLE p_1 PARTITION OF p FOR VALUES WITH (MODULUS 1, REMAINDER 0)`)
	a, b, p := name("public", "a"), name("public", "b"), name("public", "p")
	d := open(t, Config{Source: source.DSN, Analyze: []schema.Name{a, b, p}})
	must(t, d.PreData(t.Context(), target.DSN))
	target.Exec(t, "INSERT INTO a SELECT i, i FROM generate_series(1, 100) i; INSERT INTO p VALUES (1)")

	built := func() []string {
		return target.Strings(t, `SELECT object FROM ficus.built WHERE object ~ '^(index|constraint|statistics)' ORDER BY object COLLATE "C"`)
	}
	ready := make(chan Ready)
	done := make(chan error, 1)
	go func() { done <- d.IndexesBeside(t.Context(), target.DSN, ready, nil) }() // ends with ready, and is waited for below
	ready <- Ready{Table: a}
	ready <- Ready{Table: name("public", "unknown")}
	if got := built(); len(got) != 0 {
		t.Errorf("without a session: %q", got)
	}
	ready <- Ready{Session: true}
	ofA := []string{"constraint public.a a_pkey", "index public.a_n", "statistics of public.a"}
	pgtest.Eventually(t, "what belongs to a is built", func() bool { return len(built()) >= len(ofA) })
	ready <- Ready{Table: p}
	ofP := []string{"constraint public.p p_pkey", "constraint public.p_1 p_1_pkey", "index attach public.p_1_pkey", "statistics of public.p"}
	pgtest.Eventually(t, "what belongs to p is built", func() bool { return len(built()) >= len(ofA)+len(ofP) })
	if diff := cmp.Diff(sorted(ofA, ofP), built()); diff != "" {
		t.Errorf("before b is filled (-want +got):\n%s", diff)
	}
	close(ready)
	must(t, <-done)
	if diff := cmp.Diff(sorted(ofA, ofP, []string{"constraint public.b b_pkey", "statistics of public.b"}), built()); diff != "" {
		t.Errorf("at the end (-want +got):\n%s", diff)
	}
	if n := target.Int(t, "SELECT reltuples::bigint FROM pg_class WHERE relname = 'a'"); n != 100 {
		t.Errorf("statistics know of %d rows, want 100", n)
	}
	must(t, d.Indexes(t.Context(), target.DSN, nil))
	must(t, d.Final(t.Context(), target.DSN, nil))
	same(t, source, target)
}

// TestIndexesBesideEndsWithItsContext: nothing waits for a copy that was given up.
func TestIndexesBesideEndsWithItsContext(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE a (id int PRIMARY KEY)`)
	d := open(t, Config{Source: source.DSN})
	must(t, d.PreData(t.Context(), target.DSN))
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	ready := make(chan Ready)
	go func() { done <- d.IndexesBeside(ctx, target.DSN, ready, nil) }() // ends with ctx, and is waited for below
	ready <- Ready{Session: true}
	cancel(errStop)
	if err := <-done; err == nil || context.Cause(ctx) != errStop { //nolint:errorlint // the very one
		t.Errorf("got %v", err)
	}
}

func sorted(lists ...[]string) []string { return slices.Sorted(slices.Values(slices.Concat(lists...))) }

func TestMeans(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	usual := share{memory: 64 * mb, workers: 2}
	for _, tt := range []struct {
		name  string
		means means
		n     int
		want  share
	}{
		{"one build on two cores", means{0, 1024 * mb, 2, usual}, 1, share{1024 * mb, 1}},
		{"as many as cores", means{0, 1024 * mb, 2, usual}, 2, share{512 * mb, 0}},
		{"more than cores", means{0, 1024 * mb, 2, usual}, 3, share{1024 * mb / 3, 0}},
		{"many cores", means{0, 1024 * mb, 16, usual}, 2, share{512 * mb, 2}},
		{"cores not known", means{0, 1024 * mb, 0, usual}, 8, share{128 * mb, 2}},
		{"little memory", means{0, 128 * mb, 0, usual}, 8, usual},
		{"much memory", means{0, 1 << 40, 0, usual}, 8, share{mostMemory, 2}},
		{"more than that by the settings", means{0, 1024 * mb, 0, share{4096 * mb, 0}}, 1, share{4096 * mb, 0}},
	} {
		if got := tt.means.among(tt.n); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
