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

// TestTwoAtOnce: the same migration is started a second time with another data directory, as on
// another machine. The second process waits and says for whom; it goes on once the first is gone, and
// the first one, which only stood still, then ends by itself.
//
// It fails when the engine does not claim its databases: the second one then takes the slot's place
// in turn with the first.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO public.t SELECT i FROM generate_series(1, 100) i`)
	file := filepath.Join(t.TempDir(), "book.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "name: %s\nfollow: {ack: applied}\nrouter: {type: none}\nuntil: following\n", nameFor(source)), 0o600))
	start := func() *process {
		_, api := freeAddrs(t)
		return ficus(t, t.TempDir(), "run", "-f", file, "--source", source.URL, "--target", target.URL, "--yes", "--listen", api)
	}
	first := start()
	first.line("phase", map[string]any{"phase": "following"})

	second := start()
	pgtest.Eventually(t, "the second one to ask for the databases", func() bool {
		return source.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/fence' AND datname = current_database()`) >= 2
	})
	if strings.Contains(second.text(), `"following"`) {
		t.Fatal("both drive the migration")
	}
	must(t, first.cmd.Process.Signal(syscall.SIGSTOP))
	// Its sessions live as long as it is only stopped; the network, or a person, ends them.
	for _, db := range []*pgtest.Database{source, target} {
		db.Exec(t, `SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
			WHERE a.application_name = 'ficus/driver' AND a.datname = current_database()`)
		db.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^ficus/' AND application_name <> 'ficus/driver' AND datname = current_database() AND backend_start <
			(SELECT min(backend_start) FROM pg_stat_activity WHERE application_name = 'ficus/driver' AND datname = current_database())`)
	}
	second.line("phase", map[string]any{"phase": "following"})
	must(t, first.cmd.Process.Signal(syscall.SIGCONT))
	<-first.done
	if status := first.cmd.ProcessState.ExitCode(); status != 3 || !strings.Contains(first.text(), "taken the migration over") {
		t.Errorf("the first one ended with status %d", status)
	}
	if status := second.stop(os.Interrupt); status != 0 {
		t.Errorf("the second one: status %d", status)
	}
}
