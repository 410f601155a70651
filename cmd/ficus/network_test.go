package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestCutDuringCopy cuts the connections to either side in the middle of the copy, and lets nobody in
// for a moment: the command does not end in failed, it says that it will try again, and goes on with
// the copy. It fails when an error of the copy is not one to try again, and when the copy starts over.
func TestCutDuringCopy(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"follow", "run"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			source, target := pgtest.DB(t), pgtest.DB(t)
			source.Exec(t, `CREATE TABLE big (id int PRIMARY KEY, v text, n int DEFAULT 0); INSERT INTO big SELECT i, repeat('x', 200), 0 FROM generate_series(1, 30000) i`)
			file := filepath.Join(t.TempDir(), "slow.yaml")
			must(t, os.WriteFile(file, fmt.Appendf(nil, "name: %s\ncopy: {chunk: 16kB, workers: 2}\nrouter: {type: none}\nuntil: following\n", nameFor(source)), 0o600))
			front, back := faultpg.New(t, source.DSN), faultpg.New(t, target.DSN)
			through := func(p *faultpg.Proxy, db *pgtest.Database) string {
				d := p.DSN(db.Name)
				return fmt.Sprintf("postgresql://%s@%s:%d/%s?sslmode=disable", d.User(), d.Host(), d.Port(), db.Name)
			}
			args := []string{command, "-f", file, "--source", through(front, source), "--target", through(back, target)}
			if command == "run" {
				_, api := freeAddrs(t)
				args = append(args, "--yes", "--listen", api)
			}
			p := ficus(t, t.TempDir(), args...)
			parts := `SELECT relation, from_page, xmin FROM ficus.manifest_part ORDER BY 1, 2`
			var before []string
			for _, proxy := range []*faultpg.Proxy{front, back} {
				pgtest.Eventually(t, "some chunks", func() bool {
					return target.Int(t, `SELECT count(to_regclass('ficus.manifest_part'))`) == 1 && len(target.Strings(t, parts)) >= len(before)+50
				})
				proxy.Refuse(true)
				proxy.Cut()
				pgtest.Eventually(t, "the copy to stand still", func() bool {
					return target.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/copy' AND datname = current_database()`) == 0
				})
				before = target.Strings(t, parts)
				source.Exec(t, `UPDATE big SET n = n + 1 WHERE id % 7 = 0; DELETE FROM big WHERE id % 1000 = 3; INSERT INTO big SELECT max(id) + 1 FROM big`)
				proxy.Refuse(false)
			}
			p.line("phase", map[string]any{"phase": "following"})
			after := strings.Join(target.Strings(t, parts), "\n")
			for _, part := range before {
				if !strings.Contains(after, part) {
					t.Errorf("chunk %s was copied again", part)
				}
			}
			for _, want := range []string{"will try again", "copy resumed"} {
				if !strings.Contains(p.stderr.String(), want) {
					t.Errorf("the log does not say %q", want)
				}
			}
			if strings.Contains(p.text(), `"phase":"failed"`) {
				t.Error("the migration failed in between")
			}
			pgtest.Eventually(t, "equal tables", func() bool {
				const digest = `SELECT count(*), sum(n), md5(string_agg(r::text, '' ORDER BY id)) FROM big r`
				return source.Strings(t, digest)[0] == target.Strings(t, digest)[0]
			})
			if status := p.stop(os.Interrupt); status != 0 {
				t.Errorf("interrupted: status %d", status)
			}
		})
	}
}
