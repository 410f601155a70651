package fidelity

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
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/transform"
	"github.com/ficus-migrate/ficus/verify"
)

// settleTimeout bounds how long a pair may need until both sides are compared.
const settleTimeout = 5 * time.Minute

var errStop = errors.New("the test is done")

// A pair is a source and a target, and the link between them.
type pair struct {
	from, to *pgtest.Database
	mappings []transform.Mapping
	link     *link.Link

	// following returns a context that ends when the link fails, and failure how it did.
	following func() (context.Context, context.CancelFunc)
	failure   func() error

	formats map[string]string // of the copy, by table
}

// start copies what is in from to the tables that are in to, and follows.
func start(t *testing.T, from, to *pgtest.Database) *pair {
	t.Helper()
	p := &pair{from: from, to: to, formats: map[string]string{}}
	tables, err := inspect.Tables(t.Context(), from.Conn(t), inspect.Filter{})
	must(t, err)
	p.mappings, err = transform.Compile(tables, nil, nil)
	must(t, err)

	store, err := eventstore.Open(eventstore.Config{Dir: t.TempDir()})
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	p.link, err = link.New(t.Context(), link.Config{
		Name: "ficus_" + from.Name, From: from.DSN, To: to.DSN, Mappings: p.mappings, Store: store, Full: needFull(p.mappings),
		Touch: true,
	})
	must(t, err)
	t.Cleanup(p.link.Close)
	t.Cleanup(func() { must(t, p.link.Drop(context.WithoutCancel(t.Context()))) })

	var mu sync.Mutex
	_, err = p.link.Load(t.Context(), link.LoadConfig{Progress: func(s snapshot.Table) {
		mu.Lock()
		defer mu.Unlock()
		p.formats[s.Name.Name] = s.Format
	}})
	must(t, err)
	p.follow(t)
	return p
}

// needFull chooses as cmd does which tables get REPLICA IDENTITY FULL.
func needFull(mappings []transform.Mapping) []schema.Name {
	var names []schema.Name
	for i := range mappings {
		m := &mappings[i]
		need, _ := transform.NeedsFull(m)
		if m.Source.Identity != schema.IdentityFull && (need || len(m.Source.IdentKey) == 0) {
			names = append(names, m.Source.Name)
		}
	}
	return names
}

// follow runs the link until the test ends.
func (p *pair) follow(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancelCause(context.WithoutCancel(t.Context())) // lives until cleanup
	failed, fail := context.WithCancelCause(t.Context())
	p.following = func() (context.Context, context.CancelFunc) { return context.WithTimeout(failed, settleTimeout) }
	p.failure = func() error { return context.Cause(failed) }
	done := make(chan struct{})
	go func() { // ends with the cleanup below
		defer close(done)
		if err := p.link.Run(ctx); !errors.Is(err, errStop) {
			fail(err)
		}
	}()
	t.Cleanup(func() {
		stop(errStop)
		<-done
		fail(nil)
	})
}

// equal compares both sides, at the same instant, in two independent ways.
func (p *pair) equal(t *testing.T) *verify.Report {
	t.Helper()
	p.catchUp(t)
	report := p.verify(t, nil)
	for _, tr := range report.Tables {
		for _, d := range tr.Samples {
			for _, v := range d.Values {
				t.Errorf("%s %s: %s: column %s: source %s, target %s", tr.Table.Display(), d.Key, d.Kind, v.Column, show(v.Source), show(v.Target))
			}
		}
	}
	if report.Differences != 0 {
		t.Errorf("verification finds %d differences", report.Differences)
	}
	if report.Rows == 0 || !report.SameInstant {
		t.Errorf("verified %d rows, at the same instant: %v", report.Rows, report.SameInstant)
	}
	p.equalBytes(t)
	delta := p.verify(t, func(table schema.Name, yield func(key []string) error) error {
		return p.link.Stream().Touches().ScanTable(apply.TouchedTable(table), 0, func(raw []byte) error {
			key, err := apply.TouchedKey(raw)
			return errors.Join(err, yield(key))
		})
	})
	if delta.Differences != 0 || len(delta.Uncovered) > 0 || delta.Keys == 0 {
		t.Errorf("delta of %d keys finds %d differences and leaves out %v", delta.Keys, delta.Differences, delta.Uncovered)
	}
	return report
}

// catchUp waits until the target has what the source has now. The verification would wait too, but
// it refuses tables that are truncated meanwhile.
func (p *pair) catchUp(t *testing.T) {
	t.Helper()
	ctx, cancel := p.following()
	defer cancel()
	end, err := change.ParseLSN(p.from.Strings(t, "SELECT pg_current_wal_insert_lsn()")[0])
	must(t, err)
	release, err := p.link.StopAt(ctx, end)
	if err != nil {
		t.Fatalf("%v\nlink: %v", err, p.failure())
	}
	release()
}

func (p *pair) verify(t *testing.T, keys verify.Keys) *verify.Report {
	t.Helper()
	ctx, cancel := p.following()
	defer cancel()
	report, err := verify.Run(ctx, verify.Config{
		Source: p.from.DSN, Target: p.to.DSN, Mappings: p.mappings, Follower: p.link, Keys: keys, ShowValues: true,
	})
	if err != nil {
		t.Fatalf("%v\nlink: %v", err, p.failure())
	}
	return report
}

func show(s *string) string {
	if s == nil {
		return "NULL"
	}
	return fmt.Sprintf("%.80q", *s)
}

// equalBytes compares what COPY makes of each table, without any code of the product.
func (p *pair) equalBytes(t *testing.T) {
	t.Helper()
	from, to := p.from.Conn(t), p.to.Conn(t)
	for _, conn := range []*pgx.Conn{from, to} {
		_, err := conn.Exec(t.Context(), `SET timezone = 'Asia/Kathmandu'; SET client_encoding = UTF8; SET search_path = ''; SET lc_monetary = 'C';
			SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3; SET bytea_output = hex`)
		must(t, err)
	}
	for i := range p.mappings {
		m := &p.mappings[i]
		names := make([]string, len(m.Source.Columns)) // also generated ones, which the engine does not write
		for i, c := range m.Source.Columns {
			names[i] = c.Name
		}
		list := schema.QuoteIdents(names)
		only := "ONLY "
		if m.Source.Kind == schema.Partitioned || !m.Source.Inherits {
			only = "" // the target may be partitioned
		}
		query := func(name schema.Name) string {
			return "COPY (SELECT " + list + " FROM " + only + name.String() + " AS r ORDER BY ROW(" + list + `)::text COLLATE "C") TO STDOUT`
		}
		var want, got bytes.Buffer
		_, err := from.PgConn().CopyTo(t.Context(), &want, query(m.Source.Name))
		must(t, err)
		_, err = to.PgConn().CopyTo(t.Context(), &got, query(m.Target))
		must(t, err)
		if !bytes.Equal(want.Bytes(), got.Bytes()) {
			t.Errorf("%s (-source +target):\n%.2000s", m.Source.Name.Display(),
				cmp.Diff(strings.Split(want.String(), "\n"), strings.Split(got.String(), "\n")))
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
