package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// What ficus may take, in MB: whatever it moves, and what is seen with little, and a third more, which
// shows a leak before the limit is reached.
const (
	mostMemory = 256
	fewRowsMay = 200
)

// TestMemoryIsFlat: the most memory that the program ever has does not depend on how much it copies,
// catches up with, or finds in one transaction.
//
// With FICUS_TEST_LONG=1 it is ten million rows instead of some hundred thousand, twenty times as many as
// it is compared with.
//
// It fails when a copy, the event store or the applier keeps what passes through it.
func TestMemoryIsFlat(t *testing.T) {
	few, many, most := 60_000, 240_000, fewRowsMay
	if os.Getenv("FICUS_TEST_LONG") != "" {
		few, many, most = 500_000, 10_000_000, mostMemory // by itself: others would wait for it
	} else {
		t.Parallel()
	}
	small, large := peaks(t, few), peaks(t, many)
	for i, p := range large {
		t.Logf("%s: %d MB for %d rows, %d MB for %d", p.after, small[i].mb, few, p.mb, many)
		if p.mb > most {
			t.Errorf("%s: %d MB, want at most %d", p.after, p.mb, most)
		}
	}
	if few, many := small[len(small)-1].mb, large[len(large)-1].mb; many > few*13/10 {
		t.Errorf("after all: %d MB, and %d MB with more rows", few, many)
	}
}

// A peak is the most memory that the program had up to a point.
type peak struct {
	after string
	mb    int
}

// peaks lets ficus follow a database and returns how much memory each kind of work took, of n rows
// each.
func peaks(t *testing.T, n int) []peak {
	t.Helper()
	cluster := pgtest.NewCluster(t) // its WAL would be lag of the others in the shared one
	source, target := cluster.DB(t), cluster.DB(t)
	writer := source.Conn(t) // of statements that take minutes where rows are many
	_, err := writer.Exec(t.Context(), fmt.Sprintf(`CREATE TABLE public.t (id bigint PRIMARY KEY, n int NOT NULL, v text NOT NULL); CREATE TABLE public.done (what text PRIMARY KEY);
		INSERT INTO public.t SELECT i, 0, repeat(md5(i::text), 5) FROM generate_series(1, %d) i`, n))
	must(t, err)
	run := ficus(t, t.TempDir(), "follow", "--name", nameFor(source), "--source", source.URL, "--target", target.URL)
	run.line("phase", map[string]any{"phase": "following"})
	got := []peak{{"copy", peakMB(t, run)}}
	for _, w := range []struct{ what, sql string }{
		{"small transactions", fmt.Sprintf(`DO $$ BEGIN FOR i IN 0..%d LOOP
			UPDATE public.t SET n = n + 1, v = v || 'x' WHERE id > i * 100 AND id <= i * 100 + 100; COMMIT; END LOOP; END $$`, n/100-1)},
		{"one large transaction", fmt.Sprintf(`INSERT INTO public.t SELECT i, 0, repeat(md5(i::text), 5) FROM generate_series(%d, %d) i`, n+1, 2*n)},
	} {
		_, err = writer.Exec(t.Context(), w.sql)
		must(t, err)
		source.Exec(t, `INSERT INTO public.done VALUES ('`+w.what+`')`)
		arrived := func() bool { return target.Int(t, `SELECT count(*) FROM public.done WHERE what = $1`, w.what) == 1 }
		for deadline := time.Now().Add(10 * time.Minute); !arrived(); {
			if time.Now().After(deadline) {
				t.Fatalf("%s did not arrive", w.what)
			}
			must(t, backoff.Sleep(t.Context(), 100*time.Millisecond))
		}
		got = append(got, peak{w.what, peakMB(t, run)})
	}
	return got
}

// peakMB returns the most memory that a process ever had.
func peakMB(t *testing.T, p *process) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	must(t, err)
	return kb / 1024
}
