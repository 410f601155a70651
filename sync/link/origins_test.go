package link

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/source"
)

// TestSourceIsSubscriber: what PostgreSQL's own replication brings to the source is the source's, and
// moves like everything else: rows from before the slot, while following, and large transactions.
//
// It fails when pgoutput is asked for origin 'none'.
func TestSourceIsSubscriber(t *testing.T) {
	t.Parallel()
	upstream := pgtest.DB(t, pgtest.Version(17)) // from 16 on pgoutput can be told to leave such rows out
	f := newFaulty(t, pgtest.DB(t, pgtest.Version(17)), pgtest.DB(t), tables, rows)
	f.from.Exec(t, "ALTER DATABASE "+f.from.Name+" SET logical_decoding_work_mem = '64kB'")
	upstream.Exec(t, tables+"CREATE PUBLICATION up FOR TABLE public.account")
	slot := "up_" + f.from.Name // by hand: making one from within the same cluster would wait for itself
	upstream.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot)
	f.from.Exec(t, fmt.Sprintf("CREATE SUBSCRIPTION %s CONNECTION %s PUBLICATION up WITH (create_slot = false, slot_name = %s, copy_data = false)",
		slot, schema.QuoteLiteral(upstream.URL), slot))
	t.Cleanup(func() {
		f.from.Exec(t, "ALTER SUBSCRIPTION "+slot+" DISABLE")
		f.from.Exec(t, "ALTER SUBSCRIPTION "+slot+" SET (slot_name = NONE)")
		f.from.Exec(t, "DROP SUBSCRIPTION "+slot)
	})
	arrived := func(db *pgtest.Database, id int) {
		t.Helper()
		pgtest.Eventually(t, fmt.Sprintf("row %d in %s", id, db.Name), func() bool {
			return db.Int(t, "SELECT count(*) FROM public.account WHERE id = $1", id) == 1
		})
	}
	upstream.Exec(t, "INSERT INTO public.account VALUES (100001, 1, 'before the slot')")
	arrived(f.from, 100001)
	f.load(t)
	stop := run(t, f.link)
	upstream.Exec(t, "INSERT INTO public.account VALUES (100002, 1, 'followed'); UPDATE public.account SET balance = 2 WHERE id = 100001")
	upstream.Exec(t, "INSERT INTO public.account SELECT i, 3, repeat('l', 100) FROM generate_series(110000, 115000) i")
	arrived(f.from, 115000)
	f.equal(t)
	stop()
	if n := f.to.Int(t, "SELECT count(*) FROM public.account WHERE id > 100000"); n != 5003 {
		t.Errorf("%d rows that the subscription brought are at the target, want 5003", n)
	}
}

// TestNoLoop: a reverse link whose slot was made while the forward link still ran carries nothing back
// of what that applied, before and after its slot, large transactions included; and once it runs, it
// carries what is written at its origin, once. Table entry has no key: a change that came back would
// be a row too many.
//
// It fails when the collector does not ignore what came before the epoch.
func TestNoLoop(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, db := range []*pgtest.Database{p.from, p.to} {
		db.Exec(t, "ALTER DATABASE "+db.Name+" SET logical_decoding_work_mem = '64kB'")
		db.Exec(t, `CREATE SCHEMA ficus; CREATE TABLE ficus.ownership (only_row boolean PRIMARY KEY, epoch bigint, owner text);
			INSERT INTO ficus.ownership VALUES (true, 1, 'source')`)
	}
	forward := p.link(t, source.AckStored)
	_, err := forward.Load(t.Context(), LoadConfig{})
	must(t, err)
	stop := run(t, forward)
	p.write(t, 1)

	cfg := forward.cfg
	cfg.Name, cfg.From, cfg.To = "ficus_"+p.from.Name+"_reverse", cfg.To, cfg.From
	cfg.Mappings = slices.Clone(cfg.Mappings)
	for i := range cfg.Mappings {
		cfg.Mappings[i].Source.OID = 0 // the other database has numbers of its own
	}
	reverse, err := New(t.Context(), cfg)
	must(t, err)
	t.Cleanup(reverse.Close)
	t.Cleanup(func() { must(t, reverse.Drop(context.WithoutCancel(t.Context()))) })
	must(t, reverse.Prepare(t.Context(), 2))
	p.write(t, 2)
	p.from.Exec(t, "INSERT INTO public.entry SELECT 7, 70 FROM generate_series(1, 5000)")
	p.from.Exec(t, "INSERT INTO public.account SELECT i, 1, repeat('l', 100) FROM generate_series(50000, 55000) i")
	p.equal(t, forward)
	stop() // an owner has one link that leaves it, and it runs alone
	p.to.Exec(t, "UPDATE ficus.ownership SET epoch = 2, owner = 'target'")

	stop = run(t, reverse)
	p.to.Exec(t, "INSERT INTO public.entry VALUES (8, 80); UPDATE public.account SET balance = 5 WHERE id = 50001")
	pgtest.Eventually(t, "the new owner's changes", func() bool {
		return p.from.Int(t, "SELECT count(*) FROM public.entry WHERE amount = 80") == 1
	})
	back := &pair{from: p.to, to: p.from}
	back.equal(t, reverse) // while it runs: other tests write to the cluster, too
	stop()
	if lag, err := reverse.Lag(t.Context()); err != nil || lag.Rows != 2 {
		t.Errorf("the reverse link wrote %d rows, %v; want the 2 of the new owner", lag.Rows, err)
	}
}
