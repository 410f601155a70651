package evolve

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// types by the words that the tests use for them.
func typ(sql string) schema.Type {
	known := map[string]schema.Type{
		"smallint": {OID: oidInt2, Mod: -1}, "integer": {OID: oidInt4, Mod: -1}, "bigint": {OID: oidInt8, Mod: -1},
		"text": {OID: oidText, Mod: -1}, "character varying": {OID: oidVarchar, Mod: -1},
		"character varying(5)": {OID: oidVarchar, Mod: 9}, "character varying(10)": {OID: oidVarchar, Mod: 14},
		"numeric": {OID: oidNumeric, Mod: -1}, "numeric(10,2)": {OID: oidNumeric, Mod: 10<<16 | 2 + 4}, "numeric(12,2)": {OID: oidNumeric, Mod: 12<<16 | 2 + 4},
		"numeric(12,3)": {OID: oidNumeric, Mod: 12<<16 | 3 + 4}, "numeric(3,-2)": {OID: oidNumeric, Mod: 3<<16 | 0x7fe + 4}, "numeric(5,-2)": {OID: oidNumeric, Mod: 5<<16 | 0x7fe + 4},
		"bit varying(4)": {OID: oidVarbit, Mod: 4}, "bit varying(8)": {OID: oidVarbit, Mod: 8}, "bit varying": {OID: oidVarbit, Mod: -1},
		"timestamp(3)": {OID: oidTimestamp, Mod: 3}, "timestamp(6)": {OID: oidTimestamp, Mod: 6}, "timestamp": {OID: oidTimestamp, Mod: -1}, "timestamptz": {OID: oidTimestamptz, Mod: -1},
		"time(0)": {OID: oidTime, Mod: 0}, "time(2)": {OID: oidTime, Mod: 2},
		"character(5)": {OID: 1042, Mod: 9}, "character(9)": {OID: 1042, Mod: 13}, "real": {OID: 700, Mod: -1}, "double precision": {OID: 701, Mod: -1},
		"character varying(5)[]": {OID: oidVarcharArray, Mod: 9}, "text[]": {OID: oidTextArray, Mod: -1},
		"mood": {OID: 20001, Mod: -1}, "temper": {OID: 20002, Mod: -1},
	}
	t := known[sql]
	t.SQL = sql
	return t
}

func TestWidens(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"smallint", "integer", true},
		{"smallint", "bigint", true},
		{"integer", "bigint", true},
		{"bigint", "integer", false},
		{"integer", "smallint", false},
		{"integer", "numeric", false},
		{"integer", "text", false},
		{"character varying(5)", "character varying(10)", true},
		{"character varying(5)", "character varying", true},
		{"character varying(5)", "text", true},
		{"character varying", "text", true},
		{"character varying(10)", "character varying(5)", false},
		{"character varying", "character varying(10)", false},
		{"text", "character varying", false},
		{"character varying(5)[]", "text[]", true},
		{"character varying(5)[]", "text", false},
		{"numeric(10,2)", "numeric(12,2)", true},
		{"numeric(10,2)", "numeric", true},
		{"numeric(3,-2)", "numeric(5,-2)", true},
		{"numeric(12,2)", "numeric(10,2)", false},
		{"numeric(10,2)", "numeric(12,3)", false},
		{"numeric", "numeric(12,2)", false},
		{"bit varying(4)", "bit varying(8)", true},
		{"bit varying(4)", "bit varying", true},
		{"bit varying", "bit varying(8)", false},
		{"timestamp(3)", "timestamp(6)", true},
		{"timestamp(3)", "timestamp", true},
		{"timestamp", "timestamp(3)", false},
		{"timestamp", "timestamptz", false},
		{"time(0)", "time(2)", true},
		{"time(2)", "time(0)", false},
		{"character(5)", "character(9)", false},
		{"real", "double precision", false},
		{"mood", "temper", false},
	} {
		if got := Widens(typ(tt.from), typ(tt.to)); got != tt.want {
			t.Errorf("%s to %s: got %t, want %t", tt.from, tt.to, got, tt.want)
		}
	}
}

// table makes public.t of "name type" columns; the first is its key.
func table(columns ...string) schema.Table {
	t := schema.Table{OID: 7, Name: schema.Name{Schema: "public", Name: "t"}, Kind: schema.Ordinary, Identity: schema.IdentityDefault}
	for i, c := range columns {
		name, kind, _ := strings.Cut(c, " ")
		kind, def, _ := strings.Cut(kind, " = ")
		t.Columns = append(t.Columns, schema.Column{Name: name, Number: int16(i + 1), Type: typ(kind), Default: def, NotNull: i == 0})
	}
	key := []string{t.Columns[0].Name}
	t.Keys, t.IdentKey = []schema.Key{{Name: "t_pkey", Columns: key, Primary: true, Immediate: true}}, key
	return t
}

// notNull makes the last column NOT NULL.
func notNull(t schema.Table) schema.Table {
	t.Columns[len(t.Columns)-1].NotNull = true
	return t
}

// generated makes the first column, which is the key, one that the server computes.
func generated(t schema.Table) schema.Table {
	t.Columns[0].Generated = true
	return t
}

func renumber(t schema.Table, numbers ...int16) schema.Table {
	for i, n := range numbers {
		t.Columns[i].Number = n
	}
	return t
}

// follow compares, compiles and returns what the target is to do.
func follow(t *testing.T, known, target schema.Table, shape []schema.Column, now *Source, rule *transform.Rule) (*Evolution, []string, string) {
	t.Helper()
	e := Compare(&known, shape, now)
	rules := map[string]transform.Rule{}
	if rule != nil {
		rules["public.t"] = *rule
	}
	ms, err := transform.Compile([]schema.Table{e.Table}, rules, func(schema.Name, string) (schema.Type, error) { return typ("text"), nil })
	if err != nil {
		t.Fatal(err)
	}
	statements, doubt := e.Follow(&ms[0], &Target{Table: target})
	var sql []string
	for _, s := range statements {
		sql = append(sql, strings.TrimPrefix(s.SQL, `ALTER TABLE "public"."t" `))
	}
	return e, sql, doubt
}

func TestCompare(t *testing.T) {
	t.Parallel()
	full := table("id integer", "v text")
	for _, tt := range []struct {
		name          string
		was           schema.Table
		shape         []string // of the stream; nil: the catalog decides alone
		now           Source
		rule          *transform.Rule
		want          []string // differences
		safe, certain bool
		sql           []string
	}{
		{name: "nothing", was: full, now: Source{Table: full}, safe: true, certain: true},
		{
			// Breaks when a column that the stream never carries counts as gone from it.
			name: "nothing, and the key is generated", was: generated(table("id integer", "v text")), now: Source{Table: generated(table("id integer", "v text"))}, safe: true, certain: true,
		},
		{
			// Breaks when today's default is taken for the missing value.
			name: "constant default, another one today", was: full, shape: []string{"id integer", "v text", "n integer"},
			now:  Source{Table: table("id integer", "v text", "n integer = 7"), Missing: map[string]string{"n": "5"}},
			want: []string{`column "n" of type integer was added`}, safe: true, certain: true,
			sql: []string{`ADD COLUMN "n" integer DEFAULT '5'::integer`, `ALTER COLUMN "n" SET DEFAULT 7`},
		},
		{
			name: "constant default, none today", was: full, now: Source{Table: table("id integer", "v text", "n integer"), Missing: map[string]string{"n": "5"}},
			want: []string{`column "n" of type integer was added`}, safe: true, certain: true,
			sql: []string{`ADD COLUMN "n" integer DEFAULT '5'::integer`, `ALTER COLUMN "n" DROP DEFAULT`},
		},
		{
			name: "not null", was: full, now: Source{Table: notNull(table("id integer", "v text", "n integer = 5")), Missing: map[string]string{"n": "5"}},
			want: []string{`column "n" of type integer was added`}, safe: true, certain: true,
			sql: []string{`ADD COLUMN "n" integer DEFAULT '5'::integer`, `ALTER COLUMN "n" SET DEFAULT 5`, `ALTER COLUMN "n" SET NOT NULL`},
		},
		{
			// Breaks when NOT NULL is taken over although older rows may come: the column may have become it later.
			name: "not null, in the middle of the stream", was: full, shape: []string{"id integer", "v text", "n integer"},
			now:  Source{Table: notNull(table("id integer", "v text", "n integer = 5")), Missing: map[string]string{"n": "5"}},
			want: []string{`column "n" of type integer was added`}, safe: true, certain: true,
			sql: []string{`ADD COLUMN "n" integer DEFAULT '5'::integer`, `ALTER COLUMN "n" SET DEFAULT 5`},
		},
		{
			name: "no default", was: full, now: Source{Table: table("id integer", "v text", "n text")},
			want: []string{`column "n" of type text was added`}, safe: true, certain: true, sql: []string{`ADD COLUMN "n" text`},
		},
		{
			name: "volatile default", was: full, now: Source{Table: table("id integer", "v text", "n text = random()"), Rewritten: true},
			want: []string{`column "n" of type text was added`}, safe: true,
			sql: []string{`ADD COLUMN "n" text`, `ALTER COLUMN "n" SET DEFAULT random()`},
		},
		{
			name: "partitions disagree", was: full, now: Source{Table: table("id integer", "v text", "n text"), Uneven: map[string]bool{"n": true}},
			want: []string{`column "n" of type text was added`}, safe: true, sql: []string{`ADD COLUMN "n" text`},
		},
		{
			name: "serial", was: full, now: Source{
				Table: table("id integer", "v text", "n integer = nextval('s')"), Rewritten: true,
				Sequences: map[string]schema.Name{"n": {Schema: "public", Name: "s"}},
			},
			want: []string{`column "n" of type integer was added`}, safe: true,
			sql: []string{`ADD COLUMN "n" integer`, `CREATE SEQUENCE IF NOT EXISTS "public"."s"`, `ALTER SEQUENCE "public"."s" OWNED BY "public"."t"."n"`, `ALTER COLUMN "n" SET DEFAULT nextval('s')`},
		},
		{
			name: "two columns, the stream shows one", was: full, shape: []string{"id integer", "v text", "n integer"},
			now:  Source{Table: table("id integer", "v text", "n integer", "m text = 'x'"), Missing: map[string]string{"m": "x"}},
			want: []string{`column "n" of type integer was added`}, safe: true, certain: true, sql: []string{`ADD COLUMN "n" integer`},
		},
		{
			name: "the stream goes back to an older shape", was: table("id integer", "v bigint", "n integer"), shape: []string{"id integer", "v integer"},
			now:  Source{Table: table("id integer", "v bigint", "n integer")},
			want: []string{`column "v" of type bigint is now integer`, `column "n" of type integer was dropped`}, safe: true,
		},
		{
			name: "added and gone again", was: full, shape: []string{"id integer", "v text", "n integer"}, now: Source{Table: full},
			want: []string{`column "n" of type integer was added`}, safe: true, sql: []string{`ADD COLUMN "n" integer`},
		},
		{
			name: "widened", was: table("id integer", "v character varying(5)"), now: Source{Table: table("id bigint", "v text"), Rewritten: true},
			want: []string{`column "id" of type integer is now bigint`, `column "v" of type character varying(5) is now text`}, safe: true, certain: true,
			sql: []string{`ALTER COLUMN "id" TYPE bigint`, `ALTER COLUMN "v" TYPE text`},
		},
		{
			name: "narrowed", was: table("id bigint", "v text"), now: Source{Table: table("id bigint", "v character varying(5)")},
			want: []string{`column "v" of type text is now character varying(5)`}, // the target's text holds these, too
		},
		{
			name: "another enumeration", was: table("id bigint", "v mood"), now: Source{Table: table("id bigint", "v temper")},
			want: []string{`column "v" of type mood is now temper`}, sql: []string{`ALTER COLUMN "v" TYPE temper USING "v"::pg_catalog.text::temper`},
		},
		{
			name: "dropped", was: full, now: Source{Table: table("id integer")},
			want: []string{`column "v" of type text was dropped`}, certain: true,
		},
		{
			name: "renamed", was: full, now: Source{Table: table("id integer", "w text")},
			want: []string{`column "v" is now called "w"`}, certain: true, sql: []string{`RENAME COLUMN "v" TO "w"`},
		},
		{
			name: "renamed key", was: full, now: Source{Table: table("key integer", "v text")},
			want: []string{`column "id" is now called "key"`}, certain: true, sql: []string{`RENAME COLUMN "id" TO "key"`},
		},
		{
			// Breaks when columns are told apart by name alone: neither name nor type changed.
			name: "dropped and made again", was: full, now: Source{Table: renumber(table("id integer", "v text"), 1, 3)},
			want: []string{`column "v" was dropped and made again`},
		},
		{
			name: "key dropped with its column", was: full, now: Source{Table: table("v text")},
			want: []string{`column "v" was dropped and made again`, `column "v" is now NOT NULL`, `column "id" of type integer was dropped`, `the key (id) is now (v)`},
			sql:  []string{`ALTER COLUMN "v" SET NOT NULL`, `DROP COLUMN "id"`},
		},
		{
			name: "default and null", was: full, now: Source{Table: table("id integer", "v text = 'x'")},
			want: []string{`the default of column "v" is now 'x'`}, safe: true, certain: true, sql: []string{`ALTER COLUMN "v" SET DEFAULT 'x'`},
		},
		{
			name: "default is not looked at in the middle of the stream", was: full, shape: []string{"id integer", "v text"},
			now: Source{Table: table("id integer", "v text = 'x'")}, safe: true, certain: true,
		},
		{
			name: "rules keep their say", was: full, now: Source{Table: table("id integer", "v text", "n text", "secret text")},
			rule: &transform.Rule{Columns: map[string]string{"w": "v", "up": "upper(v)"}},
			want: []string{`column "n" of type text was added`, `column "secret" of type text was added`}, safe: true, certain: true,
			sql: []string{`ADD COLUMN "n" text`, `ADD COLUMN "secret" text`},
		},
		{
			name: "widened under another name", was: table("id integer", "v integer"), now: Source{Table: table("id integer", "v bigint")},
			rule: &transform.Rule{Columns: map[string]string{"w": "v"}},
			want: []string{`column "v" of type integer is now bigint`}, safe: true, certain: true, sql: []string{`ALTER COLUMN "w" TYPE bigint`},
		},
	} {
		var shape []schema.Column
		if tt.shape != nil {
			shape = table(tt.shape...).Columns
		}
		target := tt.was
		if tt.rule != nil {
			target.Columns = []schema.Column{target.Columns[0], {Name: "w", Type: target.Columns[1].Type}, {Name: "up", Type: typ("text")}}
		}
		e, sql, doubt := follow(t, tt.was, target, shape, &tt.now, tt.rule)
		var got []string
		for _, d := range e.Differences {
			got = append(got, d.String())
			if d.Why == "" != (d.Safe && d.Certain) {
				t.Errorf("%s: %s: safe %t, certain %t, why %q", tt.name, d, d.Safe, d.Certain, d.Why)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: differences (-want +got):\n%s", tt.name, diff)
		}
		if e.Safe() != tt.safe || e.Certain() != tt.certain || doubt != "" {
			t.Errorf("%s: safe %t, certain %t, doubt %q; want %t, %t", tt.name, e.Safe(), e.Certain(), doubt, tt.safe, tt.certain)
		}
		if diff := cmp.Diff(tt.sql, sql); diff != "" {
			t.Errorf("%s: statements (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestFollowAgain: what the target has done already, by us before a crash or by its operator, is not
// done twice; and a column with other values is no base to go on from.
func TestFollowAgain(t *testing.T) {
	t.Parallel()
	was, is := table("id integer", "v integer"), table("id integer", "v bigint", "n integer = 7")
	now := &Source{Table: is, Missing: map[string]string{"n": "5"}}
	e := Compare(&was, nil, now)
	ms, err := transform.Compile([]schema.Table{e.Table}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		target  schema.Table
		missing map[string]string
		sql     int
		doubt   bool
	}{
		{is, map[string]string{"n": "5"}, 0, false},
		{is, map[string]string{"n": "7"}, 0, true},
		{is, nil, 0, true},
		{table("id integer", "v bigint", "n integer"), map[string]string{"n": "5"}, 1, false},
		{table("id integer", "v bigint"), nil, 2, false},
	} {
		sql, doubt := e.Follow(&ms[0], &Target{Table: tt.target, Missing: tt.missing})
		if len(sql) != tt.sql || (doubt != "") != tt.doubt {
			t.Errorf("target %v, missing %v: got %v, doubt %q", tt.target.Columns, tt.missing, sql, doubt)
		}
	}
}

// TestIdentityOfOurs: REPLICA IDENTITY FULL that Ficus set is no change of the key.
func TestIdentityOfOurs(t *testing.T) {
	t.Parallel()
	was, is := table("id integer", "v text"), table("id integer", "v text", "n text")
	is.Identity, is.IdentKey = schema.IdentityFull, nil
	e := Compare(&was, nil, &Source{Table: is})
	if !e.Safe() || e.Table.Identity != schema.IdentityDefault || len(e.Table.IdentKey) != 1 {
		t.Errorf("got %v, identity %c %v", e.Differences, e.Table.Identity, e.Table.IdentKey)
	}
	is.Keys[0].Columns = []string{"v"}
	if e = Compare(&was, nil, &Source{Table: is}); e.Safe() || e.Table.IdentKey[0] != "v" {
		t.Errorf("other key: got %v, %v", e.Differences, e.Table.IdentKey)
	}
}
