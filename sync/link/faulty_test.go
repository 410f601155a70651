package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/source"
	"github.com/ficus-migrate/ficus/transform"
)

// A faulty pair is two databases and the bad network before each. Its link is opened, closed and
// opened again, on one data directory.
type faulty struct {
	from, to       *pgtest.Database
	source, target *faultpg.Proxy
	mappings       []transform.Mapping
	full           []schema.Name
	ack            source.AckPolicy
	answer         time.Duration // AnswerTimeout
	dir            string

	store  *eventstore.Store
	link   *Link
	marker int
	ended  bool
}

// newFaulty makes a pair with the tables of ddl and fills the source. Nothing runs yet.
func newFaulty(t *testing.T, from, to *pgtest.Database, ddl, fill string) *faulty {
	t.Helper()
	f := &faulty{from: from, to: to, dir: t.TempDir()}
	f.source, f.target = faultpg.New(t, from.DSN), faultpg.New(t, to.DSN)
	ddl += ";\nCREATE TABLE public.marker (id int PRIMARY KEY)"
	from.Exec(t, ddl)
	to.Exec(t, ddl)
	from.Exec(t, fill)
	f.inspect(t.Context(), t)
	t.Cleanup(func() { f.end(t) })
	return f
}

// end drops the link, once. A test whose servers end before the pair does calls it in a cleanup of its own.
func (f *faulty) end(t *testing.T) {
	t.Helper()
	if f.ended {
		return
	}
	f.ended = true
	for _, p := range []*faultpg.Proxy{f.source, f.target} {
		p.Flow()
		p.Cut() // what is frozen, with the locks that it holds
	}
	f.close(t)
	f.open(t)
	must(t, f.link.Drop(context.WithoutCancel(t.Context())))
	f.close(t)
}

func (f *faulty) inspect(ctx context.Context, t *testing.T) {
	t.Helper()
	var err error
	f.mappings, f.full, err = describe(ctx, f.from)
	must(t, err)
}

func describe(ctx context.Context, from *pgtest.Database) (mappings []transform.Mapping, full []schema.Name, err error) {
	conn, err := from.DSN.Connect(ctx, "test")
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	read, err := inspect.Tables(ctx, conn, inspect.Filter{})
	if err != nil {
		return nil, nil, err
	}
	if mappings, err = transform.Compile(read, nil, nil); err != nil {
		return nil, nil, err
	}
	for i := range mappings {
		if need, _ := transform.NeedsFull(&mappings[i]); need {
			full = append(full, mappings[i].Source.Name)
		}
	}
	return mappings, full, nil
}

// name names the link; several pairs share a cluster, and two may share a source.
func (f *faulty) name() string { return "ficus_" + f.to.Name }

// open makes the link of this process, prepared or not, on the pair's data directory.
func (f *faulty) open(t *testing.T) {
	t.Helper()
	var err error
	f.store, err = eventstore.Open(eventstore.Config{Dir: f.dir})
	must(t, err)
	f.link, err = New(context.WithoutCancel(t.Context()), Config{
		Name: f.name(), From: f.source.DSN(f.from.Name), To: f.target.DSN(f.to.Name), Mappings: f.mappings, Store: f.store,
		Full: f.full, Ack: f.ack, Touch: true, AnswerTimeout: f.answer,
	})
	must(t, err)
}

func (f *faulty) close(t *testing.T) {
	t.Helper()
	if f.link == nil {
		return
	}
	f.link.Close()
	must(t, f.store.Close())
	f.link = nil
}

// load opens the link and copies.
func (f *faulty) load(t *testing.T) {
	t.Helper()
	f.open(t)
	_, err := f.link.Load(t.Context(), LoadConfig{Workers: 2})
	must(t, err)
}

// write keeps two sessions busy until the returned function is called, and until they have committed
// a little. They go through no proxy, and come back when the server does.
func (f *faulty) write(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var writers sync.WaitGroup
	var commits atomic.Int64
	for session := range 2 {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(session), 7))
			for n := 1; ctx.Err() == nil; n++ {
				f.writeOnce(ctx, r, session, n, &commits)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		defer writers.Wait()
		defer cancel()
		if !t.Failed() {
			pgtest.Eventually(t, "some transactions to be written", func() bool { return commits.Load() >= 20 })
		}
	})
	t.Cleanup(stop)
	return stop
}

// writeOnce connects and writes until something goes wrong; n makes keys of this connection's own.
func (f *faulty) writeOnce(ctx context.Context, r *rand.Rand, session, n int, commits *atomic.Int64) {
	tick := time.NewTicker(4 * time.Millisecond)
	defer tick.Stop()
	conn, err := f.from.DSN.Connect(ctx, "load")
	if err != nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		key := 1_000_000*(1+session) + 10_000*(n%100) + i
		end := "COMMIT"
		if r.IntN(8) == 0 {
			end = "ROLLBACK"
		}
		_, err := conn.Exec(context.WithoutCancel(ctx), fmt.Sprintf(`BEGIN;
			INSERT INTO public.entry VALUES (%[1]d, 7), (%[1]d, 7);
			INSERT INTO public.account VALUES (%[1]d, 1, repeat(md5('%[1]d'), 1 + %[1]d %% 300));
			UPDATE public.account SET balance = balance + 1 WHERE id = %[2]d;
			DELETE FROM public.entry WHERE ctid = (SELECT ctid FROM public.entry WHERE amount = 1 LIMIT 1);
			SAVEPOINT a;
			DELETE FROM public.account WHERE id = %[3]d;
			%[4]s TO a;
			UPDATE public.event SET at = (at + 7) %% 20 WHERE id = %[5]d;
			%[6]s`, key, 1+r.IntN(900)+1000*session, key-3, "ROLLBACK", 1+r.IntN(400)+500*session, end))
		if err != nil {
			return
		}
		if end == "COMMIT" {
			commits.Add(1)
		}
	}
}

// pause waits for a moment that nobody chooses, at most this long.
func pause(r *rand.Rand, most time.Duration) {
	timer := time.NewTimer(time.Duration(r.Int64N(int64(most))))
	defer timer.Stop()
	<-timer.C
}

// settle waits until the target has everything that the source has committed; nobody writes.
func (f *faulty) settle(t *testing.T) {
	t.Helper()
	f.marker++
	f.from.Exec(t, `INSERT INTO public.marker VALUES ($1)`, f.marker)
	pgtest.Eventually(t, "the target to catch up", func() bool {
		return f.to.Int(t, `SELECT count(*) FROM public.marker WHERE id = $1`, f.marker) == 1
	})
}

// catchUp is settle for as long as very large transactions take, over a link that runs undisturbed. What is
// waited for lies before the end of a transaction: the destination never stands at other positions.
func (f *faulty) catchUp(t *testing.T) {
	t.Helper()
	var end change.LSN
	must(t, end.UnmarshalText([]byte(f.from.Strings(t, `SELECT pg_current_wal_insert_lsn()`)[0])))
	f.marker++
	f.from.Exec(t, `INSERT INTO public.marker VALUES ($1)`, f.marker)
	must(t, f.link.Wait(t.Context(), end))
}

// equal settles and compares: every table as a multiset of rows, and the progress.
func (f *faulty) equal(t *testing.T) {
	t.Helper()
	f.settle(t)
	for i := range f.mappings {
		name := f.mappings[i].Source.Name.String()
		digest := `SELECT count(*), md5(string_agg(md5(r::text), '' ORDER BY r::text COLLATE "C")) FROM ` + name + ` r`
		if cmp.Equal(f.from.Strings(t, digest), f.to.Strings(t, digest)) {
			continue
		}
		sql := `SELECT left(r::text, 100), count(*) FROM ` + name + ` r GROUP BY r::text ORDER BY r::text COLLATE "C"`
		t.Errorf("%s (-source +target):\n%s", name, cmp.Diff(f.from.Strings(t, sql), f.to.Strings(t, sql)))
	}
	var now change.LSN
	must(t, now.UnmarshalText([]byte(f.from.Strings(t, `SELECT pg_current_wal_insert_lsn()`)[0])))
	at, ok, err := apply.Progress(t.Context(), f.to.Conn(t), f.name())
	if err != nil || !ok || at == 0 || at > now {
		t.Errorf("progress %s (%t, %v), the source stands at %s", at, ok, err, now)
	}
}

// stopped runs the link until it stops of itself, and returns why.
func (f *faulty) stopped(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), pgtest.Patience, errors.New("the link did not stop"))
	defer cancel()
	return f.link.Run(ctx)
}
