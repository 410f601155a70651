package killtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

// owner asks the program who owns the data.
func (l *life) owner(t *testing.T) (*pgtest.Database, migrate.Status) {
	t.Helper()
	s, err := l.client.Get(t.Context(), l.name)
	if err != nil {
		t.Fatal(err)
	}
	if s.Owner == migrate.Target {
		return l.target, s
	}
	return l.source, s
}

// compare makes sure, while nobody writes, that both databases hold the same, to the test's own SQL,
// and that the owner holds what was acknowledged.
func (l *life) compare(t *testing.T) {
	t.Helper()
	l.settle(t)
	owner, s := l.owner(t)
	l.epochs += s.Epoch - 1
	ctx, cancel := context.WithTimeout(t.Context(), stuck)
	defer cancel()
	for {
		diff := cmp.Diff(digest(t, l.source), digest(t, l.target))
		if diff == "" {
			break
		}
		if pause(ctx, 100*time.Millisecond); ctx.Err() != nil {
			t.Fatalf("the databases differ (-source +target):\n%s\n%s", diff, l.process.tail(40))
		}
	}
	l.check(t, owner)
}

// check compares the owner with the customers' ledger.
func (l *life) check(t *testing.T, owner *pgtest.Database) {
	t.Helper()
	report, err := l.ledger.Check(t.Context(), owner.URL)
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK() || report.Acknowledged == 0 {
		t.Errorf("ledger: %+v\n%v", report, l.ledger.Errors())
	}
}

// digest sums up every table.
func digest(t *testing.T, db *pgtest.Database) []string {
	t.Helper()
	var all []string
	for _, table := range db.Strings(t, `SELECT oid::regclass FROM pg_class WHERE relnamespace IN ('shop'::regnamespace, 'public'::regnamespace) AND relkind = 'r' ORDER BY oid::regclass::text COLLATE "C"`) {
		sum := db.Strings(t, `SELECT count(*), md5(string_agg(md5(r::text), '' ORDER BY md5(r::text))) FROM `+table+` r`)
		all = append(all, table+" "+sum[0])
	}
	return all
}

// end completes or cancels the migration, whichever the owner allows, and is killed meanwhile. Nothing of Ficus is
// left on the owner then, and the customers' transactions are there.
func (l *life) end(t *testing.T, k kill, complete bool) {
	t.Helper()
	owner, s := l.owner(t)
	if complete != (s.Phase == migrate.Promoted) {
		verb := migrate.Promote
		if s.Phase == migrate.Promoted {
			verb = migrate.Rollback
		}
		if err := l.client.Do(t.Context(), l.name, migrate.Command{Verb: verb, Actor: "test", Wait: true}); err != nil {
			t.Fatalf("%s: %v", verb, err)
		}
		owner, _ = l.owner(t)
	}
	verb, last := migrate.Cancel, migrate.Cancelled
	if complete {
		verb, last = migrate.Complete, migrate.Completed
	}
	stop := l.work(t, l.gateway, "")
	mark := l.process.at()
	if err := l.client.Do(t.Context(), l.name, migrate.Command{Verb: verb, Actor: "test"}); err != nil {
		t.Fatalf("%s: %v", verb, err)
	}
	l.reach(t, k, mark)
	l.strike(t, k, false)
	l.over(t, last)
	stop()
	l.check(t, owner)
	left := `SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() UNION ALL SELECT pubname::text FROM pg_publication`
	for _, db := range []*pgtest.Database{l.source, l.target} {
		if found := db.Strings(t, left); len(found) > 0 {
			t.Errorf("%s: left behind %q", db.Name, found)
		}
	}
	if n := owner.Int(t, `SELECT count(*) FROM pg_namespace WHERE nspname = 'ficus'`); n > 0 {
		t.Error("schema ficus is left on the owner")
	}
}

// over waits until ficus has ended with the migration, and starts it again as often as it ends before.
func (l *life) over(t *testing.T, last migrate.Phase) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), stuck, errors.New("stuck"))
	defer cancel()
	for range 10 {
		ended := l.process.next(ctx, 0, func(e line) bool {
			return e.Type == "phase" && e.Phase == migrate.Failed
		})
		if ended { // clients depend on it, so it waits for a person
			l.note(t, "resume at the end")
			_ = l.client.Do(ctx, l.name, migrate.Command{Verb: migrate.Resume, Actor: "test"}) // may be ending
		}
		select {
		case <-l.process.done:
		case <-ctx.Done():
			t.Fatalf("not %s: %v\n%s", last, context.Cause(ctx), l.process.tail(60))
		}
		if l.process.status() == 0 {
			return
		}
		l.note(t, fmt.Sprintf("started again at the end, status %d", l.process.status()))
		l.begin(t)
	}
	t.Fatalf("not %s after ten starts:\n%s", last, l.process.tail(60))
}
