package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

const testTimeout = pgtest.Patience

// chunkBytes is about how much sync/source packs into a chunk.
const chunkBytes = 256 << 10

// A memLog is a log in memory.
type memLog struct {
	mu      sync.Mutex
	chunks  []eventstore.Chunk
	pins    []pin
	touched map[string]change.LSN
	wake    chan struct{}
}

type pin struct {
	at    change.LSN
	value []byte
}

func newMemLog() *memLog { return &memLog{wake: make(chan struct{}), touched: map[string]change.LSN{}} }

func (l *memLog) add(c eventstore.Chunk, pins ...pin) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.chunks = append(l.chunks, c)
	l.pins = append(l.pins, pins...)
	close(l.wake)
	l.wake = make(chan struct{})
}

// merge makes one chunk of all, so that they are collected before anything is written.
func (l *memLog) merge() {
	var all eventstore.Chunk
	for _, c := range l.chunks {
		all.End, all.Data = c.End, append(all.Data, c.Data...)
	}
	l.chunks = []eventstore.Chunk{all}
}

func (l *memLog) Head() change.LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.headLocked()
}

func (l *memLog) headLocked() change.LSN {
	if len(l.chunks) == 0 {
		return 0
	}
	return l.chunks[len(l.chunks)-1].End
}

func (l *memLog) Touch(_ context.Context, keys []eventstore.Touched) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		columns, err := TouchedKey(k.Key)
		if err != nil {
			return err
		}
		l.touched[k.Table+strings.Join(append([]string{""}, columns...), "/")] = k.At
	}
	return nil
}

func (l *memLog) Read(from change.LSN) logReader {
	return &memReader{log: l, from: min(from, l.Head())}
}

type memReader struct {
	log  *memLog
	from change.LSN
	next int
}

func (r *memReader) Pins() (pins [][]byte, err error) {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	for _, p := range r.log.pins {
		if p.at < r.from {
			pins = append(pins, p.value)
		}
	}
	return pins, nil
}

func (r *memReader) Next(ctx context.Context) (eventstore.Chunk, error) {
	for {
		r.log.mu.Lock()
		chunks, wake := r.log.chunks, r.log.wake
		r.log.mu.Unlock()
		for ; r.next < len(chunks); r.next++ {
			if c := chunks[r.next]; c.End > r.from {
				r.next++
				return c, nil
			}
		}
		select {
		case <-ctx.Done():
			return eventstore.Chunk{}, context.Cause(ctx)
		case <-wake:
		}
	}
}

func (r *memReader) Position() change.LSN {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	for i := r.next - 1; i >= 0; i-- {
		if c := r.log.chunks[i]; !c.Spilled || i+1 == len(r.log.chunks) || r.log.chunks[i+1].End != c.End {
			return c.End
		}
	}
	return r.from
}

func (r *memReader) Close() error { return nil }

// An origin is a source database whose changes go to a log, and the mappings of its tables.
type origin struct {
	*pgtest.Database
	conn     *pgx.Conn
	log      *memLog
	mappings []transform.Mapping
	from     change.LSN
	spill    int // a transaction of more bytes is spilled, in chunks of so many
}

// newOrigin makes a source with the tables of ddl. Rules are those of transform.
func newOrigin(t *testing.T, ddl string, rules map[string]transform.Rule, opts ...pgtest.Option) *origin {
	t.Helper()
	o := &origin{Database: pgtest.DB(t, opts...), log: newMemLog(), spill: 1 << 20}
	o.Exec(t, ddl)
	o.Exec(t, "CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)")
	lsn := o.Strings(t, "SELECT lsn FROM pg_create_logical_replication_slot($1, 'pgoutput')", o.Name)
	var err error
	if o.from, err = change.ParseLSN(lsn[0]); err != nil {
		t.Fatal(err)
	}
	if o.conn, err = o.DSN.Connect(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.conn.Close(context.WithoutCancel(t.Context())) })
	o.inspect(t, rules)
	return o
}

// inspect makes the mappings from the tables as they are now.
func (o *origin) inspect(t *testing.T, rules map[string]transform.Rule) {
	t.Helper()
	tables, err := inspect.Tables(t.Context(), o.conn, inspect.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	o.mappings, err = transform.Compile(tables, rules, func(table schema.Name, expr string) (schema.Type, error) {
		return inspect.Describe(t.Context(), o.conn, table, expr)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tx runs SQL in one transaction.
func (o *origin) tx(t *testing.T, sql string) {
	t.Helper()
	o.Exec(t, "BEGIN; "+sql+"; COMMIT")
}

// pull moves what was committed since the last pull into the log, in one chunk but for large
// transactions, and returns where it ends.
func (o *origin) pull(t *testing.T) change.LSN {
	t.Helper()
	rows, err := o.conn.Query(t.Context(),
		"SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'p')", o.Name)
	if err != nil {
		t.Fatal(err)
	}
	var packed, tx []byte
	var pins []pin
	var end change.LSN
	var begin change.Begin
	var messages [][]byte
	decoder := change.NewDecoder()
	flush := func() {
		if len(packed) > 0 {
			o.log.add(eventstore.Chunk{End: end, Data: packed}, pins...)
		}
		packed, pins = nil, nil
	}
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&data}, func() error {
		data := bytes.Clone(data)
		m, err := decoder.Decode(data)
		if err != nil {
			return err
		}
		messages = append(messages, data)
		tx = change.AppendFrame(tx, data)
		switch m.Kind { //nolint:exhaustive // the others only travel
		case change.KindBegin:
			begin = m.Begin
		case change.KindRelation:
			pins = append(pins, pin{begin.CommitLSN, data})
		case change.KindCommit:
			if len(tx) <= o.spill {
				packed, end = append(packed, tx...), m.Commit.EndLSN
				if len(packed) >= chunkBytes {
					flush()
				}
			} else {
				mine := pins
				flush()
				end = m.Commit.EndLSN
				for i := 0; i < len(messages); {
					var chunk []byte
					for ; i < len(messages) && len(chunk) < o.spill; i++ {
						chunk = change.AppendFrame(chunk, messages[i])
					}
					o.log.add(eventstore.Chunk{End: end, Data: chunk, Spilled: true}, mine...)
					mine = nil
				}
			}
			tx, messages = nil, nil
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	flush()
	return max(end, o.from, o.log.Head())
}

// newTarget makes a destination with the tables of ddl.
func newTarget(t *testing.T, ddl string, opts ...pgtest.Option) *pgtest.Database {
	t.Helper()
	db := pgtest.DB(t, opts...)
	db.Exec(t, ddl)
	conn, err := db.DSN.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if err := Install(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	return db
}

var errTestOver = errors.New("test is over")

// A running is an Applier that runs.
type running struct {
	*Applier
	cancel context.CancelCauseFunc
	done   chan error
}

// start runs an applier of the origin on the target until the test ends.
func (o *origin) start(t *testing.T, target *pgtest.Database, adjust ...func(*Config)) *running {
	t.Helper()
	cfg := Config{DSN: target.DSN, Link: "test", Mappings: o.mappings, Start: o.from}
	for _, f := range adjust {
		f(&cfg)
	}
	a, err := newApplier(cfg, o.log)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Applier: a, done: make(chan error, 1)}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	r.cancel = cancel
	go func() { r.done <- a.Run(ctx) }()
	t.Cleanup(func() { _ = r.stop() })
	return r
}

// stop ends the applier and returns what Run said, nil when it was only asked to end.
func (r *running) stop() error {
	r.cancel(errTestOver)
	err := <-r.done
	r.done <- err
	if errors.Is(err, errTestOver) {
		return nil
	}
	return err
}

// fails waits for Run to end by itself.
func (r *running) fails(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		r.done <- err
		return err
	case <-time.After(testTimeout):
		t.Fatal("applier did not stop")
		return nil
	}
}

func (r *running) wait(t *testing.T, lsn change.LSN) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := r.Wait(ctx, lsn); err != nil {
		t.Fatal(err)
	}
}

// equal compares what the mappings move, as text.
func (o *origin) equal(t *testing.T, target *pgtest.Database) {
	t.Helper()
	for i := range o.mappings {
		m := &o.mappings[i]
		const sorted = `SELECT s::text FROM (%s) AS s ORDER BY s::text COLLATE "C"`
		want := o.Strings(t, fmt.Sprintf(sorted, m.Query()))
		got := target.Strings(t, fmt.Sprintf(sorted, "SELECT "+schema.QuoteIdents(m.TargetColumns())+" FROM "+m.TargetFrom()))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("table %s (-source +target):\n%.2000s", m.Source.Name.Display(), diff)
		}
	}
}

// limit sets the limits of a batch.
func limit(rows int) func(*Config) { return func(c *Config) { c.MaxRows = rows } }
