package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

// A lostCase is a moment at which the machine that ran a migration is lost with its disk.
type lostCase struct {
	name   string
	freeze string // SQL that makes the promotion stand still on the target, in a transaction without an id: slots wait for one
	frozen string // the step that it then stands in
	verbs  []migrate.Verb

	course migrate.Course
	owner  migrate.Side
	writes bool
	phase  migrate.Phase // that a new process comes to
	long   bool          // tried with FICUS_TEST_LONG only
}

func lostCases() []lostCase {
	return []lostCase{
		{name: "following", long: true, course: migrate.GoesOn, owner: migrate.Source, writes: true, phase: migrate.Following},
		{
			name: "before the point of no return", freeze: `LOCK TABLE ficus.driver IN EXCLUSIVE MODE`, frozen: "own", verbs: []migrate.Verb{migrate.Promote},
			course: migrate.Undoes, owner: migrate.Source, phase: migrate.Following,
		},
		{
			name: "behind the point of no return", freeze: `SELECT pg_advisory_xact_lock(hashtext('ficus.gate'))`, frozen: "open-gate", verbs: []migrate.Verb{migrate.Promote},
			course: migrate.Finishes, owner: migrate.Target, phase: migrate.Promoted,
		},
		{name: "promoted", long: true, verbs: []migrate.Verb{migrate.Promote}, course: migrate.GoesOn, owner: migrate.Target, writes: true, phase: migrate.Promoted},
		{name: "rolled back", long: true, verbs: []migrate.Verb{migrate.Promote, migrate.Rollback}, course: migrate.GoesOn, owner: migrate.Source, writes: true, phase: migrate.RolledBack},
	}
}

// TestRecover: the machine is lost with its disk at moments of a promotion. From the two databases alone
// "ficus recover" tells who owns the data and what comes next, also while one of them does not answer;
// "ficus run" on an empty data directory then does just that, the other way round works afterwards, and
// no row is lost.
func TestRecover(t *testing.T) {
	t.Parallel()
	for _, c := range lostCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.long && os.Getenv("FICUS_TEST_LONG") == "" {
				t.Skip("FICUS_TEST_LONG is not set")
			}
			l := newLost(t)
			l.lose(t, c)
			l.looks(t, c)

			p, client := l.start(t)
			if c.phase == migrate.Following {
				p.line("phase", map[string]any{"phase": c.phase})
			}
			var s migrate.Status
			pgtest.Eventually(t, "the new process to come to "+string(c.phase), func() bool {
				var err error
				s, err = client.Get(t.Context(), l.name)
				return err == nil && s.Phase == c.phase && s.Owner == c.owner && (c.owner == migrate.Source || s.Rollback.Safe)
			})
			if slices.ContainsFunc(s.Phases, func(p migrate.PhaseTime) bool { return p.Phase == migrate.Copying }) {
				t.Error("everything was copied again")
			}
			back := migrate.Promote
			if c.owner == migrate.Target {
				back = migrate.Rollback
			}
			owner := map[migrate.Side]*pgtest.Database{migrate.Source: l.source, migrate.Target: l.target}[c.owner]
			owner.Exec(t, `INSERT INTO public.t VALUES (1000, 'after')`)
			must(t, client.Do(t.Context(), l.name, migrate.Command{Verb: back, Actor: "test", Wait: true}))
			for _, db := range []*pgtest.Database{l.source, l.target} {
				if n := db.Int(t, `SELECT count(*) FROM public.t WHERE id <= 100 OR id = 1000`); n != 101 {
					t.Errorf("%s has %d rows of 101", db.Name, n)
				}
			}
			if status := p.stop(os.Interrupt); status != 0 {
				t.Errorf("interrupted: status %d", status)
			}
		})
	}
}

// A lost migration is one whose data directory is thrown away.
type lost struct {
	source, target *pgtest.Database
	name, file     string
}

func newLost(t *testing.T) *lost {
	t.Helper()
	l := &lost{source: pgtest.DB(t), target: pgtest.DB(t)}
	l.name, l.file = nameFor(l.source), filepath.Join(t.TempDir(), "book.yaml")
	l.source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY, v text); INSERT INTO public.t SELECT i, 'row' FROM generate_series(1, 100) i`)
	must(t, os.WriteFile(l.file, fmt.Appendf(nil, "name: %s\nfollow: {ack: applied}\nrouter: {type: none}\ngates: {lag_window: 1s}\nuntil: following\n", l.name), 0o600))
	return l
}

// start runs ficus with an empty data directory.
func (l *lost) start(t *testing.T) (*process, *api.Client) {
	t.Helper()
	_, address := freeAddrs(t)
	p := ficus(t, t.TempDir(), "run", "-f", l.file, "--source", l.source.URL, "--target", l.target.URL, "--yes", "--listen", address)
	p.line("listening", nil)
	client, err := api.NewClient("http://"+address, "")
	must(t, err)
	t.Cleanup(client.Close)
	return p, client
}

// lose runs the migration to the moment of the case, kills it and what it has on its way.
func (l *lost) lose(t *testing.T, c lostCase) {
	t.Helper()
	p, client := l.start(t)
	p.line("phase", map[string]any{"phase": migrate.Following})
	if c.freeze != "" {
		tx, err := l.target.Conn(t).Begin(t.Context())
		must(t, err)
		_, err = tx.Exec(t.Context(), c.freeze)
		must(t, err)
		defer func() { must(t, tx.Rollback(t.Context())) }()
	}
	for _, verb := range c.verbs {
		must(t, client.Do(t.Context(), l.name, migrate.Command{Verb: verb, Actor: "test", Wait: c.freeze == ""}))
	}
	if c.frozen != "" {
		p.line("step", map[string]any{"message": c.frozen + ": started"})
		pgtest.Eventually(t, "the step to stand still", func() bool {
			return l.target.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ficus/fence' AND wait_event_type = 'Lock'`) > 0
		})
	}
	p.stop(syscall.SIGKILL)
	for _, db := range []*pgtest.Database{l.source, l.target} {
		pgtest.Eventually(t, "the sessions of the dead process to end", func() bool {
			return db.Int(t, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '^ficus/'`) == 0
		})
	}
}

// looks asks "ficus recover", with both databases, and with each of them away.
func (l *lost) looks(t *testing.T, c lostCase) {
	t.Helper()
	const away = "postgresql://postgres@127.0.0.1:1/away"
	out, status := once(t, t.TempDir(), "recover", "--source", l.source.URL, "--target", l.target.URL)
	if status != 0 || out["course"] != string(c.course) || out["owner"] != string(c.owner) || out["writes"] != c.writes || out["migration"] != l.name {
		t.Errorf("recover: status %d, %v", status, out)
	}
	for side, pair := range map[migrate.Side][2]string{migrate.Source: {l.source.URL, away}, migrate.Target: {away, l.target.URL}} {
		out, status := once(t, t.TempDir(), "recover", "--source", pair[0], "--target", pair[1])
		// One database alone must never name a wrong owner, and knows its own gate.
		owner, _ := out["owner"].(string)
		if status != 3 || out["course"] != string(migrate.Waits) || owner != "" && owner != string(c.owner) || out["writes"] == true && (side != c.owner || !c.writes) {
			t.Errorf("recover with the %s alone: status %d, %v", side, status, out)
		}
		if c.writes && side == c.owner && owner != string(c.owner) {
			t.Errorf("recover with the %s alone, which takes writes: %v", side, out)
		}
	}
}
