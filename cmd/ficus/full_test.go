package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// mount puts a small file system of its own on a new directory.
func mount(t *testing.T, megabytes int) (dir string, resize func(megabytes int)) {
	t.Helper()
	dir = t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("this test mounts a small tmpfs, which needs root: %s %v: %v: %s", name, args, err, out)
		}
	}
	run("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", megabytes), "tmpfs", dir)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() }) //nolint:noctx // the test's context has ended
	return dir, func(megabytes int) {
		run("mount", "-o", fmt.Sprintf("remount,size=%dm", megabytes), dir)
	}
}

// TestDataDirectoryFull: the disk of the data directory fills up. The process ends with a status and a
// message of its own, the source is not harmed, and with more room the same command goes on.
func TestDataDirectoryFull(t *testing.T) {
	if os.Getenv("FICUS_TEST_LONG") == "" {
		t.Skip("mounts a file system: set FICUS_TEST_LONG=1; the event store's own TestDiskFull runs always")
	}
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY, v text)`)
	dir, resize := mount(t, 96)
	args := []string{"follow", "--name", nameFor(source), "--source", source.URL, "--target", target.URL}
	p := ficus(t, dir, args...)
	p.line("phase", map[string]any{"phase": "following"})
	conn := target.Conn(t)
	tx, err := conn.Begin(t.Context())
	must(t, err)
	_, err = tx.Exec(t.Context(), `LOCK TABLE public.t IN SHARE MODE`) // what is stored stays stored
	must(t, err)
	for i := range 200 {
		select {
		case <-p.done:
		default:
			source.Exec(t, `INSERT INTO public.t SELECT i, md5(random()::text) || repeat('x', 2000) FROM generate_series($1::int, $1 + 999) i`, 1000*i)
			continue
		}
		break
	}
	status := p.wait()
	p.mu.Lock()
	last := p.lines[len(p.lines)-1]
	p.mu.Unlock()
	if status != 3 || !strings.Contains(fmt.Sprint(last["error"]), "is full") || !strings.Contains(fmt.Sprint(last["hint"]), "make room") || strings.Contains(p.stderr.String(), "goroutine ") {
		t.Errorf("status %d, %v", status, last)
	}
	must(t, tx.Rollback(t.Context()))

	resize(1024)
	p = ficus(t, dir, args...)
	count := `SELECT count(*) FROM public.t`
	pgtest.Eventually(t, "the target to have everything", func() bool { return target.Int(t, count) == source.Int(t, count) })
	if status := p.stop(os.Interrupt); status != 0 {
		t.Errorf("interrupted: status %d", status)
	}
}
