package link

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/source"
)

// hold keeps a copy from ending: its rows cannot be written to one table of the target until the returned
// function is called.
func (f *faulty) hold(t *testing.T, table string) (release func()) {
	t.Helper()
	conn := f.to.Conn(t)
	_, err := conn.Exec(t.Context(), `BEGIN; LOCK TABLE `+table+` IN EXCLUSIVE MODE`)
	must(t, err)
	return func() {
		t.Helper()
		_, err := conn.Exec(t.Context(), `ROLLBACK`)
		must(t, err)
	}
}

// TestLoadFailover: a standby is promoted while a copy is unfinished, between two processes and under
// one that copies.
func TestLoadFailover(t *testing.T) {
	t.Parallel()
	t.Run("between two processes", func(t *testing.T) {
		t.Parallel()
		primary := smallCluster(t)
		f := newFaulty(t, primary.DB(t), pgtest.DB(t), copied, copiedRows)
		f.interrupt(t, 20)
		standby := primary.Copy(t, pgtest.AsStandby())
		f.replayed(t, standby)
		primary.Kill(t)
		standby.Promote(t)
		f.moveTo(t, standby)
		f.close(t)
		f.from.Exec(t, `DELETE FROM public.account WHERE id < 50`)
		if log := f.resume(t); !strings.Contains(log, "timeline 2") || strings.Contains(log, "copy resumed") {
			t.Errorf("log:\n%s", log)
		}
		run(t, f.link)
		f.equal(t)
	})
	t.Run("while one copies", func(t *testing.T) {
		t.Parallel()
		primary := smallCluster(t)
		f := newFaulty(t, primary.DB(t), pgtest.DB(t), copied, copiedRows)
		standby := primary.Copy(t, pgtest.AsStandby(), pgtest.WithoutSlots())
		t.Cleanup(func() { f.end(t) })
		f.open(t)
		release := f.hold(t, "public.swap")
		loaded := f.loadThrough(t)
		f.awaitChunks(t, nil, 20)
		f.replayed(t, standby)
		f.source.Refuse(true)
		primary.Kill(t)
		standby.Promote(t)
		f.from = standby.Find(t, f.from)
		f.from.Exec(t, `DELETE FROM public.account WHERE id < 50`)
		f.source.Lead(f.from.DSN)
		f.source.Refuse(false)
		release()
		f.finish(t, loaded, func() {})
	})
}

// TestLaterBaseAndFailover: rows were copied under a snapshot that saw transactions which the promoted
// standby never had. None of them was published, so nothing that was stored or applied tells of them; but
// the standby gives their numbers to other transactions, which the target would take for copied.
// It fails when newBase does not remember how far the origin had written (Config.Copied of the reader).
func TestLaterBaseAndFailover(t *testing.T) {
	t.Parallel()
	primary := smallCluster(t)
	f := newFaulty(t, primary.DB(t), pgtest.DB(t), tables, rows)
	f.load(t)
	stop := run(t, f.link)
	f.settle(t)
	stop()
	standby := primary.Copy(t, pgtest.AsStandby())
	f.replayed(t, standby)
	standby.Stop(t)
	f.from.Exec(t, `CREATE TABLE public.elsewhere (v text)`)
	for range 50 {
		f.from.Exec(t, `INSERT INTO public.elsewhere SELECT repeat('x', 1000) FROM generate_series(1, 20)`)
	}
	_, err := f.link.Resync(t.Context(), []schema.Name{{Schema: "public", Name: "account"}}, LoadConfig{})
	must(t, err)
	primary.Kill(t)
	standby.Start(t)
	standby.Promote(t)
	f.moveTo(t, standby)
	for i := range 20 {
		f.from.Exec(t, `INSERT INTO public.account VALUES ($1, 1, 'new')`, 900_000+i)
	}
	f.refused(t, source.ErrForked, "timeline 2", "the histories differ")
}

// TestBaseIsDurable: a snapshot sees a transaction that was committed with synchronous_commit off. A crash
// of the source must not take it away from under the rows that were copied. It fails when newBase does
// not wait until what it sees is on disk.
func TestBaseIsDurable(t *testing.T) {
	t.Parallel()
	cluster := smallCluster(t, pgtest.Setting("wal_writer_delay", "10s"), pgtest.Setting("wal_writer_flush_after", "100MB"))
	f := newFaulty(t, cluster.DB(t), pgtest.DB(t), tables, rows)
	f.load(t)
	stop := run(t, f.link)
	f.settle(t)
	stop()
	f.from.Exec(t, `SET synchronous_commit = off; INSERT INTO public.account VALUES (777777, 1, 'not on disk')`)
	_, err := f.link.Resync(t.Context(), []schema.Name{{Schema: "public", Name: "account"}}, LoadConfig{})
	must(t, err)
	cluster.Kill(t)
	cluster.Start(t)
	stop = run(t, f.link)
	f.equal(t)
	stop()
}

// TestSlotKnowsItsServer: which server a slot was made on is remembered with it, before a reader has
// ever been there. A standby that is promoted in between would be taken for the one that it always was.
// It fails when createSlot does not ask.
func TestSlotKnowsItsServer(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
	f.open(t)
	must(t, f.link.Prepare(t.Context(), 0))
	f.close(t)
	f.open(t)
	ids, err := f.link.identities()
	must(t, err)
	if ids.Origin.System == "" || ids.Origin.Timeline == 0 || ids.Origin.OID == 0 {
		t.Errorf("of the origin is remembered %+v", ids.Origin)
	}
}

// TestSlotDroppedWhileCopying: somebody drops the slot under a copy, which ends and says so; the next
// one begins anew.
func TestSlotDroppedWhileCopying(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), copied, copiedRows)
	f.open(t)
	release := f.hold(t, "public.swap")
	ended := make(chan error, 1)
	go func() {
		_, err := f.link.Load(context.WithoutCancel(t.Context()), onePage)
		ended <- err
	}()
	f.awaitChunks(t, nil, 20)
	conn := f.from.Conn(t)
	pgtest.Eventually(t, "the slot to go", func() bool {
		f.from.Exec(t, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active`, f.name())
		_, err := conn.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, f.name())
		return err == nil
	})
	if err := <-ended; !errors.Is(err, source.ErrSlotGone) || hint.Of(err) == "" || !strings.Contains(err.Error(), fmt.Sprintf("link %s: load", f.name())) {
		t.Errorf("the copy ended with %v, hint %q", err, hint.Of(err))
	}
	release()
	f.close(t)
	f.from.Exec(t, `DELETE FROM public.account WHERE id < 50`)
	if log := f.resume(t); !strings.Contains(log, "slot does not exist") || strings.Contains(log, "copy resumed") {
		t.Errorf("log:\n%s", log)
	}
	run(t, f.link)
	f.equal(t)
}
