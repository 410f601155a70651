package verify

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// A comparison in a process of its own is told what to compare by these.
const (
	childSource = "FICUS_TEST_VERIFY_SOURCE"
	childTarget = "FICUS_TEST_VERIFY_TARGET"
	childKeys   = "FICUS_TEST_VERIFY_KEYS" // how many a delta gets; none: everything is compared
)

// mayGrow is how much more memory a comparison of ten times as many rows may take, in kB: what the garbage
// collector leaves lying about. A row that is kept takes some hundred bytes, so 180,000 more of them far more.
const mayGrow = 6_000

// The most memory that a comparison ever has does not depend on the number of rows, nor on how many of them
// differ, nor on how many keys a delta is given. Looking into every row that differs, which keeping them leads
// to, does not come to an end in the time that the test has.
func TestMemoryIsFlat(t *testing.T) {
	t.Parallel()
	const few, many = 20_000, 200_000
	for _, tt := range []struct {
		name, create, bad string
		keys              bool
	}{
		{name: "equal", create: "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, %d) i"},
		{name: "all differ", create: "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, %d) i", bad: "UPDATE a SET v = 'bad'"},
		{name: "all missing, no key", create: "CREATE TABLE a (v text); INSERT INTO a SELECT md5(i::text) FROM generate_series(1, %d) i", bad: "TRUNCATE a"},
		{name: "touched", create: "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, %d) i", bad: "UPDATE a SET v = 'bad'", keys: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var peak [2]int
			for i, n := range []int{few, many} {
				src, dst := pair(t, fmt.Sprintf(tt.create, n)+"; ANALYZE")
				if tt.bad != "" {
					dst.Exec(t, tt.bad)
				}
				keys := 0
				if tt.keys {
					keys = n
				}
				peak[i] = compareInChild(t, src, dst, keys)
			}
			t.Logf("%d kB for %d rows, %d kB for %d", peak[0], few, peak[1], many)
			if peak[1] > peak[0]+mayGrow {
				t.Errorf("%d kB for %d rows, %d kB for %d", peak[0], few, peak[1], many)
			}
		})
	}
}

// compareInChild compares in a process of its own and returns the most memory that it had, in kB.
func compareInChild(t *testing.T, src, dst *pgtest.Database, keys int) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMemoryChild$", "-test.v")
	cmd.Env = append(os.Environ(), "GOGC=20", childSource+"="+src.URL, childTarget+"="+dst.URL, fmt.Sprintf("%s=%d", childKeys, keys))
	out, err := cmd.CombinedOutput()
	_, rest, ok := strings.Cut(string(out), "peak ")
	if err != nil || !ok {
		t.Fatalf("%v\n%s", err, out)
	}
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb
}

// TestMemoryChild is what compareInChild runs.
func TestMemoryChild(t *testing.T) {
	if os.Getenv(childSource) == "" {
		t.Skip("only as a child of TestMemoryIsFlat")
	}
	t.Parallel()
	cfg := Config{Workers: 2, ChunkRows: 50_000}
	var err error
	if cfg.Source, err = pg.Parse(os.Getenv(childSource)); err != nil {
		t.Fatal(err)
	}
	if cfg.Target, err = pg.Parse(os.Getenv(childTarget)); err != nil {
		t.Fatal(err)
	}
	conn, err := cfg.Source.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	tables, err := inspect.Tables(t.Context(), conn, inspect.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Mappings, err = transform.Compile(tables, nil, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(os.Getenv(childKeys)); err == nil && n > 0 {
		cfg.Keys = func(_ schema.Name, yield func(key []string) error) error {
			for i := 1; i <= n; i++ {
				if err := yield([]string{strconv.Itoa(i)}); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	t.Logf("peak %s", strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]))
}
