package link

import (
	"strings"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
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
