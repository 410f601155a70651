package verify

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

const resumeTables = `
CREATE TABLE big (id int PRIMARY KEY, v text); INSERT INTO big SELECT i, 'v' || i FROM generate_series(1, 20000) i;
CREATE TABLE keyless (v text); INSERT INTO keyless SELECT i::text FROM generate_series(1, 3000) i;
CREATE TABLE bytext (k text PRIMARY KEY, v int); INSERT INTO bytext SELECT 'k' || i, i FROM generate_series(1, 3000) i;
CREATE TABLE empty (id int PRIMARY KEY); ANALYZE;`

// An interrupted comparison goes on with what is missing, keeps the differences that it found, says
// at which instants it compared, and begins anew where the tables are others. Catches: a part that is
// skipped or compared twice, bounds that are drawn anew, a part without an end.
func TestResume(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, resumeTables)
	dst.Exec(t, "UPDATE big SET v = 'bad' WHERE id IN (1, 10000, 20000); INSERT INTO big VALUES (-5, 'low'), (30000, 'high')")
	cfg := config(t, src, dst)
	cfg.Workers, cfg.RangeRows, cfg.ChunkRows = 1, 2000, 1000

	stop := errors.New("interrupted")
	var saved []byte
	cfg.Save = func(c Checkpoint) (err error) {
		if saved, err = json.Marshal(c); err == nil && len(c.Parts) == 5 {
			err = stop
		}
		return err
	}
	if _, err := Run(t.Context(), cfg); !errors.Is(err, stop) {
		t.Fatalf("got %v", err)
	}
	var check Checkpoint
	if err := json.Unmarshal(saved, &check); err != nil {
		t.Fatal(err)
	}
	if len(check.Parts) != 5 || len(check.Bounds["public.big"]) != 9 {
		t.Fatalf("%d parts, bounds %v", len(check.Parts), check.Bounds)
	}

	// What was compared is not read again: a new difference there belongs to a later instant.
	src.Exec(t, "INSERT INTO big SELECT i, '' FROM generate_series(40000, 50000) i")
	dst.Exec(t, "INSERT INTO big SELECT i, '' FROM generate_series(40000, 50000) i")
	cfg.Resume = &check
	parts := 0
	cfg.Save = func(c Checkpoint) error {
		parts = len(c.Parts)
		return nil
	}
	r := run(t, cfg)
	if parts != 13 {
		t.Errorf("%d parts, want 13: ten of big and three tables", parts)
	}
	if got, want := summary(r.table(t, "big")), "0 2 3 [changed id=1 [v] changed id=10000 [v] changed id=20000 [v] extra id=-5 [] extra id=30000 []]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	total := r.table(t, "keyless").Rows + r.table(t, "bytext").Rows + r.table(t, "empty").Rows
	if len(r.Tables) != 4 || total != 6000 {
		t.Errorf("%d tables, %d rows in the others, want 4, 6000", len(r.Tables), total)
	}
	if len(r.Instants) != 2 || r.Instants[0].Tables != 5 || r.Instants[1].Tables != 8 || !r.Instants[0].At.Before(r.Instants[1].At) {
		t.Errorf("instants %+v", r.Instants)
	}

	// Another shape, or another pair, counts for nothing.
	for _, sql := range []string{"ALTER TABLE big ADD w int"} {
		src.Exec(t, sql)
		dst.Exec(t, sql)
	}
	cfg.Mappings = mappings(t, src, nil)
	if r := run(t, cfg); len(r.Instants) != 0 && slices.ContainsFunc(r.Instants, func(i Instant) bool { return i.Tables > 3 && i.At.Equal(check.Parts[0].Report.Instant.At) }) {
		t.Errorf("parts of another shape were kept: %+v", r.Instants)
	}
}

// Interrupted wherever, a resumed comparison finds what one in a piece finds.
func TestResumeAnywhere(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, resumeTables)
	dst.Exec(t, "DELETE FROM big WHERE id % 1999 = 0; DELETE FROM keyless WHERE v = '7'; UPDATE bytext SET v = 0 WHERE v = 3000")
	cfg := config(t, src, dst)
	cfg.RangeRows, cfg.ChunkRows = 3000, 1000
	want := run(t, cfg)
	for n := range 4 {
		cfg := cfg
		ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
		defer cancel()
		cfg.Save = func(c Checkpoint) error {
			cfg.Resume = &c
			if len(c.Parts) == 1+2*n {
				cancel()
			}
			return nil
		}
		if _, err := Run(ctx, cfg); err == nil {
			t.Fatalf("%d: not interrupted", n)
		}
		cfg.Save = func(Checkpoint) error { return nil }
		r := run(t, cfg)
		if r.Differences != want.Differences || r.Rows != want.Rows || r.TargetRows != want.TargetRows {
			t.Errorf("%d: %d differences in %d and %d rows, want %d in %d and %d", n, r.Differences, r.Rows, r.TargetRows, want.Differences, want.Rows, want.TargetRows)
		}
	}
}
