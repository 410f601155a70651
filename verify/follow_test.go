package verify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
)

// A mirror is the smallest follower that is right: it reads the source's slot by SQL and applies
// what it gets row by row, under a lock that StopAt holds.
type mirror struct {
	src, dst *pgx.Conn
	dec      *change.Decoder
	applied  int // rows

	mu sync.Mutex // guards all of it
}

func newMirror(t *testing.T, src, dst *pgtest.Database) *mirror {
	t.Helper()
	src.Exec(t, "CREATE PUBLICATION p FOR ALL TABLES")
	src.Exec(t, "SELECT pg_create_logical_replication_slot('"+src.Name+"', 'pgoutput')")
	m := &mirror{src: src.Conn(t), dst: dst.Conn(t), dec: change.NewDecoder()}
	return m
}

// StopAt implements Follower.
func (m *mirror) StopAt(ctx context.Context, lsn change.LSN) (release func(), err error) {
	if lsn == 0 {
		m.mu.Lock()
		return sync.OnceFunc(m.mu.Unlock), nil
	}
	return func() {}, m.pullLocked(ctx, lsn.String()) // held since the first call
}

// follow applies until ctx is done.
func (m *mirror) follow(ctx context.Context) error {
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for ctx.Err() == nil {
		<-pace.C
		m.mu.Lock()
		err := m.pullLocked(context.WithoutCancel(ctx), "")
		m.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// pullLocked applies what committed up to lsn, or all there is.
func (m *mirror) pullLocked(ctx context.Context, lsn string) error {
	rows, err := m.src.Query(ctx, `SELECT data FROM pg_logical_slot_get_binary_changes(current_database(), nullif($1, '')::pg_lsn,
		NULL, 'proto_version', '1', 'publication_names', 'p')`, lsn)
	if err != nil {
		return err
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return err
	}
	for _, raw := range messages {
		msg, err := m.dec.Decode(raw)
		if err != nil {
			return err
		}
		switch msg.Kind { //nolint:exhaustive // what the test's load does not do does not come
		case change.KindBegin:
			_, err = m.dst.Exec(ctx, "BEGIN")
		case change.KindCommit:
			_, err = m.dst.Exec(ctx, "COMMIT")
		case change.KindInsert, change.KindUpdate, change.KindDelete:
			m.applied++
			err = m.apply(ctx, msg.Row)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// apply deletes the row's key and inserts its new image.
func (m *mirror) apply(ctx context.Context, r change.Row) error {
	name := schema.Name{Schema: r.Rel.Namespace, Name: r.Rel.Name}
	key := r.Old
	if key == nil {
		key = r.New
	}
	tag, err := m.dst.Exec(ctx, "DELETE FROM "+name.String()+" WHERE id = "+schema.QuoteLiteral(string(key[0].Data)), pgx.QueryExecModeSimpleProtocol)
	if err == nil && (tag.RowsAffected() == 0) != (r.Op == change.Insert) {
		err = fmt.Errorf("%s found %d rows", r.Op, tag.RowsAffected())
	}
	if err != nil || r.Op == change.Delete {
		return err
	}
	values := make([]string, len(r.New))
	for i, v := range r.New {
		if values[i] = "NULL"; v.Kind == change.Text {
			values[i] = schema.QuoteLiteral(string(v.Data))
		}
	}
	_, err = m.dst.Exec(ctx, "INSERT INTO "+name.String()+" VALUES ("+strings.Join(values, ",")+")", pgx.QueryExecModeSimpleProtocol)
	return err
}

const loadTables = `
CREATE TABLE a (id int PRIMARY KEY, n int, note text);
CREATE TABLE b (id int PRIMARY KEY, n int, note text);
INSERT INTO a SELECT i, 0, '' FROM generate_series(1, 5000) i;
INSERT INTO b SELECT i, 0, '' FROM generate_series(1, 50) i;
`

// load changes random rows of both tables until ctx is done, several rows to a transaction.
func load(ctx context.Context, conn *pgx.Conn, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	pace := time.NewTicker(10 * time.Millisecond) // the mirror is slow
	defer pace.Stop()
	for ctx.Err() == nil {
		<-pace.C
		tx, err := conn.Begin(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		for range 1 + rnd.IntN(5) {
			table, rows := "a", 5000
			if rnd.IntN(3) == 0 {
				table, rows = "b", 50
			}
			id := 1 + rnd.IntN(rows)
			sql := fmt.Sprintf("UPDATE %s SET n = n + 1, note = repeat('x', n %% 20) WHERE id = %d", table, id)
			switch rnd.IntN(6) {
			case 0:
				sql = fmt.Sprintf("DELETE FROM %s WHERE id = %d", table, id)
			case 1:
				sql = fmt.Sprintf("INSERT INTO %s VALUES (%d, %d, NULL) ON CONFLICT DO NOTHING", table, id, seed)
			}
			if _, err = tx.Exec(context.WithoutCancel(ctx), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				break
			}
		}
		if err != nil {
			if gone := tx.Rollback(context.WithoutCancel(ctx)); gone != nil || pg.Code(err) != "40P01" { // two of them in each other's way
				return errors.Join(err, gone)
			}
			continue
		}
		if err := tx.Commit(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// While three sessions write and a mirror follows, no comparison may find a difference, and a
// change that the mirror did not make must be found every time.
func TestNoFalseAlarmUnderLoad(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, loadTables)
	m, stop := loaded(t, src, dst, 3)
	cfg := config(t, src, dst)
	cfg.Follower, cfg.ChunkRows, cfg.ShowValues = m, 1000, true

	defer stop()
	end := time.Now().Add(long(0))
	for i := 0; i < 12 || time.Now().Before(end); i++ {
		if cfg.Keys = nil; i%3 == 2 {
			cfg.Keys = touched(map[string][][]string{"a": ids(1, 5000), "b": {nil}})
		}
		r := run(t, cfg)
		if r.Differences != 0 || !r.SameInstant || r.LSN == 0 || r.Paused <= 0 {
			t.Fatalf("comparison %d: same instant %t at %s, paused %s: %s", i, r.SameInstant, r.LSN, r.Paused, alarms(r))
		}
	}
	cfg.Keys = nil
	dst.Exec(t, "INSERT INTO b VALUES (0, 0, 'nobody made this')")
	for range 3 {
		if got := summary(run(t, cfg).table(t, "b")); got != "0 1 0 [extra id=0 []]" {
			t.Errorf("after a stranger's insert: %s", got)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.applied < 100 {
		t.Errorf("only %d rows were changed meanwhile: this proves little", m.applied)
	}
	if got := src.Strings(t, "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'ficus_verify_%' AND database = current_database()"); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

// alarms lists what differs, with values.
func alarms(r *Report) string {
	var b strings.Builder
	for i := range r.Tables {
		fmt.Fprintln(&b, r.Tables[i].Table, summary(r.Tables[i]))
		for _, s := range r.Tables[i].Samples {
			for _, v := range s.Values {
				fmt.Fprintf(&b, "  %s %s: %s on the source, %s on the target\n", s.Key, v.Column, show(v.Source), show(v.Target))
			}
		}
	}
	return b.String()
}

// A Follower that does not stop where it says is what the comparison is there to find.
func TestFindsFollowerThatStopsLate(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, loadTables)
	cfg := config(t, src, dst)
	cfg.Follower = stopFunc(func(context.Context, change.LSN) (func(), error) {
		dst.Exec(t, "UPDATE a SET n = 1 WHERE id = 17") //nolint:contextcheck // a test's helper has its own
		return func() {}, nil
	})
	if got := summary(run(t, cfg).table(t, "a")); got != "0 0 1 [changed id=17 [n]]" {
		t.Errorf("got %s", got)
	}
}

func TestFollowerFails(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, loadTables)
	cfg := config(t, src, dst)
	broken := errors.New("applier stopped")
	cfg.Follower = stopFunc(func(context.Context, change.LSN) (func(), error) { return nil, broken })
	if _, err := Run(t.Context(), cfg); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

type stopFunc func(context.Context, change.LSN) (func(), error)

func (f stopFunc) StopAt(ctx context.Context, lsn change.LSN) (func(), error) { return f(ctx, lsn) }

// A cluster of its own: transaction ids are the cluster's, so nobody else's tests may commit here.
func TestAtRest(t *testing.T) {
	t.Parallel()
	cluster := pgtest.NewCluster(t, pgtest.Setting("wal_level", "replica"), pgtest.Setting("autovacuum", "off"))
	src, dst := cluster.DB(t), cluster.DB(t)
	src.Exec(t, loadTables)
	dst.Exec(t, loadTables)
	cfg := config(t, src, dst)

	if r := run(t, cfg); r.Differences != 0 || !r.SameInstant {
		t.Errorf("quiet: %d differences, same instant %t", r.Differences, r.SameInstant)
	}

	ctx, stop := context.WithCancel(t.Context())
	conn := src.Conn(t)
	done := make(chan error, 1)
	go func() { done <- load(ctx, conn, 1) }()
	pgtest.Eventually(t, "a comparison that says the instants differ", func() bool { return !run(t, cfg).SameInstant })
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	cfg.Follower = stopFunc(func(context.Context, change.LSN) (func(), error) { return func() {}, nil })
	_, err := Run(t.Context(), cfg)
	if err == nil || !strings.Contains(hint.Of(err), "wal_level") {
		t.Errorf("without logical decoding: error %v, hint %q", err, hint.Of(err))
	}
}

func TestSlotWaitIsBounded(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, loadTables)
	cfg := config(t, src, dst)
	cfg.Follower = stopFunc(func(context.Context, change.LSN) (func(), error) { return func() {}, nil })
	writer := src.Conn(t)
	if _, err := writer.Exec(t.Context(), "BEGIN; UPDATE a SET n = 7 WHERE id = 1"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := Run(ctx, cfg); err == nil {
		t.Error("no error, although a transaction kept the slot from being made")
	}
	pgtest.Eventually(t, "no slot left behind", func() bool {
		return src.Int(t, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'ficus_verify_%' AND database = current_database()") == 0
	})
}
