package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

// TestGatesAndHooks: a playbook's own gate holds a run back and is shown, a hook refuses a phase, another one
// and a notice are told of the end.
//
// It fails when the playbook's gates or hooks are not handed to the engine.
func TestGatesAndHooks(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY); CREATE TABLE public.flag (go boolean PRIMARY KEY)`)
	dir := t.TempDir()
	said, allow := filepath.Join(dir, "said"), filepath.Join(dir, "allow")
	file := filepath.Join(dir, "book.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, `
name: %s
router: {type: none}
gates:
  window: {cron: "* * * * *", for: 1h}
  max_transaction_age: 1h
  min_disk: 1kB
  min_wal_room: 1kB
  checks:
    - {name: ready, sql: "SELECT count(*) > 0, count(*) || ' flags' FROM public.flag"}
hooks:
  - {name: allowed, before: promoting, command: [test, -e, %s]}
  - {name: tell, after: promoting, command: [sh, -c, "echo $FICUS_PHASE $FICUS_OWNER >> %s"]}
`, nameFor(source), allow, said), 0o600))
	_, api := freeAddrs(t)
	p := ficus(t, t.TempDir(), "run", "-f", file, "--source", source.URL, "--target", target.URL, "--yes", "--listen", api)
	waits := func(gate, shown string) {
		t.Helper()
		pgtest.Eventually(t, "the run to wait for "+gate, func() bool {
			out, err := program(t, "status", nameFor(source), "--api", "http://"+api).Output()
			return err == nil && strings.Contains(string(out), shown)
		})
	}
	waits("ready", "closed: 0 flags (wanted: true)")
	source.Exec(t, `INSERT INTO public.flag VALUES (true)`)
	waits("hook", "hook allowed refuses phase promoting")
	must(t, os.WriteFile(allow, nil, 0o600))
	must(t, program(t, "resume", nameFor(source), "--api", "http://"+api).Run())
	p.line("phase", map[string]any{"phase": "promoted"})
	pgtest.Eventually(t, "the hook to be told", func() bool {
		text, err := os.ReadFile(said)
		return err == nil && string(text) == "promoting target\n"
	})
	out := filepath.Join(dir, "evidence.json")
	must(t, program(t, "evidence", nameFor(source), "-o", out, "--api", "http://"+api).Run())
	text, err := os.ReadFile(out)
	must(t, err)
	var e evidence
	must(t, json.Unmarshal(text, &e))
	if len(e.Status.Promotions) != 1 || int64(len(e.Journal)) != e.Status.Seq || e.Digest != e.Journal[len(e.Journal)-1].Digest || e.Digest == "" {
		t.Errorf("evidence: %d promotions, %d of %d records", len(e.Status.Promotions), len(e.Journal), e.Status.Seq)
	}
	if status := p.stop(os.Interrupt); status != 0 {
		t.Errorf("status %d", status)
	}
}

// TestEvidenceChain: a record that is changed, left out or moved changes every digest from there on.
// It fails when a digest does not cover the one before.
func TestEvidenceChain(t *testing.T) {
	t.Parallel()
	events := []migrate.Event{{Seq: 1, Message: "a"}, {Seq: 2, Message: "b"}, {Seq: 3, Message: "c"}}
	digest := func(events ...migrate.Event) string {
		links, err := chain(events)
		must(t, err)
		return links[len(links)-1].Digest
	}
	whole := digest(events...)
	changed := events[0]
	changed.Actor = "somebody else"
	for name, other := range map[string]string{
		"changed": digest(changed, events[1], events[2]), "left out": digest(events[1], events[2]), "moved": digest(events[1], events[0], events[2]),
	} {
		if other == whole {
			t.Errorf("%s: the digest is the same", name)
		}
	}
	if digest(events...) != whole {
		t.Error("the same records have two digests")
	}
}
