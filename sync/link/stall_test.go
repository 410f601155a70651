package link

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/sync/source"
)

// TestTargetSilent: a destination that accepts everything and never answers is given up after a while,
// and said; one that works on a statement for long is not.
// Broken on purpose: without watch the first never connects again.
func TestTargetSilent(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
	f.load(t)
	f.close(t)
	f.open(t)
	f.link.cfg.AnswerTimeout = 300 * time.Millisecond
	must(t, f.reattach())
	stop := run(t, f.link)
	f.settle(t)

	f.target.Stall(faultpg.ToClient)
	f.from.Exec(t, `INSERT INTO public.entry VALUES (-1, 1)`)
	pgtest.Eventually(t, "the link to say that nobody answers", func() bool {
		w := f.link.Warnings()
		return len(w) == 1 && strings.Contains(w[0], "nothing could be applied since")
	})
	f.target.Flow()
	f.equal(t)
	pgtest.Eventually(t, "the warning to go", func() bool { return len(f.link.Warnings()) == 0 })

	// A lock that is held for longer than the timeout: the same session goes on.
	session := `SELECT pid FROM pg_stat_activity WHERE application_name = 'ficus/apply' AND datname = current_database()`
	conn := f.to.Conn(t)
	_, err := conn.Exec(t.Context(), `BEGIN; LOCK TABLE public.entry`)
	must(t, err)
	pid := f.to.Int(t, session)
	f.from.Exec(t, `INSERT INTO public.entry VALUES (-2, 2)`)
	began := time.Now()
	pgtest.Eventually(t, "several timeouts", func() bool { return time.Since(began) > time.Second })
	_, err = conn.Exec(t.Context(), `ROLLBACK`)
	must(t, err)
	f.equal(t)
	if now := f.to.Int(t, session); now != pid {
		t.Errorf("session %d became %d", pid, now)
	}
	stop()
}

// TestCopySilent: a server that goes silent in the middle of COPY is named, with the table. It fails when
// the cause is not taken where the table is known.
func TestCopySilent(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ side, how string }{{"source", "swallows"}, {"target", "swallows"}, {"target", "stalls"}} {
		t.Run(c.side+" "+c.how, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), `CREATE TABLE public.big (id int PRIMARY KEY, v text)`,
				`INSERT INTO public.big SELECT i, repeat('x', 500) FROM generate_series(1, 40000) i`) // more than the buffers on the way take
			f.answer = 500 * time.Millisecond
			f.open(t)
			proxy, moves := f.source, faultpg.ToClient
			if c.side == "target" {
				proxy, moves = f.target, faultpg.ToServer
			}
			proxy.Slow(moves, 2_000_000) // so that there is a middle
			var copied atomic.Int64
			ended := make(chan error, 1)
			go func() {
				_, err := f.link.Load(context.WithoutCancel(t.Context()), LoadConfig{Workers: 1, ChunkBytes: 1 << 30, Progress: func(p snapshot.Table) {
					if p.Name.Name == "big" {
						copied.Store(p.Bytes)
					}
				}})
				ended <- err
			}()
			pgtest.Eventually(t, "the middle", func() bool { return copied.Load() > 1<<20 })
			if c.how == "swallows" {
				proxy.Freeze()
			} else {
				proxy.Stall(moves)
			}
			err := <-ended
			if want := "public.big: no answer from the " + c.side; err == nil || !strings.Contains(err.Error(), want) || !pg.Retryable(err) {
				t.Errorf("the copy ended with %v, want %q, and that it is tried again", err, want)
			}
		})
	}
}

// TestSourceGone: a source that cannot be read is said to be so for as long as that lasts. What a full disk
// of the source does is in TestDiskReallyFull. It fails when Run does not take note of what it tries again.
func TestSourceGone(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
	f.load(t)
	stop := run(t, f.link)
	f.settle(t)
	f.source.Refuse(true)
	f.source.Cut()
	pgtest.Eventually(t, "the link to say so", func() bool {
		w := f.link.Warnings()
		return len(w) == 1 && strings.Contains(w[0], "nothing could be received since") && strings.Contains(w[0], "connect")
	})
	f.from.Exec(t, `INSERT INTO public.entry VALUES (-1, 1)`)
	f.source.Refuse(false)
	f.equal(t)
	pgtest.Eventually(t, "the warning to go", func() bool { return len(f.link.Warnings()) == 0 })
	stop()
}

// reattach gives a prepared link's engines a changed configuration.
func (f *faulty) reattach() error {
	p, err := f.link.attached()
	if err != nil {
		return err
	}
	return f.link.attach(p.record)
}

// TestTargetFull: the destination's disk has no room for a while. The link says so, tries again, and
// loses nothing. What PostgreSQL says on a full disk is said here by a trigger, at one table.
func TestTargetFull(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
	f.ack = source.AckApplied
	f.load(t)
	stop := run(t, f.link)
	f.settle(t)
	f.to.Exec(t, `
		CREATE FUNCTION public.full() RETURNS trigger LANGUAGE plpgsql AS
			$$BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END$$;
		CREATE TRIGGER full_disk BEFORE INSERT ON public.entry FOR EACH ROW EXECUTE FUNCTION public.full();
		ALTER TABLE public.entry ENABLE ALWAYS TRIGGER full_disk`)
	f.from.Exec(t, `INSERT INTO public.entry VALUES (-1, 1), (-1, 1)`)
	pgtest.Eventually(t, "the link to say so", func() bool {
		w := f.link.Warnings()
		return len(w) == 1 && strings.Contains(w[0], "No space left")
	})
	f.to.Exec(t, `DROP TRIGGER full_disk ON public.entry; DROP FUNCTION public.full()`)
	f.equal(t)
	if w := f.link.Warnings(); len(w) != 0 {
		t.Errorf("warnings afterwards: %q", w)
	}
	stop()
}
