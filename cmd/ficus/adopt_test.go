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

// TestDataDirectoryLost: the process is killed and everything that it kept on disk is gone. Where the
// source kept what the target lacks the same command goes on without a new copy; where it was told to
// forget it, the command refuses and says between which positions changes are missing.
// Broken on purpose: without adopt both copy again, and the second hides that anything was missing; without
// the comparison of slot and progress the second fails later, and does not say what is missing.
func TestDataDirectoryLost(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"follow", "run"} {
		for _, ack := range []string{"applied", "stored"} {
			t.Run(command+", "+ack, func(t *testing.T) {
				t.Parallel()
				source, target := pgtest.DB(t), pgtest.DB(t)
				source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY, v text); INSERT INTO public.t SELECT i, 'row' FROM generate_series(1, 100) i`)
				file := filepath.Join(t.TempDir(), "book.yaml")
				must(t, os.WriteFile(file, fmt.Appendf(nil, "name: %s\nfollow: {ack: %s}\nrouter: {type: none}\nuntil: following\n", nameFor(source), ack), 0o600))
				args := []string{command, "-f", file, "--source", source.URL, "--target", target.URL}
				if command == "run" {
					_, api := freeAddrs(t)
					args = append(args, "--yes", "--listen", api)
				}
				p := ficus(t, t.TempDir(), args...)
				p.line("phase", map[string]any{"phase": "following"})

				// The target takes nothing more, the source goes on.
				conn := target.Conn(t)
				tx, err := conn.Begin(t.Context())
				must(t, err)
				_, err = tx.Exec(t.Context(), `LOCK TABLE public.t IN SHARE MODE`)
				must(t, err)
				source.Exec(t, `INSERT INTO public.t SELECT i, 'late' FROM generate_series(101, 200) i`)
				wrote := source.Strings(t, `SELECT pg_current_wal_lsn()`)[0]
				if ack == "stored" {
					pgtest.Eventually(t, "the slot to be told that it may forget", func() bool {
						return source.Int(t, `SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND confirmed_flush_lsn >= $1::pg_lsn`, wrote) == 1
					})
				}
				const waiting = `FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
				pgtest.Eventually(t, "the applier to wait", func() bool { return target.Int(t, `SELECT count(*) `+waiting) > 0 })
				p.stop(syscall.SIGKILL)
				// The server was sent all of the batch and its commit, and would go on without the process.
				pgtest.Eventually(t, "what is left of the applier's session to end", func() bool {
					return target.Int(t, `SELECT count(pg_terminate_backend(pid)) `+waiting) == 0
				})
				must(t, tx.Rollback(t.Context()))

				dir := t.TempDir()
				if ack == "stored" {
					out, status := once(t, dir, args...)
					text, advice := fmt.Sprint(out["error"]), fmt.Sprint(out["hint"])
					if status != 3 || !strings.Contains(text, "are missing") || !strings.Contains(advice, "ficus cleanup") {
						t.Errorf("status %d, %v", status, out)
					}
					return
				}
				p = ficus(t, dir, args...)
				pgtest.Eventually(t, "the target to have everything", func() bool {
					return target.Int(t, `SELECT count(*) FROM public.t WHERE v IN ('row', 'late')`) == 200
				})
				p.line("phase", map[string]any{"phase": "following"})
				if strings.Contains(p.text(), `"copying"`) {
					t.Error("everything was copied again")
				}
				if status := p.stop(os.Interrupt); status != 0 {
					t.Errorf("interrupted: status %d", status)
				}
			})
		}
	}
}
