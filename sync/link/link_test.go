package link

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/source"
	"github.com/ficus-migrate/ficus/transform"
)

const tables = `
CREATE TABLE public.account (id int PRIMARY KEY, balance int NOT NULL, note text);
CREATE TABLE public.entry (account int, amount int);
CREATE TABLE public.event (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE public.event_a PARTITION OF public.event FOR VALUES FROM (0) TO (10);
CREATE TABLE public.event_b PARTITION OF public.event DEFAULT;`

const rows = `
INSERT INTO public.account SELECT i, 100, repeat('x', i % 50) FROM generate_series(1, 5000) i;
INSERT INTO public.entry SELECT i % 100, i % 3 FROM generate_series(1, 3000) i;
INSERT INTO public.event SELECT i, i % 20 FROM generate_series(1, 1000) i;`

// A pair is two databases with the same tables, the first with rows.
type pair struct {
	from, to *pgtest.Database
	store    *eventstore.Store
	mappings []transform.Mapping
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{from: pgtest.DB(t), to: pgtest.DB(t)}
	p.from.Exec(t, tables)
	p.to.Exec(t, tables)
	p.from.Exec(t, rows)
	read, err := inspect.Tables(t.Context(), p.from.Conn(t), inspect.Filter{})
	must(t, err)
	p.mappings, err = transform.Compile(read, nil, nil)
	must(t, err)
	p.open(t, t.TempDir())
	return p
}

func (p *pair) open(t *testing.T, dir string) {
	t.Helper()
	var err error
	p.store, err = eventstore.Open(eventstore.Config{Dir: dir})
	must(t, err)
	t.Cleanup(func() { must(t, p.store.Close()) })
}

func (p *pair) link(t *testing.T, ack source.AckPolicy) *Link {
	t.Helper()
	l, err := New(t.Context(), Config{
		Name: "ficus_" + p.from.Name + "_forward", From: p.from.DSN, To: p.to.DSN, Mappings: p.mappings, Store: p.store,
		Full: []schema.Name{{Schema: "public", Name: "entry"}}, Ack: ack, Touch: true,
	})
	must(t, err)
	t.Cleanup(l.Close)
	// A link that a failing test leaves prepared would keep its database from being dropped.
	t.Cleanup(func() { must(t, l.Drop(context.WithoutCancel(t.Context()))) })
	return l
}

// run lets a link follow until the returned function is called, which reports how Run ended.
func run(t *testing.T, l *Link) (stop func()) {
	t.Helper()
	errStop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context())) // lives until cleanup
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel(errStop)
		if err := <-done; !errors.Is(err, errStop) {
			t.Errorf("run ended with %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write makes changes of every kind.
func (p *pair) write(t *testing.T, round int) {
	t.Helper()
	p.from.Exec(t, fmt.Sprintf(`
		UPDATE public.account SET balance = balance + %[1]d WHERE id %% 7 = %[1]d %% 7;
		DELETE FROM public.account WHERE id = 4000 + %[1]d;
		INSERT INTO public.account VALUES (10000 + %[1]d, 1, 'new');
		UPDATE public.account SET id = -id WHERE id = 3000 + %[1]d;
		INSERT INTO public.entry VALUES (%[1]d, 9), (%[1]d, 9);
		UPDATE public.entry SET amount = 8 WHERE ctid = (SELECT ctid FROM public.entry WHERE account = %[1]d AND amount = 9 LIMIT 1);
		DELETE FROM public.entry WHERE ctid = (SELECT ctid FROM public.entry WHERE amount = 1 LIMIT 1);
		UPDATE public.event SET at = at + 7 WHERE id = %[1]d;`, round))
}

// equal waits until the destination has everything, and compares.
func (p *pair) equal(t *testing.T, l *Link) {
	t.Helper()
	end, err := p.lsn(t)
	must(t, err)
	pgtest.Eventually(t, "the link to catch up", func() bool {
		lag, err := l.Lag(t.Context())
		must(t, err)
		return lag.Bytes == 0 || lag.Applied >= end
	})
	for _, sql := range []string{
		`SELECT id, balance, note FROM public.account ORDER BY id`, `SELECT account, amount FROM public.entry ORDER BY 1, 2`,
		`SELECT id, at FROM public.event ORDER BY 1, 2`, `SELECT id, at FROM public.event_a ORDER BY 1, 2`,
	} {
		if diff := cmp.Diff(p.from.Strings(t, sql), p.to.Strings(t, sql)); diff != "" {
			t.Fatalf("%s (-origin +destination):\n%s", sql, diff)
		}
	}
}

func (p *pair) lsn(t *testing.T) (lsn change.LSN, err error) {
	t.Helper()
	err = lsn.UnmarshalText([]byte(p.from.Strings(t, `SELECT pg_current_wal_insert_lsn()`)[0]))
	return lsn, err
}

func TestLoadAndFollow(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	l := p.link(t, source.AckStored)
	ctx := t.Context()

	if err := l.Run(ctx); !errors.Is(err, ErrNotPrepared) {
		t.Fatalf("run before load: %v", err)
	}
	result, err := l.Load(ctx, LoadConfig{Workers: 2})
	must(t, err)
	if result.Rows != 9000 || result.Tables != 3 {
		t.Errorf("loaded %+v", result)
	}
	p.write(t, 1) // before anything runs: the slot keeps it
	stop := run(t, l)
	for i := 2; i < 20; i++ {
		p.write(t, i)
	}
	p.equal(t, l)
	if got := p.from.Strings(t, `SELECT relreplident FROM pg_class WHERE oid = 'public.entry'::regclass`); got[0] != "f" {
		t.Errorf("replica identity %q while the link exists", got)
	}
	stop()

	must(t, l.Drop(ctx))
	must(t, l.Drop(ctx))
	left := p.from.Strings(t, `SELECT slot_name FROM pg_replication_slots WHERE database = current_database() UNION ALL SELECT pubname FROM pg_publication
		UNION ALL SELECT 'identity' FROM pg_class WHERE oid = 'public.entry'::regclass AND relreplident <> 'd'`)
	left = append(left, p.to.Strings(t, `SELECT link FROM ficus.progress UNION ALL SELECT link FROM ficus.manifest UNION ALL SELECT link FROM ficus.manifest_part`)...)
	if len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestRestart: a link goes on where it was, with a new process and the same data directory.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, ack := range []source.AckPolicy{source.AckStored, source.AckApplied} {
		t.Run(ack.String(), func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			l := p.link(t, ack)
			_, err := l.Load(t.Context(), LoadConfig{})
			must(t, err)
			for i := range 4 {
				p.write(t, 10*i)
				stop := run(t, l)
				p.write(t, 10*i+1)
				if i%2 == 0 {
					p.equal(t, l)
				}
				stop()
				p.write(t, 10*i+2)
				again, err := New(t.Context(), l.cfg)
				must(t, err)
				t.Cleanup(again.Close)
				l = again
			}
			stop := run(t, l)
			p.equal(t, l)
			stop()
		})
	}
}

// TestLoadStartsOver: a load that was cut short leaves nothing in the way of the next.
func TestLoadStartsOver(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	l := p.link(t, source.AckStored)
	cut := errors.New("cut")
	ctx, cancel := context.WithCancelCause(t.Context())
	// Without a transaction id, which making the slot would wait for: both databases are of one cluster.
	blocker := p.to.Conn(t)
	_, err := blocker.Exec(ctx, `BEGIN; LOCK TABLE public.entry IN SHARE MODE`)
	must(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := l.Load(ctx, LoadConfig{})
		done <- err
	}()
	pgtest.Eventually(t, "the load to wait for the lock", func() bool {
		select {
		case err := <-done:
			t.Fatalf("load: %v", err)
		default:
		}
		return p.to.Int(t, `SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) > 0
	})
	// Meanwhile nothing may be truncated under the copy.
	if _, err := p.from.Conn(t).Exec(t.Context(), `SET lock_timeout = '50ms'; TRUNCATE public.account`); pg.Code(err) != pg.CodeLockNotAvailable {
		t.Errorf("TRUNCATE while copying: %v, want it to wait", err)
	}
	cancel(cut)
	if err := <-done; err == nil {
		t.Fatal("the load went through a lock")
	}
	_, err = blocker.Exec(t.Context(), `ROLLBACK`)
	must(t, err)

	_, err = l.Load(t.Context(), LoadConfig{})
	must(t, err)
	run(t, l)
	p.write(t, 1)
	p.equal(t, l)
}

// TestPrepareIgnoresWhatCameBefore: a reverse link begins at the epoch that made its origin the owner.
func TestPrepareIgnoresWhatCameBefore(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.to.Exec(t, rows)
	p.from.Exec(t, `CREATE SCHEMA ficus; CREATE TABLE ficus.ownership (only_row boolean PRIMARY KEY, epoch bigint, owner text);
		INSERT INTO ficus.ownership VALUES (true, 1, 'other')`)
	l := p.link(t, source.AckStored)
	ctx := t.Context()
	must(t, l.Prepare(ctx, 2))
	lag, err := l.Lag(ctx)
	must(t, err)
	p.from.Exec(t, `UPDATE public.account SET balance = 7 WHERE id = 1`) // what the other link would apply
	p.to.Exec(t, `UPDATE public.account SET balance = 7 WHERE id = 1`)
	p.from.Exec(t, `UPDATE public.account SET balance = 8 WHERE id = 2`) // a sign that it was ignored
	p.from.Exec(t, `UPDATE ficus.ownership SET epoch = 2, owner = 'this'`)
	must(t, l.Prepare(ctx, 2)) // keeps what is there
	run(t, l)
	p.from.Exec(t, `UPDATE public.account SET balance = 9 WHERE id = 3`)
	pgtest.Eventually(t, "the change after the epoch", func() bool {
		return p.to.Int(t, `SELECT balance FROM public.account WHERE id = 3`) == 9
	})
	if got := p.to.Strings(t, `SELECT id, balance FROM public.account WHERE id <= 2 ORDER BY 1`); !cmp.Equal(got, []string{"1|7", "2|100"}) {
		t.Errorf("before the epoch: %q", got)
	}
	if l.Applied() <= lag.Applied {
		t.Errorf("applied stands at %s", l.Applied())
	}
	var touched []string
	must(t, l.Stream().Touches().ScanTable(apply.TouchedTable(schema.Name{Schema: "public", Name: "account"}), 0, func(raw []byte) error {
		key, err := apply.TouchedKey(raw)
		touched = append(touched, key...)
		return err
	}))
	if diff := cmp.Diff([]string{"3"}, touched); diff != "" {
		t.Errorf("touched keys since the epoch:\n%s", diff)
	}
}

func TestStopAt(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	l := p.link(t, source.AckStored)
	_, err := l.Load(t.Context(), LoadConfig{})
	must(t, err)
	run(t, l)
	p.write(t, 1)
	at, err := p.lsn(t)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	release, err := l.StopAt(ctx, at)
	must(t, err)
	before := p.to.Int(t, `SELECT sum(balance) FROM public.account`)
	p.write(t, 2)
	pgtest.Eventually(t, "the change to be stored", func() bool { return l.Stream().Head() > at })
	if now := p.to.Int(t, `SELECT sum(balance) FROM public.account`); now != before {
		t.Errorf("applied while stopped: %d, then %d", before, now)
	}
	release()
	p.equal(t, l)
}
