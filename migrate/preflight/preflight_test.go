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
			name: "publications and privileges of somebody else", source: table + `; CREATE PUBLICATION theirs FOR ALL TABLES; CREATE PUBLICATION ficus_m_forward;
				DO $$BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %I TO PUBLIC', current_database()); END$$`,
			want: []string{"warning publication theirs", "info database-privileges database"},
		},
		{
			name: "settings of the database", source: table + `; DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 5000', current_database()); END$$`,
			want: []string{"warning settings database"},
		},
		{
			name:   "an index that is not valid, a column of numbers of objects",
			source: table + `; CREATE INDEX i ON public.t (id); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'public.i'::regclass; CREATE TABLE public.o (o oid PRIMARY KEY)`,
			want:   []string{"warning invalid-index public.i", "info oid-column public.o.o"},
		},
		{
			name: "triggers that fire for replicas", source: table + always("ALWAYS"), target: "CREATE TABLE public.other ()",
			want: []string{"warning fires-always public.t"},
		},
		{
			name: "triggers of the target that fire for replicas", source: table, target: table + always("REPLICA"),
			change: func(_ *testing.T, c *Config) { c.CopiesSchema = false }, want: []string{"warning fires-always public.t"},
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

// always makes a trigger that fires for replicas as well.
func always(when string) string {
	return `; CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER a AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f(); CREATE TRIGGER plain AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f();
		ALTER TABLE public.t ENABLE ` + when + ` TRIGGER a`
}

// TestPrepared: a prepared transaction is named, for that is what COMMIT PREPARED takes.
func TestPrepared(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY)`)
	source.Exec(t, `BEGIN; INSERT INTO public.t VALUES (1); PREPARE TRANSACTION 'mine'`)
	t.Cleanup(func() { source.Exec(t, `ROLLBACK PREPARED 'mine'`) })
	if diff := cmp.Diff([]string{"warning prepared 'mine'"}, found(t, config(t, source, target))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestMissingRoles: Ficus makes no roles. One that a policy is for stands against the migration; what
// another owns or may do is told.
func TestMissingRoles(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.NewCluster(t).DB(t)
	roles := map[string]string{"o": source.Name + "_owner", "g": source.Name + "_granted", "p": source.Name + "_policy"}
	for _, r := range roles {
		source.Exec(t, `CREATE ROLE `+r)
		t.Cleanup(func() { source.Exec(t, `DROP OWNED BY `+r+`; DROP ROLE `+r) })
	}
	source.Exec(t, fmt.Sprintf(`CREATE TABLE public.t (id int PRIMARY KEY); CREATE TABLE public.o (id int PRIMARY KEY); ALTER TABLE public.o OWNER TO %s;
		GRANT SELECT ON public.t TO %s; CREATE POLICY p ON public.t TO %s`, roles["o"], roles["g"], roles["p"]))
	want := []string{"error role " + roles["p"], "warning role " + roles["g"], "warning role " + roles["o"]}
	if diff := cmp.Diff(want, found(t, config(t, source, target))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	target.Exec(t, `CREATE ROLE `+roles["p"]+`; CREATE ROLE `+roles["g"]+`; CREATE ROLE `+roles["o"])
	if diff := cmp.Diff([]string{}, found(t, config(t, source, target))); diff != "" {
		t.Errorf("with the roles: -want +got:\n%s", diff)
	}
}

// TestTypesAcrossVersions: what an older target lacks is told by column, and only then.
func TestTypesAcrossVersions(t *testing.T) {
	t.Parallel()
	at := func(major int, encoding string) inspect.Info { return inspect.Info{Major: major, Encoding: encoding} }
	interval, char, bpchar := schema.Type{OID: 1186}, schema.Type{OID: 18}, schema.Type{OID: 1042, Mod: 9}
	numeric, money := schema.Type{OID: 1700, Mod: -1}, schema.Type{OID: 1700, Mod: 655366}
	for _, tt := range []struct {
		name     string
		typ      schema.Type
		src, dst inspect.Info
		told     bool
	}{
		{"interval to an older server", interval, at(17, "UTF8"), at(16, "UTF8"), true},
		{"interval to a newer server", interval, at(16, "UTF8"), at(17, "UTF8"), false},
		{"interval between old servers", interval, at(16, "UTF8"), at(13, "UTF8"), false},
		{"numeric to an older server", numeric, at(14, "UTF8"), at(13, "UTF8"), true},
		{"numeric with a scale has no infinity", money, at(14, "UTF8"), at(13, "UTF8"), false},
		{"char to an older server", char, at(15, "UTF8"), at(14, "UTF8"), true},
		{"char to a newer server", char, at(13, "UTF8"), at(18, "UTF8"), true},
		{"char between new servers", char, at(15, "UTF8"), at(18, "UTF8"), false},
		{"char(n) from SQL_ASCII", bpchar, at(15, "SQL_ASCII"), at(15, "UTF8"), true},
		{"char(n)", bpchar, at(15, "LATIN1"), at(15, "UTF8"), false},
	} {
		if why, fix := inexact(tt.typ, tt.src, tt.dst); (why != "") != tt.told || (fix != "") != tt.told {
			t.Errorf("%s: got %q, %q", tt.name, why, fix)
		}
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
	cfg.EndsSessions = true
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
		"warning signal-backend source", "warning signal-backend target",
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
	cfg.FailoverSlot = true
	if diff := cmp.Diff([]string{"error wal-level source", "error slots source", "error failover-slot source"}, found(t, cfg)); source.Major < 17 && diff != "" {
		t.Errorf("with a failover slot: -want +got:\n%s", diff)
	}
	cfg.Follows, cfg.Promotes, cfg.FailoverSlot = false, false, false
	if diff := cmp.Diff([]string{}, found(t, cfg)); diff != "" {
		t.Errorf("a copy alone needs neither: -want +got:\n%s", diff)
	}
}
