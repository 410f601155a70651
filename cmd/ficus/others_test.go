package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

// Failures of other tools that cost data or hours, each acted out on real databases. The whole list is in
// docs/known-failures-of-others.md.

// switched starts a migration of public.t that stops at following, with the given budgets of a promotion.
func switched(t *testing.T, source, target *pgtest.Database, budgets string) *migration {
	t.Helper()
	m := &migration{t: t, dir: t.TempDir(), name: nameFor(source), source: source, target: target}
	m.gateway, m.api = freeAddrs(t)
	file := filepath.Join(t.TempDir(), "book.yaml")
	text := fmt.Sprintf("name: %s\nuntil: following\nfollow: {ack: applied}\ngates: {approval: false, lag_window: 1s, max_lag: 1GB}\npromote: {reads: [], %s}\nrouter: {type: gateway, listen: %q}\n", m.name, budgets, m.gateway)
	must(t, os.WriteFile(file, []byte(text), 0o600))
	m.args = []string{"run", "-f", file, "--source", source.URL, "--target", target.URL, "--listen", m.api}
	m.start()
	m.line("result", map[string]any{"phase": "following"})
	return m
}

// TestUndoneRollbackKeepsTheWayBack: a rollback that a session on the owner holds up takes itself back. The
// owner takes writes again, the old database follows on, and the rollback is still to be had. In Vitess a
// failed ReverseTraffic deleted the workflow (#14276), and a failed switch left both sides denied (#17326). It was seen to fail
// with an undo that leaves the gate closed.
func TestUndoneRollbackKeepsTheWayBack(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO public.t SELECT generate_series(1, 100)`)
	m := switched(t, source, target, `fence_budget: 1s`)
	m.drive("promote", "--wait")

	busy, err := target.Conn(t).Begin(t.Context())
	must(t, err)
	_, err = busy.Exec(t.Context(), `LOCK TABLE public.t IN ROW EXCLUSIVE MODE`) // as a write does, without an id that new slots wait for
	must(t, err)
	m.drive("rollback")
	m.phase(migrate.Promoted, "undone: wait-writers")
	app := target.Conn(t)
	pgtest.Eventually(t, "the owner to take writes", func() bool {
		_, err := app.Exec(t.Context(), `INSERT INTO public.t VALUES (201) ON CONFLICT DO NOTHING`)
		return err == nil
	})
	pgtest.Eventually(t, "the old database to follow", func() bool { return source.Int(t, `SELECT count(*) FROM public.t WHERE id = 201`) == 1 })

	_, err = busy.Exec(t.Context(), `INSERT INTO public.t VALUES (200)`)
	must(t, err)
	must(t, busy.Commit(t.Context())) // the next attempt, which comes by itself, gets through
	pgtest.Eventually(t, "the rollback", func() bool { return m.drive("status")["phase"] == "rolled-back" })
	if n := source.Int(t, `SELECT count(*) FROM public.t`); n != 102 {
		t.Errorf("%d rows of 102 are on the owner", n)
	}
	source.Exec(t, `INSERT INTO public.t VALUES (202)`)
}

// phase waits for a change of phase whose message has a text.
func (m *migration) phase(p migrate.Phase, text string) {
	m.t.Helper()
	pgtest.Eventually(m.t, fmt.Sprintf("phase %s: %s", p, text), func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return slices.ContainsFunc(m.lines, func(l map[string]any) bool {
			return l["type"] == "phase" && l["phase"] == string(p) && strings.Contains(fmt.Sprint(l["message"]), text)
		})
	})
}

// TestCancelByAnotherProcess: the process that closed the fence is killed and its disk lost. Another one opens the fence
// and cancels; nothing is left that stands in the way of the next migration of the same name. In Vitess
// cancelling failed for want of locks that only the first process had (#17620), and tables that a
// cancelled run had left denied stopped the next one (#13998).
func TestCancelByAnotherProcess(t *testing.T) {
	t.Parallel()
	source, target, second := pgtest.DB(t), pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO public.t SELECT generate_series(1, 100)`)
	m := switched(t, source, target, `fence_budget: 1s`)
	freeze, err := target.Conn(t).Begin(t.Context())
	must(t, err)
	_, err = freeze.Exec(t.Context(), `LOCK TABLE ficus.driver IN EXCLUSIVE MODE`)
	must(t, err)
	m.drive("promote")
	m.line("step", map[string]any{"message": "own: started"})
	m.stop(syscall.SIGKILL)
	if _, err := source.Conn(t).Exec(t.Context(), `INSERT INTO public.t VALUES (200)`); err == nil {
		t.Fatal("the source is not fenced: this test is about one that is")
	}
	must(t, freeze.Rollback(t.Context()))

	m.dir = t.TempDir()
	m.start()
	m.line("phase", map[string]any{"phase": "following"})
	m.drive("cancel", "--wait")
	if status := m.wait(); status != 0 {
		t.Errorf("cancelled: status %d", status)
	}
	nothingLeft(t, source)
	nothingLeft(t, target)
	source.Exec(t, `INSERT INTO public.t VALUES (201)`)

	again := switched(t, source, second, `fence_budget: 1s`)
	again.drive("promote", "--wait")
	second.Exec(t, `INSERT INTO public.t VALUES (202)`)
	if n := second.Int(t, `SELECT count(*) FROM public.t`); n != 102 {
		t.Errorf("%d rows of 102 are on the owner", n)
	}
}

// TestBackupsStandInNobodysWay: what pg_dump holds on both databases, an old snapshot and a lock on every
// table, keeps neither the switch nor the way back waiting. In Vitess a backup blocked the switch (#15630).
func TestBackupsStandInNobodysWay(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO public.t SELECT generate_series(1, 100)`)
	m := switched(t, source, target, `fence_budget: 1s`)
	var backups []pgx.Tx
	for _, db := range []*pgtest.Database{source, target} {
		tx, err := db.Conn(t).BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
		must(t, err)
		for _, sql := range []string{`LOCK TABLE public.t IN ACCESS SHARE MODE`, `SELECT count(*) FROM public.t`} {
			_, err = tx.Exec(t.Context(), sql)
			must(t, err)
		}
		backups = append(backups, tx)
	}
	source.Exec(t, `INSERT INTO public.t VALUES (101)`)
	m.drive("promote", "--wait")
	target.Exec(t, `INSERT INTO public.t VALUES (102)`)
	m.drive("rollback", "--wait")
	source.Exec(t, `INSERT INTO public.t VALUES (103)`)
	for i, tx := range backups {
		var n int
		must(t, tx.QueryRow(t.Context(), `SELECT count(*) FROM public.t`).Scan(&n))
		if n != 100 {
			t.Errorf("backup %d sees %d rows", i, n)
		}
		must(t, tx.Rollback(t.Context()))
	}
	if n := source.Int(t, `SELECT count(*) FROM public.t`); n != 103 {
		t.Errorf("%d rows of 103", n)
	}
}

// TestHelperTablesVanish: somebody drops schema ficus on the target. The migration stops and says so, and the
// application goes on. gh-ost went on for days without its helper tables (#763).
func TestHelperTablesVanish(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO public.t SELECT generate_series(1, 100)`)
	m := switched(t, source, target, `fence_budget: 1s`)
	target.Exec(t, `DROP SCHEMA ficus CASCADE`)
	source.Exec(t, `INSERT INTO public.t VALUES (101)`)
	if l := m.line("phase", map[string]any{"phase": "failed"}); !strings.Contains(fmt.Sprint(l["message"]), "ficus.progress") {
		t.Errorf("it stopped, but: %v", l["message"])
	}
	source.Exec(t, `INSERT INTO public.t VALUES (102)`)
}

// TestZeroLagIsNotDrained: a large transaction commits right before the fence closes, and every figure
// of lag may say zero while it is still being decoded. pg_easy_replicate takes that for drained: 1,500,134 rows
// were missing.
func TestZeroLagIsNotDrained(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY)`)
	m := switched(t, source, target, `fence_budget: 1m, drain_budget: 1m, proof_budget: 1m`)
	large, err := source.Conn(t).Begin(t.Context())
	must(t, err)
	m.drive("promote")
	m.line("step", map[string]any{"message": "sequences-ahead: started"})
	_, err = large.Exec(t.Context(), `INSERT INTO public.t SELECT generate_series(1, 150000)`)
	if err == nil {
		err = large.Commit(t.Context())
	}
	m.line("phase", map[string]any{"phase": "promoted"})
	want := int64(150_000)
	if err != nil { // the fence was closed already
		want = 0
	}
	t.Logf("the large transaction: %v", err)
	if n := target.Int(t, `SELECT count(*) FROM public.t`); n != want {
		t.Errorf("%d rows of %d are on the new owner", n, want)
	}
}

// TestGeneratedKey: the key of a table has a generated column, which the stream of servers before 18 does not
// carry. In ghostferry a DELETE of one row emptied a table of four (#457). It fails when a key that the stream does not
// show counts as changed: the copy then begins again for ever.
func TestGeneratedKey(t *testing.T) {
	t.Parallel()
	const table = `CREATE TABLE public.t (tenant int, n int, id int GENERATED ALWAYS AS (tenant * 100 + n) STORED, PRIMARY KEY (tenant, id))`
	for _, major := range []int{0, 18} {
		t.Run(fmt.Sprintf("version_%d", major), func(t *testing.T) {
			t.Parallel()
			source, target := pgtest.DB(t, pgtest.Version(major)), pgtest.DB(t, pgtest.Version(major))
			source.Exec(t, table+`; INSERT INTO public.t SELECT 1, generate_series(1, 4)`)
			target.Exec(t, table) // no pg_dump is needed then, which would have to be as new as the source
			file := filepath.Join(t.TempDir(), "book.yaml")
			text := fmt.Sprintf("name: %s\nsource: %s\ntarget: %s\nschema: {copy: false}\nrouter: {type: none}\n", nameFor(source), source.URL, target.URL)
			must(t, os.WriteFile(file, []byte(text), 0o600))
			p := ficus(t, t.TempDir(), "run", "-f", file, "--until", "following", "--listen", "127.0.0.1:0")
			p.line("phase", map[string]any{"phase": "following"})
			source.Exec(t, `DELETE FROM public.t WHERE id = 101; UPDATE public.t SET n = 9 WHERE id = 102; INSERT INTO public.t VALUES (1, 5)`)
			pgtest.Eventually(t, "the changes to arrive", func() bool { return target.Int(t, `SELECT count(*) FROM public.t WHERE n = 5`) == 1 })
			if got := target.Strings(t, `SELECT string_agg(id::text, ' ' ORDER BY id) FROM public.t`)[0]; got != "103 104 105 109" {
				t.Errorf("the target has the rows %s", got)
			}
		})
	}
}
