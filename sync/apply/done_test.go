package apply

import (
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestDoneWithALostStream: where a stream was lost and fills again with what the destination holds already, as
// after the data directory was lost, nothing of it is done with before the session has read it.
//
// It fails when the stream counts as done with as far as the destination stands.
func TestDoneWithALostStream(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	for _, sql := range []string{"INSERT INTO t VALUES (1)", "INSERT INTO t SELECT generate_series(2, 40000)", "INSERT INTO t VALUES (0)"} {
		o.tx(t, sql)
		o.pull(t)
	}
	a := o.start(t, target)
	a.wait(t, o.log.Head())
	pgtest.Eventually(t, "the stream to be done with", func() bool { return a.Done() == o.log.Head() })
	_ = a.stop()

	was := o.log.chunks
	o.log = newMemLog()
	a = o.start(t, target)
	a.wait(t, was[len(was)-1].End)
	if a.Done() != 0 {
		t.Errorf("done with %s of an empty stream", a.Done())
	}
	for i, c := range was {
		o.log.add(c)
		whole := !c.Spilled || i+1 == len(was) || was[i+1].End != c.End
		if done := a.Done(); done > o.log.Head() || !whole && done == c.End {
			t.Errorf("done with %s, after a chunk that ends at %s (whole: %t)", done, c.End, whole)
		}
		if whole {
			pgtest.Eventually(t, "the chunk to be done with", func() bool { return a.Done() == c.End })
		}
	}
	o.equal(t, target)
}
