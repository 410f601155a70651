package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema/dump"
)

// objects lists all that Ficus could have left in a database.
const objects = `
	SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
	UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()
	UNION ALL SELECT 'publication ' || pubname FROM pg_publication
	UNION ALL SELECT 'trigger ' || tgname || ' on ' || tgrelid::regclass FROM pg_trigger WHERE NOT tgisinternal
	UNION ALL SELECT 'function ' || oid::regprocedure FROM pg_proc WHERE pronamespace = 'public'::regnamespace
	UNION ALL SELECT 'relation ' || oid::regclass || ', replica identity ' || relreplident::text FROM pg_class
		WHERE relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_' OR nspname = 'information_schema')
	UNION ALL SELECT 'session ' || application_name FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '^ficus'
	ORDER BY 1`

// unchanged remembers what is in the databases; the returned function wants the same again.
func unchanged(t *testing.T, dbs ...*pgtest.Database) (check func()) {
	t.Helper()
	before := make([][]string, len(dbs))
	for i, db := range dbs {
		before[i] = db.Strings(t, objects)
	}
	return func() {
		t.Helper()
		for i, db := range dbs {
			after := db.Strings(t, objects)
			for range 100 { // the server takes note of a closed connection a little later
				if cmp.Equal(before[i], after) {
					break
				}
				after = db.Strings(t, objects)
			}
			if diff := cmp.Diff(before[i], after); diff != "" {
				t.Errorf("left behind in %s (-before +after):\n%s", db.Name, diff)
			}
		}
	}
}

// refused runs ficus, which has to end with the status, one error line and one hint line that hold
// the words, and the same as its result. It returns all of its lines.
func refused(t *testing.T, dir string, status int, message, advice string, args ...string) []map[string]any {
	t.Helper()
	p := ficus(t, dir, args...)
	if got := p.wait(); got != status {
		t.Errorf("ficus %s: exit status %d, want %d", args[0], got, status)
	}
	var said, hints []string
	for line := range strings.Lines(p.stderr.String()) {
		switch {
		case strings.HasPrefix(line, "ficus: "):
			said = append(said, line)
		case strings.HasPrefix(line, "hint: "):
			hints = append(hints, line)
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], message) {
		t.Errorf("ficus %s says %q, want one line with %q", args[0], said, message)
	}
	if len(hints) != 1 || !strings.Contains(hints[0], advice) {
		t.Errorf("ficus %s advises %q, want one line with %q", args[0], hints, advice)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) == 0 {
		t.Fatalf("ficus %s: no result line", args[0])
	}
	last := p.lines[len(p.lines)-1]
	if last["type"] != "result" || last["status"] != float64(status) || !strings.Contains(fmt.Sprint(last["error"]), message) || !strings.Contains(fmt.Sprint(last["hint"]), advice) {
		t.Errorf("ficus %s: last line %v", args[0], last)
	}
	return p.lines
}

// findings returns the checks of severity error that a run or a check complained of.
func findings(lines []map[string]any) (errors []string) {
	for _, l := range lines {
		f := l
		if data, ok := l["data"].(map[string]any); ok {
			f, _ = data["finding"].(map[string]any)
		}
		if l["type"] == "finding" && f["severity"] == "error" {
			errors = append(errors, fmt.Sprint(f["check"]))
			if f["fix"] == nil || f["fix"] == "" {
				errors = append(errors, fmt.Sprint(f["check"], " without a fix"))
			}
		}
	}
	return errors
}

// checked runs ficus check, which has to answer no, and returns what it complained of.
func checked(t *testing.T, args ...string) []string {
	t.Helper()
	p := ficus(t, t.TempDir(), append([]string{"check"}, args...)...)
	if status := p.wait(); status != 1 {
		t.Errorf("check: exit status %d, want 1: %s", status, p.stderr.String())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := p.lines[len(p.lines)-1]; last["type"] != "result" || last["ok"] != false {
		t.Errorf("check: last line %v", last)
	}
	return findings(p.lines)
}

// pair returns the flags for two databases.
func pair(source, target string) []string { return []string{"--source", source, "--target", target} }

// TestBadInput: what cannot work ends before anything is changed.
func TestBadInput(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "pgbench")
	check := unchanged(t, source, target)
	t.Cleanup(check)
	run := func(t *testing.T, more ...string) []string {
		t.Helper()
		gateway, api := freeAddrs(t)
		return append([]string{"run", "upgrade", "--yes", "--gateway-listen", gateway, "--listen", api}, more...)
	}
	both := pair(source.URL, target.URL)

	t.Run("missing database", func(t *testing.T) {
		t.Parallel()
		absent := strings.Replace(target.URL, target.Name, "absent", 1)
		for _, args := range [][]string{
			run(t, pair(absent, target.URL)...), run(t, pair(source.URL, absent)...),
			append([]string{"check", "upgrade"}, pair(absent, target.URL)...), append([]string{"plan", "upgrade"}, pair(source.URL, absent)...),
			append([]string{"copy"}, pair(source.URL, absent)...), append([]string{"follow"}, pair(source.URL, absent)...),
			append([]string{"verify"}, pair(source.URL, absent)...),
			{"cleanup", "--target", absent},
		} {
			refused(t, t.TempDir(), 3, `absent`, `has no database "absent"`, args...)
		}
	})
	t.Run("same database twice", func(t *testing.T) {
		t.Parallel()
		twice := pair(source.URL, source.URL)
		lines := refused(t, t.TempDir(), 3, "source and target are the same database", "another, empty database", run(t, twice...)...)
		if got := findings(lines); len(got) == 0 || got[0] != "same-database" {
			t.Errorf("run found %q", got)
		}
		if got := checked(t, append([]string{"upgrade"}, twice...)...); len(got) == 0 || got[0] != "same-database" {
			t.Errorf("check found %q", got)
		}
		refused(t, t.TempDir(), 3, "the same database", "another, empty database", append([]string{"copy"}, twice...)...)
	})
	t.Run("rules", func(t *testing.T) {
		t.Parallel()
		for rule, want := range map[string][2]string{
			"public.pgbench_acounts: {to: public.a}":                               {"pgbench_acounts", "public.pgbench_accounts"},
			"public.pgbench_tellers: {drop: [tidd]}":                               {"tidd", `did you mean "tid"?`},
			"public.pgbench_tellers: {columns: {nice: nme}}":                       {"nme", ""},
			"public.pgbench_tellers: {columns: {nice: 'upper(nme)'}}":              {"nme", ""},
			"public.pgbench_tellers: {where: 'tid >'}":                             {"pgbench_tellers", ""},
			"pgbench_tellers: {to: public.t}":                                      {"is not schema.table", "public.pgbench_tellers"},
			"public.pgbench_tellers: {columns: {nice: '1'}, inverse: {tidd: 't'}}": {"tidd", ""},
		} {
			file := filepath.Join(t.TempDir(), "rules.yaml")
			must(t, os.WriteFile(file, []byte("name: rules\ntables:\n  "+rule+"\n"), 0o600))
			refused(t, t.TempDir(), 2, want[0], want[1], append(run(t, both...), "-f", file)...)
		}
	})
	t.Run("taken slot", func(t *testing.T) {
		t.Parallel()
		other := pgtest.DB(t)
		name := nameFor(other)
		other.Exec(t, `SELECT pg_create_logical_replication_slot('ficus_`+name+`_forward', 'pgoutput')`)
		refused(t, t.TempDir(), 3, "is there already, for database "+other.Name, "--name", run(t, append(both, "--name", name)...)...)
		if n := other.Int(t, `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`); n != 1 {
			t.Error("another database's slot is gone")
		}
	})
	t.Run("busy ports", func(t *testing.T) {
		t.Parallel()
		busy := listen(t, 0)
		t.Cleanup(func() { _ = busy.Close() })
		addr := busy.Addr().String()
		gateway, api := freeAddrs(t)
		refused(t, t.TempDir(), 3, addr, "--listen", append([]string{"run", "upgrade", "--yes", "--gateway-listen", gateway, "--listen", addr}, both...)...)
		refused(t, t.TempDir(), 3, addr, "choose another address", append([]string{"run", "upgrade", "--yes", "--gateway-listen", addr, "--listen", api}, both...)...)
		refused(t, t.TempDir(), 3, addr, "--listen", "serve", "--listen", addr)
	})
	t.Run("data directory in use", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		_, api := freeAddrs(t)
		serve := ficus(t, dir, "serve", "--listen", api)
		serve.line("listening", nil)
		refused(t, dir, 3, "in use by another process", "--data-dir", run(t, both...)...)
		refused(t, dir, 3, "in use by another process", "--data-dir", append([]string{"follow"}, both...)...)
		refused(t, t.TempDir(), 3, "no such migration", "", "status", "shop", "--api", "http://"+api)
		refused(t, t.TempDir(), 3, "no such migration", "", "promote", "shop", "--api", "http://"+api)
		refused(t, t.TempDir(), 3, "no such migration", "", "verify", "shop", "--api", "http://"+api)
		if status := serve.stop(os.Interrupt); status != 0 {
			t.Errorf("serve, interrupted: exit status %d", status)
		}
	})
	t.Run("no pg_dump", func(t *testing.T) {
		t.Parallel()
		newer := pgtest.DB(t, pgtest.Version(18))
		if _, err := dump.FindTools(t.Context(), newer.Major); err == nil {
			t.Logf("there is a pg_dump for PostgreSQL %d here", newer.Major)
			return
		}
		newer.Exec(t, `CREATE TABLE t (id int PRIMARY KEY)`)
		check := unchanged(t, newer, target)
		if got := checked(t, append([]string{"upgrade"}, pair(newer.URL, target.URL)...)...); !cmp.Equal(got, []string{"pg_dump"}) {
			t.Errorf("check found %q", got)
		}
		refused(t, t.TempDir(), 3, "pg_dump", "install", run(t, pair(newer.URL, target.URL)...)...)
		check()
	})
}

// TestTargetNotEmpty: tables that are there are not touched.
func TestTargetNotEmpty(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "pgbench")
	target.Exec(t, `CREATE TABLE pgbench_tellers (tid int PRIMARY KEY); INSERT INTO pgbench_tellers VALUES (7)`)
	check := unchanged(t, source, target)
	gateway, api := freeAddrs(t)
	dir := t.TempDir()
	run := append([]string{"run", "upgrade", "--name", nameFor(source), "--yes", "--gateway-listen", gateway, "--listen", api, "--until", "following"}, pair(source.URL, target.URL)...)
	lines := refused(t, dir, 3, "public.pgbench_tellers", "give an empty database", run...)
	if got := findings(lines); !cmp.Equal(got, []string{"target-not-empty"}) {
		t.Errorf("run found %q", got)
	}
	if got := checked(t, append([]string{"upgrade"}, pair(source.URL, target.URL)...)...); !cmp.Equal(got, []string{"target-not-empty"}) {
		t.Errorf("check found %q", got)
	}
	refused(t, dir, 3, "public.pgbench_tellers", "give an empty database", append([]string{"copy"}, pair(source.URL, target.URL)...)...)
	check()
	if n := target.Int(t, `SELECT count(*) FROM pgbench_tellers WHERE tid = 7`); n != 1 {
		t.Error("the target's row is gone")
	}

	// Mended, the same command goes on.
	target.Exec(t, `DROP TABLE pgbench_tellers`)
	again := ficus(t, dir, run...)
	again.line("result", map[string]any{"phase": "following"})
}

// TestServerSettings: a server that cannot be followed, and one that wants a password.
func TestServerSettings(t *testing.T) {
	t.Parallel()
	cluster := pgtest.NewCluster(t, pgtest.Setting("wal_level", "replica"), pgtest.Setting("max_replication_slots", "1"), pgtest.Setting("max_wal_senders", "1"))
	source, target := cluster.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE guarded LOGIN PASSWORD 'right'`)
	check := unchanged(t, source, target)
	gateway, api := freeAddrs(t)
	args := pair(source.URL, target.URL)
	want := []string{"wal-level", "slots", "wal-senders"}
	lines := refused(t, t.TempDir(), 3, "wal_level is replica", "ALTER SYSTEM SET wal_level = logical", append([]string{"run", "upgrade", "--yes", "--gateway-listen", gateway, "--listen", api}, args...)...)
	if got := findings(lines); !cmp.Equal(got, want) {
		t.Errorf("run found %q", got)
	}
	if got := checked(t, append([]string{"upgrade"}, args...)...); !cmp.Equal(got, want) {
		t.Errorf("check found %q", got)
	}
	refused(t, t.TempDir(), 3, "wal_level is replica", "ALTER SYSTEM SET wal_level", append([]string{"follow"}, args...)...)
	check()
	check = unchanged(t, source) // the target is filled now
	if out, status := once(t, t.TempDir(), append([]string{"copy"}, args...)...); status != 0 {
		t.Errorf("copy needs no slot: status %d, %v", status, out)
	}

	source.Exec(t, `COPY (SELECT 'host all guarded all scram-sha-256' UNION ALL SELECT 'host all all all trust' UNION ALL SELECT 'local all all trust') TO PROGRAM 'cat > pg_hba.conf'`)
	source.Exec(t, `SELECT pg_reload_conf()`)
	wrong := strings.Replace(source.URL, "postgres@", "guarded:wrong@", 1)
	pgtest.Eventually(t, "pg_hba.conf to be read", func() bool {
		out, _ := once(t, t.TempDir(), append([]string{"check", "upgrade"}, pair(wrong, target.URL)...)...)
		return strings.Contains(fmt.Sprint(out["error"]), "password authentication failed")
	})
	lines = refused(t, t.TempDir(), 3, `password authentication failed for user "guarded"`, "check user and password", append([]string{"check", "upgrade"}, pair(wrong, target.URL)...)...)
	if strings.Contains(fmt.Sprint(lines), "wrong") {
		t.Errorf("the password is printed: %v", lines)
	}
	check()
}

// TestPrivileges: a role that may do next to nothing.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	role := "weak_" + source.Name
	source.Exec(t, `CREATE ROLE `+role+` LOGIN; CREATE TABLE t (id int PRIMARY KEY)`)
	t.Cleanup(func() { source.Exec(t, `DROP ROLE `+role) })
	check := unchanged(t, source, target)
	weak := func(db *pgtest.Database) string { return strings.Replace(db.URL, "postgres@", role+"@", 1) }
	args := pair(weak(source), weak(target))
	gateway, api := freeAddrs(t)
	lines := refused(t, t.TempDir(), 3, "", "", append([]string{"run", "upgrade", "--yes", "--gateway-listen", gateway, "--listen", api}, args...)...)
	found := slices.Compact(slices.Sorted(slices.Values(findings(lines))))
	if want := []string{"create", "owner", "replication", "replication-role", "select"}; !cmp.Equal(found, want) {
		t.Errorf("run found %q, want %q", found, want)
	}
	checked(t, append([]string{"upgrade"}, args...)...)
	check()
}
