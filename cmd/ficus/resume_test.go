package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestKilledCopyResumes kills a follower in the middle of its copy, while rows change, and starts it
// again: it goes on with the copy, and says so. It fails when any step before the copy is in the way
// of a target that has rows already, and when the copy starts over.
func TestKilledCopyResumes(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE big (id int PRIMARY KEY, v text, n int DEFAULT 0); INSERT INTO big SELECT i, repeat('x', 200), 0 FROM generate_series(1, 30000) i;
		CREATE TABLE small (id int PRIMARY KEY); INSERT INTO small SELECT generate_series(1, 10)`)
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "slow.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "name: slow\nsource: %q\ntarget: %q\ncopy: {chunk: 16kB, workers: 2}\n", source.URL, target.URL), 0o600))
	args := []string{"follow", "-f", file, "--name", nameFor(source), "--source", source.URL, "--target", target.URL}
	parts := `SELECT relation, from_page, xmin FROM ficus.manifest_part ORDER BY 1, 2`

	var before []string
	for range 2 {
		p := ficus(t, dir, args...)
		pgtest.Eventually(t, "some chunks", func() bool {
			return target.Int(t, `SELECT count(to_regclass('ficus.manifest_part'))`) == 1 && len(target.Strings(t, parts)) >= len(before)+50
		})
		p.stop(syscall.SIGKILL)
		before = target.Strings(t, parts)
		source.Exec(t, `UPDATE big SET n = n + 1 WHERE id % 7 = 0; DELETE FROM big WHERE id % 1000 = 3; INSERT INTO big SELECT max(id) + 1 FROM big`)
	}
	p := ficus(t, dir, args...)
	p.line("phase", map[string]any{"phase": "following"})
	after := strings.Join(target.Strings(t, parts), "\n")
	for _, part := range before {
		if !strings.Contains(after, part) {
			t.Errorf("chunk %s was copied again", part)
		}
	}
	if log := p.stderr.String(); !strings.Contains(log, "copy resumed") {
		t.Errorf("nothing about resuming in the log:\n%s", log)
	}
	if text := p.text(); !strings.Contains(text, "copy resumed: ") { // among what a person sees without --log-level
		t.Errorf("nothing about resuming among the events:\n%s", text)
	}
	p.line("progress", map[string]any{"message": "copy public.small"})
	pgtest.Eventually(t, "equal tables", func() bool {
		const digest = `SELECT count(*), sum(n), md5(string_agg(r::text, '' ORDER BY id)) FROM big r`
		return source.Strings(t, digest)[0] == target.Strings(t, digest)[0]
	})
	p.stop(os.Interrupt)
	out, status := once(t, dir, "verify", "--source", source.URL, "--target", target.URL)
	if status != 0 || out["differences"] != 0.0 {
		t.Errorf("status %d, %v", status, out)
	}
}

// TestResumedCopyAndForeignKeys: a table that was copied before a kill refers to one that was copied after
// it, from which a row has gone meanwhile. It fails when foreign keys are checked before the target stands at one
// instant.
func TestResumedCopyAndForeignKeys(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE parent (id int PRIMARY KEY, v text); INSERT INTO parent SELECT i, repeat('x', 900) FROM generate_series(1, 6000) i;
		CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE, v text);
		INSERT INTO child SELECT i, 1 + i % 6000, repeat('x', 900) FROM generate_series(1, 9000) i`)
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "slow.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "name: referring\nsource: %q\ntarget: %q\ncopy: {chunk: 8kB, workers: 2}\n", source.URL, target.URL), 0o600))
	args := []string{"follow", "-f", file, "--name", nameFor(source), "--source", source.URL, "--target", target.URL}
	complete := `SELECT count(*) FROM ficus.manifest m WHERE table_name ~ $1 AND parts <=
		(SELECT count(*) FROM ficus.manifest_part p WHERE (p.link, p.table_name) = (m.link, m.table_name))`

	p := ficus(t, dir, args...)
	pgtest.Eventually(t, "the child to be complete", func() bool {
		return target.Int(t, `SELECT count(to_regclass('ficus.manifest_part'))`) == 1 && target.Int(t, complete, "child") == 1
	})
	p.stop(syscall.SIGKILL)
	if target.Int(t, complete, "parent") == 1 {
		t.Fatal("killed too late")
	}
	source.Exec(t, `DELETE FROM parent WHERE id % 100 = 3`)
	p = ficus(t, dir, args...)
	p.line("phase", map[string]any{"phase": "following"})
	if n := target.Int(t, `SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated`); n != 1 {
		t.Errorf("%d foreign keys that are valid", n)
	}
	p.stop(os.Interrupt)
	out, status := once(t, dir, "verify", "--source", source.URL, "--target", target.URL)
	if status != 0 || out["differences"] != 0.0 {
		t.Errorf("status %d, %v", status, out)
	}
}
