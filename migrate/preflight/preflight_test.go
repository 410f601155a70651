package preflight

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// config reads the source as cmd does.
func config(t *testing.T, source, target *pgtest.Database) Config {
	t.Helper()
	tables, err := inspect.Tables(t.Context(), source.Conn(t), schema.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	mappings, err := transform.Compile(tables, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Migration: "m", Source: source.DSN, Target: target.DSN, Tables: tables, Mappings: mappings,
		CopiesSchema: true, Follows: true, Promotes: true,
	}
}

// found runs preflight and returns "severity check object" of each finding. Every error names a way out.
func found(t *testing.T, cfg Config) []string {
	t.Helper()
	findings, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, f := range findings {
		got = append(got, fmt.Sprintf("%s %s %s", f.Severity, f.Check, f.Object))
		if f.Severity == migrate.SeverityError && f.Fix == "" {
			t.Errorf("%s: %s: nothing says what mends it", f.Check, f.Message)
		}
		if f.Message == "" {
			t.Errorf("%s without a message", f.Check)
		}
	}
	return got
}

func TestFindings(t *testing.T) {
	t.Parallel()
	const table = `CREATE TABLE public.t (id int PRIMARY KEY)`
	for _, tt := range []struct {
		name           string
		source, target string
		change         func(t *testing.T, c *Config)
		want           []string
	}{
		{name: "nothing", source: table},
		{name: "no table", want: []string{"error tables source"}},
		{name: "occupied", source: table, target: table, want: []string{"error target-not-empty target"}},
		{
			name: "occupied by an earlier attempt", source: table,
			target: table + `; CREATE SCHEMA ficus; CREATE TABLE ficus.ownership (migration text); INSERT INTO ficus.ownership VALUES ('m')`,
		},
		{
			name: "occupied by another migration", source: table,
			target: `CREATE SCHEMA ficus; CREATE TABLE ficus.ownership (migration text); INSERT INTO ficus.ownership VALUES ('n')`,
			want:   []string{"error other-migration target"},
		},
		{
			name: "without a schema copy", source: table, change: func(_ *testing.T, c *Config) { c.CopiesSchema = false },
			want: []string{"error target-table target"},
		},
		{
			name: "without a schema copy, with rows", source: table, target: table + `; INSERT INTO public.t VALUES (1)`,
			change: func(_ *testing.T, c *Config) { c.CopiesSchema = false }, want: []string{"error target-not-empty target"},
		},
		{
			name: "same database", source: table, change: func(_ *testing.T, c *Config) { c.Target = c.Source },
			want: []string{"error same-database target", "error target-not-empty target"},
		},
		{
			name: "what does not move", source: table + `; CREATE UNLOGGED TABLE public.u (); CREATE MATERIALIZED VIEW public.m AS SELECT 1;
				SELECT lo_create(0)`,
			want: []string{"warning large-objects source", "warning not-moved public.m", "warning not-moved public.u"},
		},
		{
			name: "special treatment", source: table,
			change: func(_ *testing.T, c *Config) {
				c.Full = []schema.Name{{Schema: "public", Name: "t"}}
				c.InsertOnly, c.Lossy = c.Full, []string{"a column is dropped"}
			},
			want: []string{"warning inserts-only public.t", "warning lossy ", "info replica-identity public.t"},
		},
		{
			name: "partitions", source: `CREATE TABLE public.p (id int PRIMARY KEY) PARTITION BY RANGE (id)`,
			want: []string{"warning partitions public.p"},
		},
		{
			name: "no pg_dump", source: table,
			change: func(_ *testing.T, c *Config) { c.Tools = hint.Wrap(errors.New("no pg_dump"), "install it") },
			want:   []string{"error pg_dump source"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			source, target := pgtest.DB(t), pgtest.DB(t)
			source.Exec(t, tt.source)
			target.Exec(t, tt.target)
			cfg := config(t, source, target)
			if tt.change != nil {
				tt.change(t, &cfg)
			}
			if diff := cmp.Diff(append([]string{}, tt.want...), found(t, cfg)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestPoorRole: a role that may do nothing is told all that it lacks, on both sides.
func TestPoorRole(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY); ALTER TABLE public.t ENABLE ROW LEVEL SECURITY`)
	role := "poor_" + source.Name
	source.Exec(t, `CREATE ROLE `+schema.QuoteIdent(role)+` LOGIN`)
	t.Cleanup(func() { source.Exec(t, `DROP ROLE `+schema.QuoteIdent(role)) })
	cfg := config(t, source, target)
	for _, dsn := range []*pg.DSN{&cfg.Source, &cfg.Target} {
		c := dsn.Config()
		poor, err := pg.Parse(fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", c.Host, c.Port, role, c.Database))
		if err != nil {
			t.Fatal(err)
		}
		*dsn = poor
	}
	got := found(t, cfg)
	slices.Sort(got)
	name := `"public"."t"`
	want := []string{
		"error create source", "error create target", "error owner " + name, "error replication source", "error replication target",
		"error replication-role source", "error replication-role target", "error row-security " + name, "error select " + name,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestServerSettings: wal_level and slots are asked of the origin of each link.
func TestServerSettings(t *testing.T) {
	t.Parallel()
	source := pgtest.NewCluster(t, pgtest.Setting("wal_level", "replica"), pgtest.Setting("max_replication_slots", "1")).DB(t)
	target := pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY)`)
	cfg := config(t, source, target)
	if diff := cmp.Diff([]string{"error wal-level source", "error slots source"}, found(t, cfg)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	cfg.Follows, cfg.Promotes = false, false
	if diff := cmp.Diff([]string{}, found(t, cfg)); diff != "" {
		t.Errorf("a copy alone needs neither: -want +got:\n%s", diff)
	}
}
