package link

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/sync/source"
)

// long reports whether tests take the time to repeat themselves often.
func long() bool { return os.Getenv("FICUS_TEST_LONG") != "" }

// rounds is how often a fault is repeated.
func rounds(n int) int {
	if long() {
		return 20 * n
	}
	return n
}

// TestNetwork bends the connections of a link under load. Every fault lasts or is repeated, the link
// must go on by itself, and in the end nothing may be missing and nothing doubled: the source's
// tables without a key would show it.
func TestNetwork(t *testing.T) {
	t.Parallel()
	each := func(n int, most time.Duration, fault func(r *rand.Rand, f *faulty)) func(*testing.T, *faulty) {
		return func(_ *testing.T, f *faulty) {
			r := rand.New(rand.NewPCG(3, 4))
			for range rounds(n) {
				pause(r, most)
				fault(r, f)
			}
		}
	}
	resets := func(d faultpg.Direction, of func(*faulty) *faultpg.Proxy) func(*testing.T, *faulty) {
		return func(t *testing.T, f *faulty) {
			t.Helper()
			r := rand.New(rand.NewPCG(5, 6))
			p := of(f)
			for n := range rounds(4) {
				p.ResetAfter(d, 1+r.Int64N(60_000))
				pgtest.Eventually(t, "the reset", func() bool { return p.Resets() > n })
			}
		}
	}
	src, dst := func(f *faulty) *faultpg.Proxy { return f.source }, func(f *faulty) *faultpg.Proxy { return f.target }
	for _, c := range []struct {
		name  string
		ack   source.AckPolicy
		fault func(*testing.T, *faulty)
	}{
		{"source cut", source.AckStored, each(4, 300*time.Millisecond, func(_ *rand.Rand, f *faulty) { f.source.Cut() })},
		{"target cut", source.AckApplied, each(4, 300*time.Millisecond, func(_ *rand.Rand, f *faulty) { f.target.Reset() })},
		{"both cut", source.AckApplied, each(4, 300*time.Millisecond, func(_ *rand.Rand, f *faulty) { f.target.Cut(); f.source.Reset() })},
		{"change reset in the middle", source.AckStored, resets(faultpg.ToClient, src)},
		{"batch reset in the middle", source.AckStored, resets(faultpg.ToServer, dst)},
		{"slow", source.AckApplied, func(_ *testing.T, f *faulty) {
			f.source.Slow(faultpg.ToClient, 100_000)
			f.target.Slow(faultpg.ToServer, 100_000)
			f.target.Delay(40 * time.Millisecond)
			pause(rand.New(rand.NewPCG(1, 1)), 2*time.Second)
			f.source.Flow()
			f.target.Flow()
		}},
		{"source refuses", source.AckStored, func(_ *testing.T, f *faulty) {
			f.source.Refuse(true)
			f.source.Cut()
			pause(rand.New(rand.NewPCG(1, 1)), time.Second)
			f.source.Refuse(false)
		}},
		{"source stalls past wal_sender_timeout", source.AckStored, stallSource},
		{"target stalls", source.AckStored, func(t *testing.T, f *faulty) {
			t.Helper()
			f.target.Stall(faultpg.ToServer)
			head := f.link.Stream().Head()
			pgtest.Eventually(t, "the link to receive all the same", func() bool { return f.link.Stream().Head() > head+100_000 })
			f.target.Flow()
			f.target.Stall(faultpg.ToClient) // a commit that is not answered
			head = f.link.Stream().Head()
			pgtest.Eventually(t, "the link to receive all the same", func() bool { return f.link.Stream().Head() > head+100_000 })
			f.target.Reset()
			f.target.Flow()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
			f.ack = c.ack
			f.load(t)
			stop := run(t, f.link)
			stopLoad := f.write(t)
			c.fault(t, f)
			stopLoad()
			f.equal(t)
			stop()
		})
	}
}

// stallSource lets nothing through until the server has given its client up.
func stallSource(t *testing.T, f *faulty) {
	t.Helper()
	f.from.Exec(t, `DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET wal_sender_timeout = ''500ms''', current_database()); END$$`)
	f.source.Cut() // the new session has the new setting
	active := `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active`
	pgtest.Eventually(t, "the new session", func() bool { return f.from.Int(t, active, f.name()) == 1 })
	f.source.Stall(faultpg.ToClient)
	f.source.Stall(faultpg.ToServer)
	pgtest.Eventually(t, "the server to give up", func() bool { return f.from.Int(t, active, f.name()) == 0 })
	f.source.Flow()
}

// TestServerKilled ends a server as a crash does, under load, and starts it again.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"source", "target"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			cluster := pgtest.NewCluster(t, pgtest.Setting("wal_level", "logical"), pgtest.Setting("shared_buffers", "32MB"))
			from, to := pgtest.DB(t), cluster.DB(t)
			if side == "source" {
				from, to = cluster.DB(t), pgtest.DB(t)
			}
			f := newFaulty(t, from, to, tables, rows)
			f.ack = source.AckApplied
			f.load(t)
			stop := run(t, f.link)
			stopLoad := f.write(t)
			r := rand.New(rand.NewPCG(8, 9))
			for range rounds(2) {
				pause(r, 800*time.Millisecond)
				cluster.Kill(t)
				cluster.Start(t)
			}
			pause(r, 300*time.Millisecond)
			stopLoad()
			f.equal(t)
			stop()
		})
	}
}

// TestStoreLost: with everything that Ficus keeps on disk gone, a link that acknowledged what was
// applied goes on from what the databases say; one that acknowledged what was stored says which
// changes are lost, and does not skip them.
func TestStoreLost(t *testing.T) {
	t.Parallel()
	lose := func(t *testing.T, ack source.AckPolicy, while func(*testing.T, *faulty)) *faulty {
		t.Helper()
		f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
		f.ack = ack
		f.load(t)
		stop := run(t, f.link)
		stopLoad := f.write(t)
		pause(rand.New(rand.NewPCG(1, 2)), 400*time.Millisecond)
		f.settle(t)
		while(t, f)
		stop()
		stopLoad()
		f.close(t)
		f.dir = t.TempDir()
		f.open(t)
		if err := f.link.Run(t.Context()); !errors.Is(err, ErrNotPrepared) {
			t.Fatalf("run on an empty directory: %v", err)
		}
		return f
	}
	behind := func(t *testing.T, f *faulty) { // stored and not applied
		t.Helper()
		f.target.Stall(faultpg.ToServer)
		head := f.link.Stream().Head()
		pgtest.Eventually(t, "changes that are only stored to be acknowledged, or not", func() bool {
			p, err := f.link.attached()
			must(t, err)
			if p.reader.Status().Durable <= head+200_000 {
				return false
			}
			const acked = `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND confirmed_flush_lsn > $2::text::pg_lsn`
			return f.ack == source.AckApplied || f.from.Int(t, acked, f.name(), (head+100_000).String()) == 1 // the server has heard it
		})
		f.target.Reset()
		f.target.Refuse(true)
		f.target.Flow()
	}
	t.Run("applied", func(t *testing.T) {
		t.Parallel()
		f := lose(t, source.AckApplied, behind)
		f.target.Refuse(false)
		must(t, f.link.Adopt(t.Context(), 0))
		stop := run(t, f.link)
		f.equal(t)
		stop()
	})
	t.Run("applied, idle", func(t *testing.T) {
		t.Parallel()
		f := lose(t, source.AckApplied, func(t *testing.T, f *faulty) { t.Helper(); f.settle(t) })
		f.idleThenLost(t)
	})
	t.Run("stored", func(t *testing.T) {
		t.Parallel()
		f := lose(t, source.AckStored, behind)
		f.target.Refuse(false)
		f.ack = source.AckApplied // what is asked for now does not change what was done
		f.close(t)
		f.open(t)
		err := f.link.Adopt(t.Context(), 0)
		if !errors.Is(err, source.ErrSlotAhead) || !strings.Contains(err.Error(), "are missing") {
			t.Errorf("adopted: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
		defer cancel()
		if err := f.link.Run(ctx); !errors.Is(err, ErrNotPrepared) {
			t.Errorf("run: %v", err)
		}
	})
}

// idleThenLost lets the slot's idle position pass the progress before the link goes on.
func (f *faulty) idleThenLost(t *testing.T) {
	t.Helper()
	must(t, f.link.Adopt(t.Context(), 0))
	stop := run(t, f.link)
	f.equal(t)
	// Nothing of interest happens, and what does is acknowledged.
	f.from.Exec(t, `CREATE TABLE public.elsewhere AS SELECT generate_series(1, 1000)`)
	f.released(t)
	stop()
	f.close(t)
	f.dir = t.TempDir()
	f.open(t)
	must(t, f.link.Adopt(t.Context(), 0))
	stop = run(t, f.link)
	f.equal(t)
	stop()
}

// released waits until the origin may forget all WAL it has now.
func (f *faulty) released(t *testing.T) {
	t.Helper()
	now := f.from.Strings(t, `SELECT pg_current_wal_insert_lsn()`)[0]
	pgtest.Eventually(t, "the slot to let WAL go", func() bool {
		return f.from.Int(t, `SELECT (confirmed_flush_lsn >= $1::pg_lsn)::int FROM pg_replication_slots WHERE slot_name = $2`, now, f.name()) == 1
	})
}

// TestIdleDatabase: a database in which nothing happens lets its neighbours' WAL go.
func TestIdleDatabase(t *testing.T) {
	t.Parallel()
	for _, ack := range []source.AckPolicy{source.AckStored, source.AckApplied} {
		t.Run(ack.String(), func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, "")
			f.ack = ack
			f.load(t)
			stop := run(t, f.link)
			f.to.Exec(t, `CREATE TABLE public.neighbour AS SELECT generate_series(1, 10000)`) // one cluster, one WAL
			f.released(t)
			f.equal(t)
			stop()
		})
	}
}

const (
	// letGo makes the walsender of slot $1 end.
	letGo = `SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE slot_name = $1 AND active`
	// dropSQL drops slot $1, and makeSQL makes it.
	dropSQL = `SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active`
	makeSQL = `SELECT count(pg_create_logical_replication_slot($1, 'pgoutput'))`
)

// TestSlotTaken drops the slot, and makes another of its name, under a link and while none runs. A
// link that went on would skip changes.
func TestSlotTaken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		running, made bool
		want          error
	}{
		{"dropped while running", true, false, source.ErrSlotGone},
		{"dropped while stopped", false, false, source.ErrSlotGone},
		{"made again while running", true, true, source.ErrSlotAhead},
		{"made again while stopped", false, true, source.ErrSlotAhead},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
			f.load(t)
			if !c.running {
				stop := run(t, f.link)
				f.settle(t)
				stop()
			}
			ended := make(chan error, 1)
			if c.running {
				go func() { ended <- f.stopped(t) }()
				f.settle(t)
				f.source.Refuse(true) // the link is kept away while the slot is not there
				f.from.Int(t, letGo, f.name())
			}
			pgtest.Eventually(t, "the slot to be dropped", func() bool { return f.from.Int(t, dropSQL, f.name()) == 1 })
			f.from.Exec(t, `INSERT INTO public.entry VALUES (-5, -5)`) // what the new slot never sends
			if c.made {
				f.from.Int(t, makeSQL, f.name())
			}
			f.from.Exec(t, `INSERT INTO public.entry VALUES (-6, -6)`)
			f.source.Refuse(false)
			if !c.running {
				ended <- f.stopped(t)
			}
			if err := <-ended; !errors.Is(err, c.want) {
				t.Errorf("the link ended with %v", err)
			}
			if n := f.to.Int(t, `SELECT count(*) FROM public.entry WHERE account IN (-5, -6)`); n != 0 {
				t.Errorf("%d rows came through", n)
			}
		})
	}
}

// TestTargetReadOnly: the target refuses every write for a while, as a standby would.
func TestTargetReadOnly(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
	f.load(t)
	stop := run(t, f.link)
	stopLoad := f.write(t)
	f.settle(t)
	f.to.Exec(t, `DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END$$`)
	f.target.Cut() // sessions keep the setting that they began with
	// A commit may have been under way. After it nothing can be.
	progress := func() string { return f.to.Strings(t, `SELECT lsn FROM ficus.progress`)[0] }
	pgtest.Eventually(t, "the link's sessions to end", func() bool {
		return f.to.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/apply' AND datname = current_database() AND state <> 'idle'`) == 0
	})
	at := progress()
	pause(rand.New(rand.NewPCG(1, 2)), time.Second)
	if now := progress(); now != at {
		t.Errorf("progress moved from %s to %s on a read-only target", at, now)
	}
	conn, err := f.to.DSN.Connect(t.Context(), "test", pg.Setting("default_transaction_read_only", "off"))
	must(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	_, err = conn.Exec(t.Context(), `DO $$BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database()); END$$`)
	must(t, err)
	stopLoad()
	f.equal(t)
	stop()
}
