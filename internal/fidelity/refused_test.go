package fidelity

import (
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate/preflight"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// What cannot be moved is told before anything is done, and moves nothing else wrongly.
func TestWhatDoesNotMoveIsReported(t *testing.T) {
	t.Parallel()
	from, to := pgtest.DB(t), pgtest.DB(t)
	from.Exec(t, `
		CREATE TABLE plain (id int PRIMARY KEY);
		CREATE UNLOGGED TABLE quick (id int PRIMARY KEY);
		CREATE MATERIALIZED VIEW summary AS SELECT count(*) FROM plain;
		CREATE EXTENSION postgres_fdw SCHEMA public; CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw; CREATE FOREIGN TABLE far (id int) SERVER elsewhere;
		CREATE VIEW a_view AS SELECT * FROM plain; CREATE SEQUENCE numbers;
		SELECT lo_create(0)`)
	tables, err := inspect.Tables(t.Context(), from.Conn(t), inspect.Filter{})
	must(t, err)
	mappings, err := transform.Compile(tables, nil, nil)
	must(t, err)
	if len(mappings) != 1 || mappings[0].Source.Name.Name != "plain" {
		t.Fatalf("mapped %d tables, want plain alone", len(mappings))
	}
	findings, err := preflight.Run(t.Context(), preflight.Config{
		Migration: "m", Source: from.DSN, Target: to.DSN, Tables: tables, Mappings: mappings, CopiesSchema: true, Follows: true,
		ForwardSlot: "f", ReverseSlot: "r",
	})
	must(t, err)
	var all strings.Builder
	for _, f := range findings {
		all.WriteString(f.Check + " " + f.Object + ": " + f.Message + "\n")
	}
	for _, want := range []string{
		"not-moved public.quick: its rows are not moved: it is unlogged",
		"not-moved public.summary: its rows are not moved: it is a materialized view",
		"not-moved public.far: its rows are not moved: it is a foreign table",
		"large-objects source: 1 large objects are not moved",
	} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("no finding %q in\n%s", want, &all)
		}
	}
}
