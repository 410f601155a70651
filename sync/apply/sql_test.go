package apply

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// TestKeysUseTheirIndex: a key of any type is found through its index, on a table that was never
// analyzed, and without a search_path.
func TestKeysUseTheirIndex(t *testing.T) {
	t.Parallel()
	target := newTarget(t, `CREATE EXTENSION citext; CREATE DOMAIN code AS varchar(10); CREATE TYPE mood AS ENUM ('a');
		CREATE TABLE parts (k int, v int, PRIMARY KEY (k)) PARTITION BY RANGE (k); CREATE TABLE parts_1 PARTITION OF parts DEFAULT`)
	conn, err := target.DSN.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if _, err := conn.PgConn().Exec(t.Context(), settings).ReadAll(); err != nil {
		t.Fatal(err)
	}
	for i, typ := range []string{
		"int", "bigint", "numeric", "text", "varchar(20)", "char(5)", "public.citext", "public.code", "public.mood", "uuid", "bytea", "date", "timestamptz",
		"inet", "cidr", "name", `"char"`, "int[]", "text[]", "int4range", "jsonb", "oid", "bool", "float8", "bit(3)", "time", "macaddr", "partitioned",
	} {
		name := schema.Name{Schema: "public", Name: "t" + string(rune('a'+i))}
		if typ == "partitioned" {
			name.Name = "parts"
		} else {
			target.Exec(t, "CREATE TABLE "+name.String()+" (k "+typ+" PRIMARY KEY, v int)")
		}
		for _, verb := range []verb{verbUpdate, verbMove, verbDelete} {
			s := shape{table: boundTable(t, conn, name), verb: verb}
			text, args := s.sql(viaTyped, true)
			explain := "PREPARE s AS " + text + "; EXPLAIN EXECUTE s(" + strings.Repeat("NULL,", len(args)) + "1); DEALLOCATE s"
			results, err := conn.PgConn().Exec(t.Context(), explain).ReadAll()
			if err != nil {
				t.Fatalf("%s: %v", explain, err)
			}
			var plan strings.Builder
			for _, row := range results[1].Rows {
				plan.Write(append(row[0], '\n'))
			}
			if !strings.Contains(plan.String(), "Index Cond: (k ") && !strings.Contains(plan.String(), "Index Cond: ((k)") || strings.Contains(plan.String(), "Seq Scan") {
				t.Errorf("%s, %s:\n%s\n%s", typ, verb, text, plan.String())
			}
		}
	}
}

// boundTable binds a table of columns k, the key, and v to itself.
func boundTable(t *testing.T, conn *pgx.Conn, name schema.Name) *table {
	t.Helper()
	m := transform.Mapping{
		Source: schema.Table{Name: name, Columns: []schema.Column{{Name: "k"}, {Name: "v"}}}, Target: name,
		Columns: []transform.Column{{Target: "k", Source: "k"}, {Target: "v", Source: "v"}}, Key: []transform.KeyColumn{{Source: "k", Target: "k"}},
	}
	targets, err := loadTargets(t.Context(), conn, []transform.Mapping{m})
	if err != nil {
		t.Fatal(err)
	}
	rel := &change.Relation{ReplicaIdentity: 'd', Columns: []change.Column{{Name: "k", Identity: true}, {Name: "v"}}}
	table, err := bind(rel, &m, targets[name])
	if err != nil {
		t.Fatal(err)
	}
	return table
}
