package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// book writes a playbook that follows with the given settings.
func book(t *testing.T, name string, source, target *pgtest.Database, follow string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "book.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "name: %s\nsource: %s\ntarget: %s\nfollow: {%s}\nrouter: {type: none}\ngates: {approval: false}\n", name, source.URL, target.URL, follow), 0o600))
	return file
}

// TestSequencesAreFollowed: when the source is lost for good, the target's sequences stand where the
// source's stood at most one interval ago; and after a promotion the old database's follow the new
// one's. It fails without keepSequences, and when it looks at the forward link alone.
func TestSequencesAreFollowed(t *testing.T) {
	t.Parallel()
	cluster := pgtest.NewCluster(t)
	source, target := cluster.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, v text); CREATE SEQUENCE public.down INCREMENT -5; CREATE SEQUENCE public.free START 1000`)
	run := ficus(t, t.TempDir(), "run", "-f", book(t, nameFor(source), source, target, "sequences: 200ms"), "--listen", "127.0.0.1:0", "--until", "following")
	run.line("result", map[string]any{"phase": "following"})

	source.Exec(t, `SELECT nextval('public.free') FROM generate_series(1, 5000); SELECT nextval('public.down') FROM generate_series(1, 10); INSERT INTO public.t (v) SELECT 'x' FROM generate_series(1, 300); DELETE FROM public.t`)
	const values = `SELECT (SELECT last_value FROM public.free), (SELECT last_value FROM public.down), (SELECT last_value FROM public.t_id_seq)`
	// What the source would give out next is where the target's stand, uncalled.
	pgtest.Eventually(t, "the sequences to follow", func() bool { return target.Strings(t, values)[0] == "6000|-51|301" })
	cluster.Kill(t)
	if got := target.Strings(t, `SELECT nextval('public.free'), nextval('public.down'), nextval('public.t_id_seq')`)[0]; got != "6000|-51|301" {
		t.Errorf("the target gives out %s, which the source may have given out", got)
	}
}

// TestSequencesAreFollowedBack is the reverse link's part of TestSequencesAreFollowed.
func TestSequencesAreFollowedBack(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY); CREATE SEQUENCE public.free START 1000`)
	run := ficus(t, t.TempDir(), "run", "-f", book(t, nameFor(source), source, target, "sequences: 200ms"), "--listen", "127.0.0.1:0")
	run.line("result", map[string]any{"phase": "promoted"})
	target.Exec(t, `SELECT setval('public.free', 50000)`)
	pgtest.Eventually(t, "the old database's sequence to follow", func() bool { return source.Int(t, `SELECT last_value FROM public.free`) == 50001 })
}

// TestSourceWinsIsTold: with on_conflict: source-wins a stranger's row gives way, and status, metrics
// and the story say so.
func TestSourceWinsIsTold(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY, v text)`)
	_, api := freeAddrs(t)
	dir, name := t.TempDir(), nameFor(source)
	run := ficus(t, dir, "run", "-f", book(t, name, source, target, "on_conflict: source-wins"), "--listen", api, "--until", "following")
	run.line("result", map[string]any{"phase": "following"})
	stranger := target.Conn(t)
	for _, sql := range []string{`SET session_replication_role = replica`, `INSERT INTO public.t VALUES (7, 'stranger')`} {
		_, err := stranger.Exec(t.Context(), sql)
		must(t, err)
	}
	source.Exec(t, `INSERT INTO public.t VALUES (7, 'ours')`)
	run.line("link", map[string]any{"message": "1 rows of the follower were overruled by the owner's: see ficus.conflicts there"})
	if status, _ := once(t, dir, "status", name, "--api", "http://"+api); fmt.Sprint(status["lag"]) == "" || !strings.Contains(fmt.Sprint(status["lag"]), "decided:1") {
		t.Errorf("status: %v", status["lag"])
	}
	if got := get(t, "http://"+api+"/metrics"); !strings.Contains(got, `ficus_migration_decided_rows_total{migration="`+name+`"} 1`) {
		t.Errorf("metrics:\n%s", got)
	}
	if got := target.Strings(t, `SELECT t.v, c.key, c.decision FROM public.t, ficus.conflicts c`); len(got) != 1 || got[0] != "ours|id=7|removed id=7" {
		t.Errorf("target holds %q", got)
	}
}
