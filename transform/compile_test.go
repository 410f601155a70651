package transform_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

func TestCompile(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		rule     transform.Rule
		target   string
		query    string
		key      string
		computed bool
		reshaped bool
		full     string
	}{
		"nothing": {
			target: "public.users", key: "id=id",
			query: `SELECT "id", "name", "eMail", "age", "note" FROM "public"."users"`,
		},
		"rename table": {
			rule: transform.Rule{To: "customers"}, target: "public.customers", key: "id=id", reshaped: true,
			query: `SELECT "id", "name", "eMail", "age", "note" FROM "public"."users"`,
		},
		"other schema, quoted": {
			rule: transform.Rule{To: `shop."Key.Account"`}, target: `shop."Key.Account"`, key: "id=id", reshaped: true,
			query: `SELECT "id", "name", "eMail", "age", "note" FROM "public"."users"`,
		},
		"rename columns": {
			rule:   transform.Rule{Columns: map[string]string{"customer_id": "id", "email": `"eMail"`, "years": " AGE "}},
			target: "public.users", key: "id=customer_id", reshaped: true,
			query: `SELECT "id" AS "customer_id", "name", "eMail" AS "email", "age" AS "years", "note" FROM "public"."users"`,
		},
		"swap": {
			rule:   transform.Rule{Columns: map[string]string{"name": "note", "note": "name"}, Drop: []string{"initial"}},
			target: "public.users", key: "id=id", reshaped: true,
			query: `SELECT "id", "name" AS "note", "eMail", "age", "note" AS "name" FROM "public"."users"`,
		},
		"drop": {
			rule: transform.Rule{Drop: []string{"note", "age"}}, target: "public.users", key: "id=id", reshaped: true,
			query: `SELECT "id", "name", "eMail" FROM "public"."users"`,
		},
		"key dropped, next one taken": {
			rule: transform.Rule{Drop: []string{"id"}}, target: "public.users", key: "name=name", reshaped: true,
			query: `SELECT "name", "eMail", "age", "note" FROM "public"."users"`,
			full:  `key column "name" is not part of its replica identity`,
		},
		"no key left": {
			rule: transform.Rule{Drop: []string{"id"}, Columns: map[string]string{"name": "upper(name)"}, Create: "CREATE TABLE users ()"}, target: "public.users", computed: true, reshaped: true,
			query: `SELECT "eMail", "age", "note", (upper(name)) AS "name" FROM "public"."users"`,
			full:  "no key of the table is carried over unchanged",
		},
		"computed and dropped inputs": {
			rule:   transform.Rule{Columns: map[string]string{"label": "name || ' ' || coalesce(note, '')"}, Drop: []string{"note"}},
			target: "public.users", key: "id=id", computed: true, reshaped: true,
			query: `SELECT "id", "name", "eMail", "age", (name || ' ' || coalesce(note, '')) AS "label" FROM "public"."users"`,
			full:  `rows are computed from column "name", which an update may leave out of the stream`,
		},
		"where": {
			rule: transform.Rule{Where: "age > 17", Drop: []string{"name", "eMail", "note", "initial"}}, target: "public.users", key: "id=id", computed: true, reshaped: true,
			query: `SELECT "id", "age" FROM "public"."users" WHERE (age > 17)`,
		},
		"where over a large value": {
			rule: transform.Rule{Where: "note <> ''"}, target: "public.users", key: "id=id", computed: true,
			query: `SELECT "id", "name", "eMail", "age", "note" FROM "public"."users" WHERE (note <> '')`,
			full:  `rows are computed from column "name", which an update may leave out of the stream`,
		},
		"constant": {
			rule: transform.Rule{Columns: map[string]string{"note": "NULL"}}, target: "public.users", key: "id=id", computed: true, reshaped: true,
			query: `SELECT "id", "name", "eMail", "age", (NULL) AS "note" FROM "public"."users"`,
			full:  `rows are computed from column "name", which an update may leave out of the stream`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := compileUsers(t, tt.rule)
			var key []string
			for _, k := range m.Key {
				key = append(key, k.Source+"="+k.Target)
			}
			_, full := transform.NeedsFull(m)
			got := []any{m.Target.Display(), m.Query(), strings.Join(key, ","), m.Computed(), m.Reshaped(), full}
			want := []any{tt.target, tt.query, tt.key, tt.computed, tt.reshaped, tt.full}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("target, query, key, computed, reshaped, full (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCompileErrors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		table     string
		rule      transform.Rule
		err, hint string
	}{
		"unknown table":           {table: "usres", err: `no table "usres" among the selected ones`, hint: `did you mean "users"?`},
		"unknown schema":          {table: "pubic.users", err: `no table "pubic.users"`, hint: `did you mean "public.users"?`},
		"no name":                 {table: "a.b.c", err: `"a.b.c" is no table name`},
		"ambiguous":               {table: "twice", err: "ambiguous", hint: "write a.twice or b.twice"},
		"partition":               {table: "log_1", err: "it is a partition", hint: "put the rule on public.log"},
		"foreign":                 {table: "far", err: "it is a foreign table"},
		"unlogged":                {table: "scratch", err: "it is unlogged"},
		"unknown dropped":         {rule: transform.Rule{Drop: []string{"nam"}}, err: `drop: table public.users has no column "nam"`, hint: `did you mean "name"?`},
		"unknown renamed":         {rule: transform.Rule{Columns: map[string]string{"full_name": "nam"}}, err: `no column "nam"`, hint: `did you mean "name"?`},
		"unknown, nothing like":   {rule: transform.Rule{Drop: []string{"warehouse"}}, err: "no column", hint: "known here: id, name, eMail, age, note, initial"},
		"dropped and renamed":     {rule: transform.Rule{Drop: []string{"name"}, Columns: map[string]string{"x": "name"}}, err: `"name" is both dropped and carried over as "x"`},
		"generated renamed":       {rule: transform.Rule{Columns: map[string]string{"i": "initial"}}, err: "generated column", hint: "write the expression"},
		"generated used":          {rule: transform.Rule{Columns: map[string]string{"i": "lower(initial)"}}, err: "generated column", hint: "write the expression"},
		"generated lost":          {rule: transform.Rule{Columns: map[string]string{"full_name": "name"}}, err: `generated column "initial" does not carry over`, hint: "list it under drop"},
		"empty expression":        {rule: transform.Rule{Columns: map[string]string{"x": " "}}, err: "no expression"},
		"bad target":              {rule: transform.Rule{To: "a..b"}, err: `to: "a..b" is no table name`},
		"condition of wrong type": {rule: transform.Rule{Where: "age"}, err: "not boolean"},
		"inverse of unknown":      {rule: transform.Rule{Inverse: map[string]string{"nam": "x"}}, err: `inverse: table public.users has no column "nam"`, hint: `did you mean "name"?`},
		"inverse from unknown": {
			rule: transform.Rule{Columns: map[string]string{"label": "upper(name)"}, Inverse: map[string]string{"name": "lable"}},
			err:  `inverse of "name": table public.users will have no column "lable"`, hint: `did you mean "label"?`,
		},
		"same target": {rule: transform.Rule{To: "log"}, err: "tables public.users and public.log both become public.log", hint: "one table on the target has one source"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.table == "" {
				tt.table = "users"
			}
			named := func(s, n string) schema.Table {
				return schema.Table{Name: schema.Name{Schema: s, Name: n}, Kind: schema.Ordinary}
			}
			root, leaf, far, scratch := named("public", "log"), named("public", "log_1"), named("public", "far"), named("public", "scratch")
			root.Kind, leaf.Parent, far.Kind, scratch.Unlogged = schema.Partitioned, &root.Name, schema.Foreign, true
			tables := []schema.Table{users(), named("a", "twice"), named("b", "twice"), root, leaf, far, scratch}

			_, err := transform.Compile(tables, map[string]transform.Rule{tt.table: tt.rule}, fixed)
			if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(hint.Of(err), tt.hint) || (tt.hint == "") != (hint.Of(err) == "") {
				t.Errorf("got %v (hint %q), want %q (hint %q)", err, hint.Of(err), tt.err, tt.hint)
			}
		})
	}
}

func TestCompileSkipsWhatDoesNotMove(t *testing.T) {
	t.Parallel()
	root := schema.Table{Name: schema.Name{Schema: "public", Name: "log"}, Kind: schema.Partitioned}
	leaf := schema.Table{Name: schema.Name{Schema: "public", Name: "log_1"}, Kind: schema.Ordinary, Parent: &root.Name}
	view := schema.Table{Name: schema.Name{Schema: "public", Name: "mv"}, Kind: schema.MaterializedView}
	parent := schema.Table{Name: schema.Name{Schema: "public", Name: "base"}, Kind: schema.Ordinary, Inherits: true}

	ms, err := transform.Compile([]schema.Table{root, leaf, view, parent}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range ms {
		got = append(got, ms[i].From()+" -> "+ms[i].TargetFrom())
	}
	want := []string{`"public"."log" -> "public"."log"`, `ONLY "public"."base" -> ONLY "public"."base"`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mappings (-want +got):\n%s", diff)
	}

	ms, err = transform.Compile([]schema.Table{leaf}, nil, nil) // its parent stays behind
	if err != nil || len(ms) != 1 {
		t.Errorf("a partition without its parent: %d mappings, %v; want 1", len(ms), err)
	}
}

func TestSQLRuns(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, usersDDL)
	db.Exec(t, `INSERT INTO users (name, "eMail", age, note) VALUES ('Ann', 'A@x.org', 20, 'n'), ('Bob', NULL, 10, NULL), ('Cy', 'c@x.org', NULL, 'it''s')`)
	ms, err := transform.Compile([]schema.Table{users()}, map[string]transform.Rule{"public.users": {
		To:    "shop.customers",
		Where: "age IS DISTINCT FROM 10 -- grown up",
		Columns: map[string]string{
			"Customer Id": "id",
			"email":       `lower("eMail")`,
			"born":        "2026 - users.age",
			"label":       `E'it\'s "' || name || $$"$$`,
		},
		Drop: []string{"note"},
	}}, describeIn(t, db))
	if err != nil {
		t.Fatal(err)
	}
	m := &ms[0]
	db.Exec(t, transform.CreateTable(m))
	db.Exec(t, "INSERT INTO "+m.TargetFrom()+" ("+schema.QuoteIdents(m.TargetColumns())+") "+m.Query("id > 0"))
	got := db.Strings(t, `SELECT "Customer Id", name, age, born, email, label, initial FROM shop.customers ORDER BY 1`)
	want := []string{`1|Ann|20|2006|a@x.org|it's "Ann"|A`, `3|Cy|NULL|NULL|c@x.org|it's "Cy"|C`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	got = db.Strings(t, `SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated FROM pg_attribute
		WHERE attrelid = 'shop.customers'::regclass AND attnum > 0 ORDER BY attnum`)
	want = []string{"Customer Id|integer|t|d|", "name|text|t||", "eMail|text|f||", "age|integer|f||", "born|integer|f||", "email|text|f||", "label|text|f||", "initial|text|f||s"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
}

func TestCreateTableKeepsSequenceName(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	m := compileUsers(t, transform.Rule{To: "customers"})
	db.Exec(t, transform.CreateTable(m))
	got := db.Strings(t, "SELECT pg_get_serial_sequence('customers', 'id')")
	if got[0] != "public.users_id_seq" {
		t.Errorf("sequence %s, want that of the source's column: public.users_id_seq", got[0])
	}
}
