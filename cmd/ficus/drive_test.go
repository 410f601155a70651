package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/fence"
	"github.com/ficus-migrate/ficus/schema"
)

// A migration is a ficus run of two databases in a test.
type migration struct {
	*process

	t        *testing.T
	dir, api string
	gateway  string
	args     []string
	name     string
	source   *pgtest.Database
	target   *pgtest.Database
}

// move starts ficus run PLAYBOOK between two databases.
func move(t *testing.T, playbook string, source, target *pgtest.Database, more ...string) *migration {
	t.Helper()
	m := &migration{t: t, dir: t.TempDir(), name: nameFor(source), source: source, target: target}
	m.gateway, m.api = freeAddrs(t)
	m.args = append([]string{"run", playbook, "--name", m.name, "--source", source.URL, "--target", target.URL, "--gateway-listen", m.gateway, "--listen", m.api}, more...)
	m.start()
	return m
}

// nameFor returns a name for a migration that no other test uses: the names of slots belong to a server.
func nameFor(source *pgtest.Database) string { return source.Name[:min(len(source.Name), 40)] }

// start runs the command, once more after it ended.
func (m *migration) start() {
	m.t.Helper()
	m.process = ficus(m.t, m.dir, m.args...)
	m.line("listening", nil)
}

// drive asks something of the migration that has to work, and returns the result.
func (m *migration) drive(verb string, more ...string) map[string]any {
	m.t.Helper()
	args := slices.Concat([]string{verb, m.name, "--api", "http://" + m.api}, more)
	out, status := once(m.t, m.t.TempDir(), args...)
	if status != 0 || out["type"] != "result" {
		m.t.Fatalf("ficus %s: status %d, %v", strings.Join(args, " "), status, out)
	}
	return out
}

// waits waits until the migration's status shows the phase and what it waits for.
func (m *migration) waits(phase, what string) {
	m.t.Helper()
	pgtest.Eventually(m.t, fmt.Sprintf("phase %s, waiting for %q", phase, what), func() bool {
		s := m.drive("status")
		return s["phase"] == phase && (s["waiting_for"] == what || what == "" && s["waiting_for"] == nil)
	})
}

// nothingLeft wants nothing of Ficus to be in a database, and no session of it.
func nothingLeft(t *testing.T, db *pgtest.Database) {
	t.Helper()
	pgtest.Eventually(t, "everything of Ficus to be gone from "+db.Name, func() bool {
		return !slices.ContainsFunc(db.Strings(t, objects), func(s string) bool { return strings.Contains(s, "ficus") })
	})
}

// bytesOf sums up a table, whatever is in it.
func bytesOf(t *testing.T, db *pgtest.Database, table string) string {
	t.Helper()
	return db.Strings(t, `SELECT count(*) || ' ' || coalesce(sum(hashtext(x::text)::bigint), 0) FROM `+table+` x`)[0]
}

// TestApproval: without --yes a person decides, and may be asked again after an interrupt.
func TestApproval(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)`)
	m := move(t, "cluster-move", source, target, "-p", "reads=100")
	m.waits("reads-switched", "approval")
	refused(t, m.dir, 3, "rollback: not possible now", "these are possible: approve", "rollback", m.name, "--api", "http://"+m.api)
	refused(t, m.dir, 3, "complete: not possible now", "these are possible: approve", "complete", m.name, "--api", "http://"+m.api)
	refused(t, m.dir, 3, "resume: not possible now", "approve", "resume", m.name, "--api", "http://"+m.api)
	refused(t, m.dir, 3, "no such migration", `did you mean "`+m.name+`"?`, "status", m.name+"x", "--api", "http://"+m.api)
	refused(t, m.dir, 4, "waits for an approval", "ficus approve", "watch", m.name, "--until", "promoted", "--api", "http://"+m.api)

	if status := m.stop(os.Interrupt); status != 4 {
		t.Errorf("interrupted while waiting for an approval: exit status %d", status)
	}
	last := m.lines[len(m.lines)-1]
	if last["type"] != "result" || last["waiting_for"] != "approval" || last["status"] != 4.0 || !strings.Contains(fmt.Sprint(last["hint"]), "ficus approve") {
		t.Errorf("last line %v", last)
	}
	source.Exec(t, `INSERT INTO t VALUES (101)`)
	m.start()
	m.waits("reads-switched", "approval")
	m.drive("approve")
	if r := m.line("result", map[string]any{"phase": "promoted"}); r["rollback_safe"] != true {
		t.Errorf("result %v", r)
	}
	if n := target.Int(t, `SELECT count(*) FROM t`); n != 101 {
		t.Errorf("%d rows", n)
	}
}

// TestUntilPauseCancel: stop at a phase, pause, resume, give up; nothing is left, and writes are open.
func TestUntilPauseCancel(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "pgbench")
	check := unchanged(t, source)
	m := move(t, "upgrade", source, target, "--yes", "--until", "following")
	m.line("result", map[string]any{"phase": "following"})
	m.waits("following", "promote")

	m.drive("pause", "--wait")
	if s := m.drive("status"); s["paused"] != true || s["waiting_for"] != "resume" {
		t.Errorf("status %v", s)
	}
	source.Exec(t, `UPDATE pgbench_history SET delta = -1 WHERE tid = 1; DELETE FROM pgbench_history WHERE tid = 2`)
	want := bytesOf(t, source, "pgbench_history")
	if bytesOf(t, target, "public.pgbench_history") == want {
		t.Error("a paused link applies changes")
	}
	refused(t, m.dir, 3, "promote: not possible now", "resume", "promote", m.name, "--api", "http://"+m.api)
	m.drive("resume")
	pgtest.Eventually(t, "the change to arrive", func() bool { return bytesOf(t, target, "public.pgbench_history") == want })

	m.drive("cancel", "--wait")
	if status := m.wait(); status != 0 {
		t.Errorf("cancelled run: exit status %d", status)
	}
	if last := m.lines[len(m.lines)-1]; last["type"] != "result" || last["phase"] != "cancelled" {
		t.Errorf("last line %v", last)
	}
	check()
	nothingLeft(t, target)
	source.Exec(t, `UPDATE pgbench_history SET delta = 0; INSERT INTO pgbench_branches VALUES (7)`)
	target.Exec(t, `UPDATE pgbench_history SET delta = 0`)
}

// TestPromoteWhenTold: a migration that stopped at following goes on to the promotion.
func TestPromoteWhenTold(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY, v text); INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 100)`)
	m := move(t, "cluster-move", source, target, "--yes", "--until", "following", "-p", "reads=100")
	m.line("result", map[string]any{"phase": "following"})
	if s := m.drive("promote", "--wait"); s["phase"] != "promoted" || s["owner"] != "target" {
		t.Errorf("promote: %v", s)
	}
	if v := m.drive("verify"); v["differences"] != 0.0 || v["rows"] != 100.0 {
		t.Errorf("verify: %v", v)
	}
	target.Exec(t, `INSERT INTO t (v) VALUES ('after')`)
	refused(t, m.dir, 3, "cancel: not possible now", "rollback", "cancel", m.name, "--api", "http://"+m.api)

	// The old database is fenced, and stays so against a careless cleanup.
	m.drive("complete", "--wait")
	if status := m.wait(); status != 0 {
		t.Errorf("completed run: exit status %d", status)
	}
	const given = `SELECT last_value FROM t_id_seq`
	if old, now := source.Int(t, given), target.Int(t, given); old < now {
		t.Errorf("the old database's sequence stands at %d, the new one's at %d", old, now)
	}
	refused(t, m.dir, 3, "the other database owns the data", "--force", "cleanup", "--source", source.URL)
	if _, err := source.Conn(t).Exec(t.Context(), `INSERT INTO public.t (v) VALUES ('lost')`); err == nil {
		t.Error("the old database takes writes")
	}
	if out, status := once(t, m.dir, "cleanup", "--source", source.URL, "--force"); status != 0 || out["removed"] == 0.0 {
		t.Errorf("cleanup --force: status %d, %v", status, out)
	}
	source.Exec(t, `INSERT INTO t (v) VALUES ('open')`)
	for _, db := range []*pgtest.Database{source, target} {
		nothingLeft(t, db)
	}
}

// TestCleanup removes what a killed run left, on both sides, and the same command begins anew.
func TestCleanup(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "pgbench")
	check := unchanged(t, source)
	follow := append([]string{"follow", "--name", nameFor(source)}, pair(source.URL, target.URL)...)
	dir := t.TempDir()
	p := ficus(t, dir, follow...)
	p.line("phase", map[string]any{"phase": "following"})
	clean := append([]string{"cleanup"}, pair(source.URL, target.URL)...)
	refused(t, dir, 3, "is in use", "--force", clean...)
	p.stop(syscall.SIGKILL)
	pgtest.Eventually(t, "the slot to be free", func() bool {
		return source.Int(t, `SELECT count(*) FROM pg_replication_slots WHERE active AND database = current_database()`) == 0
	})

	if out, status := once(t, dir, clean...); status != 0 || number(out["removed"]) < 4 {
		t.Errorf("cleanup: status %d, %v", status, out)
	}
	check()
	nothingLeft(t, target)
	if out, status := once(t, dir, clean...); status != 0 || out["removed"] != 0.0 {
		t.Errorf("cleanup of clean databases: status %d, %v", status, out)
	}
	source.Exec(t, `UPDATE pgbench_accounts SET abalance = 1 WHERE aid = 1`)
	target.Exec(t, `DROP TABLE pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers`)
	again := ficus(t, dir, follow...)
	again.line("phase", map[string]any{"phase": "following"})
	if got, want := bytesOf(t, target, "pgbench_accounts"), bytesOf(t, source, "pgbench_accounts"); got != want {
		t.Errorf("begun anew: %s, want %s", got, want)
	}
}

// A status on one screen names who stands in the way of the fence.
func TestStatusNamesBlockers(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := &app{stdout: &out}
	a.showStatus(migrate.Status{Name: "shop", Phase: migrate.Promoting, Blockers: []migrate.Blocker{
		{PID: 4711, Role: "app", Application: "report", State: "idle in transaction", Age: 90 * time.Second, Query: "UPDATE t SET a = ?"},
		{GID: "tx-1", Role: "app", Age: time.Second},
	}})
	for _, want := range []string{"blocked by", "pid 4711 (app, report, idle in transaction, for 1m30s): UPDATE t SET a = ?", `prepared transaction "tx-1" (app, for 1s)`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("status shows\n%s\nwant %q in it", out.String(), want)
		}
	}
}

// TestKilledWhileItEnds: a migration that was told to end, and was killed when nothing of it was left in the databases,
// ends when it is started again.
//
// It fails when databases without Ficus are taken for those of a migration that somebody cleaned away.
func TestKilledWhileItEnds(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)`)
	m := move(t, "cluster-move", source, target, "--yes", "--until", "following")
	m.line("result", map[string]any{"phase": "following"})
	holds, err := source.Conn(t).Begin(t.Context()) // the schema cannot go
	must(t, err)
	_, err = holds.Exec(t.Context(), `SELECT count(*) FROM ficus.ownership`)
	must(t, err)
	m.drive("cancel")
	m.line("step", map[string]any{"message": "uninstall: started"})
	m.stop(syscall.SIGKILL)
	must(t, holds.Rollback(t.Context()))
	clean := append([]string{"cleanup"}, pair(source.URL, target.URL)...)
	pgtest.Eventually(t, "the databases to be clean", func() bool {
		_, status := once(t, t.TempDir(), clean...)
		return status == 0
	})
	m.start()
	m.line("phase", map[string]any{"phase": "cancelled"})
	if status := m.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// TestKilledAfterItEnded: a migration whose process was killed when the end was on record, and not yet told, is told of by
// the next process, which begins no other one.
//
// It fails when a journal with an end is taken for that of an earlier migration.
func TestKilledAfterItEnded(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY)`)
	m := move(t, "cluster-move", source, target, "--yes", "--until", "following")
	m.line("result", map[string]any{"phase": "following"})
	m.drive("cancel")
	if status := m.wait(); status != 0 {
		t.Fatalf("cancelled with exit status %d", status)
	}
	a := &app{dataDir: m.dir}
	store, err := a.openStore(slog.New(slog.DiscardHandler))
	must(t, err)
	must(t, store.Bucket(generations).Delete(m.name)) // what is written last
	must(t, store.Close())
	m.process = ficus(t, m.dir, m.args...)
	m.line("result", map[string]any{"phase": "cancelled"})
	if status := m.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	target.Exec(t, `DROP TABLE t`)
	m.start()
	m.line("result", map[string]any{"phase": "following"})
}

// TestCleanupInTheMiddle: a promotion that was killed half way decides what may be opened to writes.
func TestCleanupInTheMiddle(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	sides := map[migrate.Side]*fence.Database{}
	for side, db := range map[migrate.Side]*pgtest.Database{migrate.Source: source, migrate.Target: target} {
		db.Exec(t, `CREATE TABLE t (id int PRIMARY KEY)`)
		f, err := fence.New(t.Context(), fence.Config{DSN: db.DSN, Self: side, Tables: []schema.Name{{Schema: "public", Name: "t"}}})
		must(t, err)
		t.Cleanup(f.Close)
		must(t, f.Install(t.Context(), "shop", migrate.Source))
		must(t, f.Arm(t.Context()))
		sides[side] = f
	}
	both := append([]string{"cleanup"}, pair(source.URL, target.URL)...)
	must(t, sides[migrate.Source].CloseGate(t.Context()))
	refused(t, t.TempDir(), 3, "was stopped while ownership moved", "give both --source and --target", "cleanup", "--source", source.URL)

	// The new epoch is committed on the target, the source does not know it yet.
	must(t, sides[migrate.Target].Own(t.Context(), 2, migrate.Target))
	refused(t, t.TempDir(), 3, "the other database owns the data (migration shop, epoch 2)", "--force", both...)
	for _, db := range []*pgtest.Database{source, target} {
		if n := db.Int(t, `SELECT count(*) FROM pg_trigger WHERE tgname ~ '^ficus'`); n == 0 {
			t.Errorf("the fence of %s is gone", db.Name)
		}
	}

	// It was taken back: the source owns, with both gates closed.
	must(t, sides[migrate.Source].Own(t.Context(), 3, migrate.Source))
	if out, status := once(t, t.TempDir(), both...); status != 0 {
		t.Errorf("cleanup: status %d, %v", status, out)
	}
	source.Exec(t, `INSERT INTO t VALUES (1)`)
}

// TestFollow goes on after kill -9, with a keyless table whose updates and deletes never fail.
func TestFollow(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "pgbench")
	dir := t.TempDir()
	follow := append([]string{"follow", "--name", nameFor(source)}, pair(source.URL, target.URL)...)
	p := ficus(t, dir, follow...)
	p.line("phase", map[string]any{"phase": "copying"})
	equal := func() {
		t.Helper()
		for _, table := range []string{"public.pgbench_history", "public.pgbench_accounts"} {
			pgtest.Eventually(t, table+" to be equal", func() bool { return bytesOf(t, source, table) == bytesOf(t, target, table) })
		}
	}
	for i := range 3 {
		source.Exec(t, fmt.Sprintf(`UPDATE pgbench_history SET delta = delta + %d; DELETE FROM pgbench_history WHERE tid = %[1]d`, i))
		source.Exec(t, fmt.Sprintf(`UPDATE pgbench_accounts SET abalance = %d WHERE aid <= 100`, i))
		if i > 0 {
			p.line("phase", map[string]any{"phase": "following"})
		}
		p.stop(syscall.SIGKILL)
		source.Exec(t, fmt.Sprintf(`UPDATE pgbench_history SET delta = delta + %d; INSERT INTO pgbench_history VALUES (1, 1, %[1]d, 1, now())`, i))
		p = ficus(t, dir, follow...)
	}
	p.line("phase", map[string]any{"phase": "following"})
	equal()
	source.Exec(t, `UPDATE pgbench_history SET filler = 'later'; TRUNCATE pgbench_accounts`)
	equal()
	if status := p.stop(os.Interrupt); status != 0 {
		t.Errorf("interrupted: exit status %d", status)
	}
	if last := p.lines[len(p.lines)-1]; last["type"] != "result" || last["phase"] != "following" {
		t.Errorf("last line %v", last)
	}
}

// TestNoReplicaIdentity leaves a keyless table as it is, and still nothing fails for the application.
func TestNoReplicaIdentity(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "pgbench")
	p := ficus(t, t.TempDir(), append([]string{"follow", "--name", nameFor(source), "--no-replica-identity"}, pair(source.URL, target.URL)...)...)
	p.line("phase", map[string]any{"phase": "following"})
	if got := source.Strings(t, `SELECT relreplident::text FROM pg_class WHERE relname = 'pgbench_history'`); !cmp.Equal(got, []string{"d"}) {
		t.Errorf("replica identity %q", got)
	}
	source.Exec(t, `UPDATE pgbench_history SET delta = -1; DELETE FROM pgbench_history WHERE tid = 1; INSERT INTO pgbench_history VALUES (99, 1, 1, 1, now())`)
	pgtest.Eventually(t, "the insert to arrive", func() bool { return target.Int(t, `SELECT count(*) FROM public.pgbench_history WHERE tid = 99`) == 1 })
	if n := target.Int(t, `SELECT count(*) FROM public.pgbench_history WHERE delta = -1`); n != 0 {
		t.Errorf("%d updates arrived", n)
	}
}

// TestCopyAndVerify: one consistent copy leaves nothing behind, and a seeded difference is found.
func TestCopyAndVerify(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "chinook")
	source.Exec(t, `CREATE TABLE counted (id serial PRIMARY KEY); SELECT setval('counted_id_seq', 4711); CREATE TABLE keyless (a int, b text); INSERT INTO keyless VALUES (1, 'x'), (1, 'x'), (NULL, NULL)`)
	check := unchanged(t, source)
	databases := pair(source.URL, target.URL)
	p := ficus(t, t.TempDir(), append([]string{"copy"}, databases...)...)
	told := p.line("progress", nil)
	if at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(told["time"])); err != nil || time.Since(at).Abs() > time.Hour {
		t.Errorf("progress of %v: %v", told["time"], err)
	}
	out := p.line("result", nil)
	if status := p.wait(); status != 0 || number(out["rows_copied"]) < 10 {
		t.Fatalf("copy: status %d, %v", status, out)
	}
	check()
	var diff string
	pgtest.Eventually(t, "the sessions to end", func() bool {
		diff = cmp.Diff(source.Strings(t, objects), target.Strings(t, objects))
		return !strings.Contains(diff, "session ")
	})
	if diff != "" {
		t.Errorf("the copy has other objects (-source +target):\n%s", diff)
	}
	if n := target.Int(t, `SELECT nextval('counted_id_seq')`); n < 4712 {
		t.Errorf("sequence goes on at %d", n)
	}
	verify := append([]string{"verify"}, databases...)
	out, status := once(t, t.TempDir(), verify...)
	if status != 0 || out["differences"] != 0.0 || out["rows"] != float64(sumRows(t, source)) {
		t.Errorf("verify: status %d, %v, want %d rows", status, out, sumRows(t, source))
	}
	check()

	target.Exec(t, `DELETE FROM keyless WHERE a IS NULL; INSERT INTO counted VALUES (1)`)
	out, status = once(t, t.TempDir(), verify...)
	if status != 1 || out["differences"] != 2.0 || out["type"] != "result" {
		t.Errorf("verify of different databases: status %d, %v", status, out)
	}
	target.Exec(t, `DROP TABLE counted`)
	refused(t, t.TempDir(), 3, "counted", "", verify...)
	refused(t, t.TempDir(), 3, "no table to compare", "--include", append(verify, "--include", "public.nothing")...)
}

// sumRows counts all rows of a database's tables.
func sumRows(t *testing.T, db *pgtest.Database) (n int64) {
	t.Helper()
	for _, table := range db.Strings(t, `SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace`) {
		n += db.Int(t, `SELECT count(*) FROM `+table)
	}
	return n
}

// TestServe drives two migrations over the API; a restart goes on with both.
func TestServe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, addr := freeAddrs(t)
	serve := func() *process {
		p := ficus(t, dir, "serve", "--listen", addr)
		p.line("listening", nil)
		return p
	}
	client, err := api.NewClient("http://"+addr, "")
	must(t, err)
	t.Cleanup(client.Close)
	p := serve()
	gateway, _ := freeAddrs(t)
	var names []string
	sources, targets := map[string]*pgtest.Database{}, map[string]*pgtest.Database{}
	for range 2 {
		source := pgtest.DB(t)
		source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)`)
		names = append(names, nameFor(source))
		sources[nameFor(source)], targets[nameFor(source)] = source, pgtest.DB(t)
	}
	first, second := names[0], names[1]
	for name, playbook := range map[string]string{first: "cluster-move", second: "read-replica"} {
		params := map[string]string{"name": name, "source": sources[name].URL, "target": targets[name].URL}
		if playbook == "cluster-move" {
			params["listen"], params["reads"] = gateway, "100"
		}
		_, err := client.Start(t.Context(), api.StartRequest{Playbook: playbook, Params: params})
		must(t, err)
	}
	if _, err := client.Start(t.Context(), api.StartRequest{Playbook: "read-replica", Params: map[string]string{"name": first, "source": sources[first].URL, "target": targets[first].URL}}); err == nil {
		t.Error("a second migration of one name is taken")
	}
	stands := func(name string, phase migrate.Phase, waitingFor string) {
		t.Helper()
		pgtest.Eventually(t, fmt.Sprintf("%s to be %s", name, phase), func() bool {
			s, err := client.Get(t.Context(), name)
			return err == nil && s.Phase == phase && s.WaitingFor == waitingFor
		})
	}
	p.stop(syscall.SIGKILL)
	p = serve()
	stands(first, migrate.ReadsSwitched, migrate.GateApproval)
	stands(second, migrate.Following, "promote")
	if status := p.stop(os.Interrupt); status != 0 {
		t.Errorf("serve, interrupted: exit status %d", status)
	}
	for _, name := range names {
		sources[name].Exec(t, `INSERT INTO t VALUES (1001)`)
	}
	serve()
	stands(first, migrate.ReadsSwitched, migrate.GateApproval)
	stands(second, migrate.Following, "promote")
	must(t, client.Do(t.Context(), first, migrate.Command{Verb: migrate.Approve}))
	stands(first, migrate.Promoted, "")
	must(t, client.Do(t.Context(), second, migrate.Command{Verb: migrate.Cancel, Wait: true}))
	for _, name := range names {
		if n := targets[name].Int(t, `SELECT count(*) FROM t`); n != 1001 && name == first {
			t.Errorf("%s: %d rows on the target", name, n)
		}
	}
	nothingLeft(t, sources[second])
	if s := sources[second].Strings(t, objects); !cmp.Equal(s, []string{"relation t, replica identity d", "relation t_pkey, replica identity n", "schema public"}) {
		t.Errorf("cancelled, the source holds %q", s)
	}
}

// TestPlainOutput: people see what matters, one line each.
func TestPlainOutput(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 100)`)
	gateway, api := freeAddrs(t)
	cmd := program(t, "run", "cluster-move", "--name", nameFor(source), "--yes", "-p", "reads=100", "--source", source.URL, "--target", target.URL, "--gateway-listen", gateway, "--listen", api, "--data-dir", filepath.Join(t.TempDir(), "state"))
	out := &lines{}
	cmd.Stdout, cmd.Stderr = out, out
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	pgtest.Eventually(t, "the result", func() bool { return strings.Contains(out.String(), "rollback  ") })
	must(t, cmd.Process.Signal(os.Interrupt))
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
	text := out.String()
	for _, want := range []string{"dashboard and API http://", "application connects to ", "replica-identity: public.t: ", "copied public.t: 100 rows", "exact proof: 100 rows in 1 tables, 0 differences", "100 percent of reads", "gate approval is open", nameFor(source) + ": promoted, the target owns the data", "rollback  safe: ficus rollback " + nameFor(source)} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	for _, noise := range []string{"started", ": done", "{", "ficus: ", "level="} {
		if strings.Contains(text, noise) {
			t.Errorf("%q in:\n%s", noise, text)
		}
	}
}
