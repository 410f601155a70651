package fence

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/schema"
)

// TestArchive: every fenced table moves, partitions and tables of other schemas too, with rows, sequence and fence;
// again is no change; and then the fence can go.
//
// It fails when partitions stay behind, and when a second call moves the tables on.
func TestArchive(t *testing.T) {
	t.Parallel()
	d, db, role := installed(t)
	ctx := t.Context()
	db.Exec(t, `INSERT INTO public.t (v) VALUES (1), (2); INSERT INTO public."P q" VALUES (1, 1)`)
	must(t, d.CloseGate(ctx))
	const suffix = "_old_20261121"
	for range 2 {
		schemas, err := d.Archive(ctx, suffix)
		must(t, err)
		if diff := cmp.Diff([]string{"public" + suffix}, schemas); diff != "" {
			t.Errorf("schemas: %s", diff)
		}
	}
	left := db.Strings(t, `SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S') ORDER BY 1`)
	if want := []string{"other"}; !slices.Equal(left, want) {
		t.Errorf("left in public: %q, want %q", left, want)
	}
	if n := db.Int(t, `SELECT (SELECT count(*) FROM public_old_20261121.t) + (SELECT count(*) FROM public_old_20261121."P q")`); n != 3 {
		t.Errorf("%d rows are there, want 3", n)
	}
	db.Exec(t, `GRANT USAGE ON SCHEMA public_old_20261121 TO `+schema.QuoteIdent(role))
	app := db.Conn(t)
	if _, err := app.Exec(ctx, `SET ROLE `+schema.QuoteIdent(role)); err != nil {
		t.Fatal(err)
	}
	refused(t, app, `INSERT INTO public_old_20261121.t (v) VALUES (3)`)
	must(t, d.Uninstall(ctx))
	if _, err := app.Exec(ctx, `INSERT INTO public_old_20261121.t (v) VALUES (3)`); err != nil {
		t.Errorf("without the fence: %v", err)
	}
	db.Exec(t, fmt.Sprintf(`REVOKE ALL ON SCHEMA public_old_20261121 FROM %s`, schema.QuoteIdent(role)))
}

// TestArchiveName: a name that would become too long is cut, not its day, and never inside a letter.
func TestArchiveName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"public": "public_old_20261121",
		"a_schema_with_a_name_that_is_as_long_as_postgresql_keeps_names_": "a_schema_with_a_name_that_is_as_long_as_postgresql_old_20261121",
		"ääääääääääääääääääääääääääääää":                                  "äääääääääääääääääääääääää_old_20261121",
	} {
		if got := archiveName(name, "_old_20261121"); got != want || len(got) > maxIdentifier {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
