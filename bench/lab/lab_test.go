package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newLab starts a small pair that waits for no disk.
func newLab(t *testing.T) *Lab {
	t.Helper()
	l, err := New(t.Context(), Config{Settings: map[string]string{"shared_buffers": "32MB", "fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return l
}

func TestLab(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	testClock(t, l)
	testSame(t, l)
}

// A table of each kind: one whose rows can be hashed, one whose json cannot, one without a key.
const mixed = `
CREATE TABLE plain (id int PRIMARY KEY, v text, n numeric); INSERT INTO plain SELECT i, 'v' || i, i / 3.0 FROM generate_series(1, 100) i;
CREATE TABLE docs (id int PRIMARY KEY, v json); INSERT INTO docs VALUES (1, '{"a": 1}'), (2, NULL);
CREATE TABLE heap (v int); INSERT INTO heap VALUES (1), (1), (2);
CREATE TABLE empty (v int);
CREATE INDEX ON plain (v)`

// Every run counts only because Same says so: each of these is a mistake that a tool could make.
func testSame(t *testing.T, l *Lab) {
	t.Helper()
	if err := errors.Join(l.Source.Create(t.Context(), "same", ""), l.Source.Exec(t.Context(), "same", mixed)); err != nil {
		t.Fatal(err)
	}
	want, err := l.Source.Fingerprint(t.Context(), "same")
	if err != nil {
		t.Fatal(err)
	}
	if want.Rows() != 105 {
		t.Errorf("%d rows in all, want 105", want.Rows())
	}
	for name, c := range map[string]struct{ change, want string }{
		"equal":             {"SELECT 1", ""},
		"other order":       {"DELETE FROM heap; INSERT INTO heap VALUES (2), (1), (1)", ""},
		"a row less":        {"DELETE FROM plain WHERE id = 50", "public.plain has 99 rows, the source 100"},
		"a row more":        {"INSERT INTO empty VALUES (1)", "public.empty has 1 rows, the source 0"},
		"a changed value":   {"UPDATE plain SET n = n + 0.000000000000000001 WHERE id = 7", "public.plain holds other values"},
		"null for a value":  {"UPDATE plain SET v = NULL WHERE id = 7", "public.plain holds other values"},
		"other json":        {`UPDATE docs SET v = '{"a": 2}' WHERE id = 1`, "public.docs holds other values"},
		"two rows swapped":  {"UPDATE plain SET v = 'v' || (3 - id) WHERE id IN (1, 2)", "public.plain holds other values"},
		"another double":    {"UPDATE heap SET v = 2 WHERE ctid = '(0,1)'", "public.heap holds other values"},
		"a table not there": {"DROP TABLE heap", "public.heap has 0 rows, the source 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := "same_" + strings.ReplaceAll(name, " ", "_")
			if err := errors.Join(l.Target.Create(t.Context(), db, ""), l.Target.Exec(t.Context(), db, mixed, c.change)); err != nil {
				t.Fatal(err)
			}
			switch err := l.Same(t.Context(), want, db); {
			case c.want == "" && err != nil:
				t.Errorf("%v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want it to contain %q", err, c.want)
			}
		})
	}
	indexes, err := l.Source.Indexes(t.Context(), "same")
	if want := "3 indexes, 2 constraints"; err != nil || indexes != want {
		t.Errorf("%q, %v; want %q", indexes, err, want)
	}
}

// Processor time is that of the cluster that worked, and of sessions that have ended, too.
func testClock(t *testing.T, l *Lab) {
	t.Helper()
	clock := l.Clock()
	if err := l.Source.Exec(t.Context(), "postgres", "SELECT count(md5(i::text)) FROM generate_series(1, 1000000) i"); err != nil {
		t.Fatal(err)
	}
	elapsed, used := clock.Stop()
	if used.Source < 50*time.Millisecond || used.Source > 2*elapsed {
		t.Errorf("the source used %s in %s", used.Source, elapsed)
	}
	if used.Target > used.Source {
		t.Errorf("the target did nothing and used %s, the source %s", used.Target, used.Source)
	}
}

func TestProcess(t *testing.T) {
	t.Parallel()
	p, err := Start(t.Context(), "/bin/sh", "-c", `echo '{"type":"a"}'; echo '{"type":"b","n":1}'; echo plain; echo why >&2; exit 3`)
	if err != nil {
		t.Fatal(err)
	}
	line, err := p.Line(t.Context(), map[string]any{"type": "b"})
	if err != nil || line["n"] != 1.0 {
		t.Errorf("line %v, %v", line, err)
	}
	if _, err := p.Line(t.Context(), map[string]any{"type": "c"}); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a line that never comes: %v, want what it said last", err)
	}
	if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("ended with %v", err)
	}
}

func TestProcessStops(t *testing.T) {
	t.Parallel()
	p, err := Start(t.Context(), "/bin/sh", "-c", `trap 'exit 0' INT; echo '{"type":"up"}'; while :; do :; done`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Line(t.Context(), map[string]any{"type": "up"}); err != nil {
		t.Fatal(err)
	}
	if p.PeakRSS() == 0 || p.CPU() < 0 {
		t.Errorf("%d bytes, %s", p.PeakRSS(), p.CPU())
	}
	if err := p.Stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	if p.PeakRSS() == 0 {
		t.Error("the memory of a process that has ended is forgotten")
	}
}

// A pipe's first program may fail while the second is content.
func TestPipe(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]string{"echo x": "", "echo x; echo broken >&2; exit 1": "broken"} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			switch _, err := Pipe(t.Context(), []string{"/bin/sh", "-c", script}, []string{"/bin/sh", "-c", "read -r line"}); {
			case want == "" && err != nil:
				t.Error(err)
			case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("error %v, want %q in it", err, want)
			}
		})
	}
	if _, err := Pipe(t.Context(), []string{"/bin/echo"}, []string{"/no/such/program"}); err == nil {
		t.Error("a program that is not there ran")
	}
}

func TestReadStat(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{"itself": "/proc/self/stat"} {
		s, err := readStat(path)
		if err != nil {
			t.Skipf("%s: %v", name, err)
		}
		if s.pid == 0 || s.parent == 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if got := fmt.Sprint(processCPU(1 << 30)); got != "0s" {
		t.Errorf("a process that is not there used %s", got)
	}
}
