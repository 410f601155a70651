package soaktest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/pg"
)

const schemaSQL = `
CREATE TABLE public.marker (id int PRIMARY KEY);
CREATE TABLE public.account (id int PRIMARY KEY, balance numeric NOT NULL, email text UNIQUE, note text);
ALTER TABLE public.account ALTER note SET STORAGE EXTERNAL;
CREATE TABLE public.entry (account int, amount int, at timestamptz DEFAULT now());
CREATE TABLE public.event (id int, at int, data jsonb, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE public.event_a PARTITION OF public.event FOR VALUES FROM (0) TO (10);
CREATE TABLE public.event_b PARTITION OF public.event DEFAULT;
CREATE TABLE public.ticket (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n serial, tags text[], at timestamptz DEFAULT clock_timestamp());
CREATE TABLE public.bulk (id bigserial PRIMARY KEY, batch int, payload text);
CREATE INDEX ON public.bulk (batch);
CREATE TABLE public.pair (a int, b text, v double precision, PRIMARY KEY (b, a));
CREATE TABLE public.swap (id int PRIMARY KEY DEFERRABLE, v int);
CREATE TABLE public.parent (id int PRIMARY KEY);
CREATE TABLE public.child (id int PRIMARY KEY, p int REFERENCES public.parent ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE public.scratch (id int PRIMARY KEY, v text);`

const fillSQL = `
INSERT INTO public.account SELECT i, 100, 'u' || i, CASE WHEN i % 50 = 0 THEN repeat(md5(i::text), 100) ELSE md5(i::text) END FROM generate_series(1, 100000) i;
INSERT INTO public.entry SELECT i % 100, i % 3 FROM generate_series(1, 500) i;
INSERT INTO public.event SELECT i, i % 20, '{"a": 1}' FROM generate_series(1, 50000) i;
INSERT INTO public.bulk (batch, payload) SELECT 0, repeat(md5(i::text), 6) FROM generate_series(1, 200000) i;
INSERT INTO public.swap SELECT i, i FROM generate_series(1, 30) i;
INSERT INTO public.parent SELECT generate_series(1, 20); INSERT INTO public.child SELECT i, 1 + i % 20 FROM generate_series(1, 200) i;`

const writers = 4

// load writes to the source over connections of its own, which it makes again when the server is back.
type load struct {
	dsn   pg.DSN
	seed  uint64
	calm  sync.RWMutex // read-locked during a transaction
	ended sync.WaitGroup
	// truncates lets tables be truncated: not while a slot is made, which PostgreSQL then cannot always
	// decode ("could not map filenode"), and not while tables are copied, where TRUNCATE waits.
	truncates     atomic.Bool
	commits, rows atomic.Int64
}

func newLoad(dsn pg.DSN, seed uint64) *load { return &load{dsn: dsn, seed: seed} }

// start writes until ctx ends; wait waits until all has ended.
func (l *load) start(ctx context.Context) {
	for i := range writers {
		l.ended.Go(func() {
			w := &writer{load: l, name: fmt.Sprintf("soak_%d", i), r: rand.New(rand.NewPCG(l.seed, uint64(i)))}
			for ctx.Err() == nil {
				w.session(ctx)
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond): // the server is away
				}
			}
		})
	}
}

func (l *load) wait() { l.ended.Wait() }

// quiet calls fn while no transaction runs.
func (l *load) quiet(fn func()) {
	l.calm.Lock()
	defer l.calm.Unlock()
	fn()
}

// resolve ends what was prepared; nobody writes.
func (l *load) resolve(ctx context.Context) {
	conn, err := l.dsn.Connect(ctx, "load")
	if err != nil {
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, _ := conn.Query(ctx, `SELECT gid FROM pg_prepared_xacts WHERE database = current_database()`)
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return
	}
	for _, gid := range gids {
		if _, err := conn.Exec(ctx, `COMMIT PREPARED '`+gid+`'`); err == nil {
			l.commits.Add(1)
		}
	}
}

// A writer is one session after the other.
type writer struct {
	*load
	name     string
	r        *rand.Rand
	prepared int // whether a transaction waits prepared, and its number
	n        int
}

// session writes over one connection until it fails.
func (w *writer) session(ctx context.Context) {
	conn, err := w.dsn.Connect(ctx, "load", pg.Setting("lock_timeout", "500ms"))
	if err != nil {
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(12 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w.calm.RLock()
		w.transaction(context.WithoutCancel(ctx), conn)
		w.calm.RUnlock()
		if conn.IsClosed() {
			return
		}
	}
}

// transaction runs one, of several statements, and ends it in one way or another. What the database
// refuses (a lock, a duplicate, a deadlock) is no matter.
func (w *writer) transaction(ctx context.Context, conn *pgx.Conn) {
	w.n++
	if w.prepared > 0 && w.r.IntN(4) == 0 {
		end := "COMMIT PREPARED"
		if w.r.IntN(3) == 0 {
			end = "ROLLBACK PREPARED"
		}
		gid := fmt.Sprintf(" '%s_%d'", w.name, w.prepared)
		w.prepared = 0
		if _, err := conn.Exec(ctx, end+gid); err == nil && end == "COMMIT PREPARED" {
			w.commits.Add(1)
		}
		return
	}
	var sql strings.Builder
	sql.WriteString("BEGIN;")
	large := w.r.IntN(400) == 0
	for range 1 + w.r.IntN(5) {
		sql.WriteString(w.statement() + ";")
		if w.r.IntN(6) == 0 {
			sql.WriteString("SAVEPOINT a;" + w.statement() + ";" + w.statement() + ";")
			sql.WriteString([]string{"RELEASE a;", "ROLLBACK TO a;"}[w.r.IntN(2)])
		}
	}
	if large {
		sql.WriteString(w.large())
	}
	prepare := w.prepared == 0 && !large && w.r.IntN(60) == 0
	switch c := w.r.IntN(10); {
	case prepare:
		fmt.Fprintf(&sql, "PREPARE TRANSACTION '%s_%d'", w.name, w.n)
	case c == 0:
		sql.WriteString("ROLLBACK")
	default:
		sql.WriteString("COMMIT")
	}
	results, err := conn.PgConn().Exec(ctx, sql.String()).ReadAll()
	if err != nil {
		_, _ = conn.Exec(ctx, "ROLLBACK") // over a connection that may be gone
		return
	}
	if prepare {
		w.prepared = w.n
	}
	w.tally(results)
}

// tally counts the rows of a transaction that committed.
func (w *writer) tally(results []*pgconn.Result) {
	if tag := results[len(results)-1].CommandTag.String(); tag != "COMMIT" {
		return
	}
	w.commits.Add(1)
	for _, r := range results {
		if !r.CommandTag.Select() {
			w.rows.Add(r.CommandTag.RowsAffected())
		}
	}
}

// large is a transaction that spills, is streamed, and sometimes is in vain.
func (w *writer) large() string {
	undo := ""
	if w.r.IntN(2) == 0 {
		undo = fmt.Sprintf("SAVEPOINT l; INSERT INTO public.bulk (batch, payload) SELECT -1, 'undone' || i FROM generate_series(1, %d) i; ROLLBACK TO l;", 1+w.r.IntN(10_000))
	}
	return fmt.Sprintf(`DELETE FROM public.bulk WHERE batch = %[1]d; %[2]s
		INSERT INTO public.bulk (batch, payload) SELECT %[1]d, repeat('large', 30) FROM generate_series(1, %[3]d);`, 1+w.r.IntN(8), undo, 1000+w.r.IntN(20_000))
}

// statement returns one; keys come from ranges in which sessions meet.
func (w *writer) statement() string {
	n := func(most int) int { return 1 + w.r.IntN(most) }
	k := n(100_000)
	switch w.r.IntN(22) {
	case 0, 1, 2, 3:
		return fmt.Sprintf("UPDATE public.account SET balance = balance + 0.01 WHERE id IN (%d, %d)", n(1000), k)
	case 4:
		return fmt.Sprintf("UPDATE public.account SET note = repeat(md5('%d'), %d) WHERE id = %d", k, n(300), n(2000))
	case 5:
		return fmt.Sprintf("DELETE FROM public.account WHERE id = %[1]d; INSERT INTO public.account VALUES (%[1]d, 1, 'u%[1]d', NULL)", n(2000))
	case 6: // a key moves, and its unique value with it
		return fmt.Sprintf("UPDATE public.account SET id = -id WHERE id IN (%d, -%d)", n(2000), n(2000))
	case 7: // a unique value moves from row to row
		return fmt.Sprintf("UPDATE public.account SET email = NULL WHERE email = 'moved'; UPDATE public.account SET email = 'moved' WHERE id = %d", n(2000))
	case 8, 9:
		return fmt.Sprintf("INSERT INTO public.entry VALUES (%[1]d, 9), (%[1]d, 9); DELETE FROM public.entry WHERE ctid IN (SELECT ctid FROM public.entry ORDER BY at LIMIT 2)", n(100))
	case 10:
		return fmt.Sprintf("UPDATE public.entry SET amount = amount + 1 WHERE ctid = (SELECT min(ctid) FROM public.entry WHERE account = %d)", n(100))
	case 11:
		return fmt.Sprintf(`UPDATE public.event SET at = (at + 7) %% 20, data = data || '{"n": %d}' WHERE id = %d`, k, n(50_000))
	case 12:
		return fmt.Sprintf("DELETE FROM public.event WHERE id = %[1]d; INSERT INTO public.event VALUES (%[1]d, %[2]d, NULL)", n(50_000), n(19))
	case 13, 14:
		return fmt.Sprintf("INSERT INTO public.ticket (tags) VALUES ('{a,NULL,\"%d\"}'); DELETE FROM public.ticket WHERE id < (SELECT max(id) - 5000 FROM public.ticket)", k)
	case 15:
		return fmt.Sprintf("UPDATE public.bulk SET payload = payload || 'x' WHERE id BETWEEN %d AND %d", k, k+n(50))
	case 16:
		return fmt.Sprintf("INSERT INTO public.pair VALUES (%d, 'b%d', random()) ON CONFLICT (a, b) DO UPDATE SET v = pair.v + 'NaN', a = pair.a + 10", n(5), n(300))
	case 17:
		return "UPDATE public.swap SET id = 31 - id, v = v + 1"
	case 18:
		return fmt.Sprintf("UPDATE public.parent SET id = CASE WHEN id > 20 THEN id - 20 ELSE id + 20 END WHERE id %% 20 = %d", n(19))
	case 19:
		return fmt.Sprintf("DELETE FROM public.parent WHERE id = %[1]d; INSERT INTO public.parent VALUES (%[1]d); INSERT INTO public.child SELECT i, %[1]d FROM generate_series(201, 203) i ON CONFLICT DO NOTHING", n(20))
	case 20:
		return fmt.Sprintf("INSERT INTO public.scratch SELECT i, 'v' FROM generate_series(%d, %d) i ON CONFLICT DO NOTHING", n(100), n(200))
	default:
		if w.truncates.Load() && w.r.IntN(20) == 0 {
			return "TRUNCATE public.scratch, public.pair RESTART IDENTITY"
		}
		return fmt.Sprintf("DELETE FROM public.scratch WHERE id %% 7 = %d", n(6))
	}
}
