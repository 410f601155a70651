package fence

import (
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
)

// TestDescendingSequence: forward is downward for it. It fails when only greater values count as ahead.
func TestDescendingSequence(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, `CREATE SEQUENCE public.down INCREMENT -5 MINVALUE -1000; SELECT nextval('public.down') FROM generate_series(1, 10)`)
	const name = `"public"."down"`
	d, err := New(t.Context(), Config{DSN: db.DSN, Self: migrate.Target, Sequences: []schema.Name{{Schema: "public", Name: "down"}}})
	must(t, err)
	t.Cleanup(d.Close)
	for _, step := range []struct{ to, headroom, want int64 }{{-51, 0, -51}, {-100, 3, -115}, {-60, 0, -115}, {5, 0, -115}, {-990, 10, -1000}} {
		must(t, d.SetSequences(t.Context(), []migrate.Sequence{{Name: name, Next: step.to}}, step.headroom))
		got, err := d.Sequences(t.Context())
		must(t, err)
		if len(got) != 1 || got[0].Next != step.want {
			t.Errorf("set to %d with headroom %d: %+v, want %d", step.to, step.headroom, got, step.want)
		}
	}
}

// TestSequenceMovesMeanwhile: values are given out between the moment at which it is seen where a sequence
// stands, and the one at which it is set. None is given out again. It fails when the statement that sets
// it does not look once more.
func TestSequenceMovesMeanwhile(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, `CREATE SEQUENCE public.s`)
	far := faultpg.New(t, db.DSN)
	d, err := New(t.Context(), Config{DSN: far.DSN(db.Name), Self: migrate.Target, Sequences: []schema.Name{{Schema: "public", Name: "s"}}})
	must(t, err)
	t.Cleanup(d.Close)
	_, err = d.Sequences(t.Context()) // whose statements are prepared from then on
	must(t, err)
	far.Delay(time.Second)
	set := make(chan error, 1)
	go func() { set <- d.SetSequences(t.Context(), []migrate.Sequence{{Name: `"public"."s"`, Next: 100}}, 0) }()
	pgtest.Eventually(t, "the statement that sets it to be known", func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%setval(%'`) == 1
	})
	gave := db.Int(t, `SELECT max(nextval('public.s')) FROM generate_series(1, 500)`)
	must(t, <-set)
	if next := db.Int(t, `SELECT nextval('public.s')`); next != gave+1 {
		t.Errorf("%d was given out, and then %d", gave, next)
	}
}
