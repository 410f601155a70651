package dump

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
)

const shop = `
	CREATE SCHEMA app; CREATE SCHEMA archive; CREATE SCHEMA other;
	CREATE EXTENSION hstore SCHEMA other;
	CREATE TYPE other.mood AS ENUM ('x'); CREATE TYPE other.unused AS ENUM ('y');
	CREATE FUNCTION other.f(int) RETURNS int LANGUAGE sql IMMUTABLE RETURN $1;
	CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
	CREATE SEQUENCE other.numbers; CREATE SEQUENCE app.free;
	CREATE TABLE app.users (id serial PRIMARY KEY, alt int GENERATED ALWAYS AS IDENTITY, mood other.mood, CHECK (other.f(id) > 0));
	CREATE INDEX users_mood ON app.users (mood);
	COMMENT ON TABLE app.users IS 'people'; COMMENT ON SCHEMA other IS 'odds'; COMMENT ON TYPE other.mood IS 'm';
	CREATE TRIGGER touched BEFORE INSERT ON app.users FOR EACH ROW EXECUTE FUNCTION app.touch();
	GRANT SELECT ON app.users TO PUBLIC;
	CREATE TABLE app.orders (id int PRIMARY KEY DEFAULT nextval('app.users_id_seq'), usr int REFERENCES app.users, no int DEFAULT nextval('other.numbers'));
	CREATE TABLE app.event (id int, at date) PARTITION BY RANGE (at);
	CREATE TABLE archive.event_2020 PARTITION OF app.event FOR VALUES FROM ('2020-01-01') TO ('2021-01-01') PARTITION BY LIST (id);
	CREATE TABLE archive.event_2020_1 PARTITION OF archive.event_2020 FOR VALUES IN (1);
	CREATE INDEX event_id ON app.event (id);
	CREATE VIEW app.v AS SELECT id FROM app.users;
	CREATE VIEW app.w AS SELECT id FROM app.v;
	CREATE MATERIALIZED VIEW app.mv AS SELECT usr FROM app.orders;
	CREATE TABLE archive.old (id serial)`

func TestSkipTables(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, shop)
	d := open(t, Config{Source: source.DSN, SkipTables: []schema.Name{name("app", "users"), name("app", "event")}})
	copyAll(t, d, target.DSN)
	want := []string{
		"app.free", "app.mv", "app.orders", "app.users_id_seq", "archive.old", "archive.old_id_seq", "other.numbers",
	}
	if diff := cmp.Diff(want, names(t, target)); diff != "" {
		t.Errorf("relations (-want +got):\n%s", diff)
	}
	if got := target.Strings(t, "SELECT conname FROM pg_constraint WHERE connamespace = 'app'::regnamespace"); !slices.Equal(got, []string{"orders_pkey"}) {
		t.Errorf("constraints: got %v", got)
	}
	if got := target.Strings(t, "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'app.orders'::regclass ORDER BY adnum"); len(got) != 2 || !strings.Contains(got[0], "users_id_seq") {
		t.Errorf("defaults of a table that stays: got %v", got)
	}
	warnings := []string{
		"view app.v is left out, because table app.users is",
		"view app.w is left out, because view app.v is",
		"foreign key app.orders orders_usr_fkey is left out, because table app.users is",
	}
	got := d.Warnings()
	slices.Sort(got)
	slices.Sort(warnings)
	if diff := cmp.Diff(warnings, got); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestFilter(t *testing.T) {
	t.Parallel()
	source := pgtest.DB(t)
	source.Exec(t, shop)
	for title, tt := range map[string]struct {
		filter            schema.Filter
		relations         []string
		schemas, warnings string
	}{
		"one schema, with what it needs": {
			schema.Filter{Include: []string{"app.*"}},
			[]string{
				"app.event", "app.free", "app.mv", "app.orders", "app.users", "app.users_alt_seq", "app.users_id_seq", "app.v", "app.w",
				"archive.event_2020", "archive.event_2020_1", "other.numbers",
			},
			"app archive other public", "",
		},
		"one table": {
			schema.Filter{Include: []string{"archive.old"}},
			[]string{"archive.old", "archive.old_id_seq"},
			"archive other public", "app.v app.w app.mv app.event",
		},
		"all but": {
			schema.Filter{Exclude: []string{"app.users", "archive.*", "app.event"}},
			[]string{"app.free", "app.mv", "app.orders", "app.users_id_seq", "other.numbers"},
			"app archive other public", "app.v app.w orders_usr_fkey",
		},
	} {
		target := pgtest.DB(t)
		d := open(t, Config{Source: source.DSN, Filter: tt.filter})
		copyAll(t, d, target.DSN)
		if diff := cmp.Diff(tt.relations, names(t, target)); diff != "" {
			t.Errorf("%s: relations (-want +got):\n%s", title, diff)
		}
		got := target.Strings(t, "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('ficus', 'information_schema') ORDER BY 1")
		if strings.Join(got, " ") != tt.schemas {
			t.Errorf("%s: schemas: got %v, want %s", title, got, tt.schemas)
		}
	}
}

// A table whose definition needs a table left out cannot move: its rows would be lost.
func TestTableThatNeedsAnother(t *testing.T) {
	t.Parallel()
	source := pgtest.DB(t)
	source.Exec(t, "CREATE TABLE animal (id int); CREATE TABLE dog () INHERITS (animal)")
	_, err := Open(t.Context(), Config{Source: source.DSN, Tools: tools(t), SkipTables: []schema.Name{name("public", "animal")}})
	if err == nil || !strings.Contains(err.Error(), "table public.dog cannot be copied without table public.animal") || hint.Of(err) == "" {
		t.Errorf("child of a table left out: got %v (hint: %s)", err, hint.Of(err))
	}
	if _, err := Open(t.Context(), Config{Source: source.DSN, Tools: tools(t), Filter: schema.Filter{Include: []string{`"a`}}}); err == nil {
		t.Error("bad pattern: no error")
	}
}
