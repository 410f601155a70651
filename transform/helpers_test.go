package transform_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// usersDDL is the table that users describes.
const usersDDL = `CREATE TABLE users (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL,
	"eMail" text,
	age int DEFAULT 18,
	note text,
	initial text GENERATED ALWAYS AS (left(name, 1)) STORED,
	UNIQUE (name)
)`

func users() schema.Table {
	text := schema.Type{OID: 25, Mod: -1, SQL: "text", Kind: 'b'}
	integer := schema.Type{OID: 23, Mod: -1, SQL: "integer", Kind: 'b'}
	return schema.Table{
		Name: schema.Name{Schema: "public", Name: "users"}, Kind: schema.Ordinary,
		Columns: []schema.Column{
			{Name: "id", Number: 1, Type: integer, NotNull: true, Identity: 'a'},
			{Name: "name", Number: 2, Type: text, NotNull: true, Toastable: true},
			{Name: "eMail", Number: 3, Type: text, Toastable: true},
			{Name: "age", Number: 4, Type: integer, Default: "18"},
			{Name: "note", Number: 5, Type: text, Toastable: true},
			{Name: "initial", Number: 6, Type: text, Generated: true, Default: `"left"(name, 1)`, Toastable: true},
		},
		Keys: []schema.Key{
			{Name: "users_pkey", Columns: []string{"id"}, Primary: true, Immediate: true},
			{Name: "users_name_key", Columns: []string{"name"}, Immediate: true},
		},
		Identity: schema.IdentityDefault, IdentKey: []string{"id"},
	}
}

// describeIn asks PostgreSQL, as schema/inspect does.
func describeIn(t *testing.T, db *pgtest.Database) transform.Describe {
	t.Helper()
	conn := db.Conn(t)
	return func(table schema.Name, expr string) (schema.Type, error) {
		rows, err := conn.Query(t.Context(), "SELECT ("+expr+"\n) FROM "+table.String()+" LIMIT 0", pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return schema.Type{}, err
		}
		rows.Close()
		if err := rows.Err(); err != nil {
			return schema.Type{}, err
		}
		f := rows.FieldDescriptions()[0]
		typ := schema.Type{OID: f.DataTypeOID, Mod: f.TypeModifier, Kind: 'b'}
		err = conn.QueryRow(t.Context(), "SELECT format_type($1, $2)", f.DataTypeOID, f.TypeModifier).Scan(&typ.SQL)
		return typ, err
	}
}

// fixed describes every expression as text and every condition as boolean.
func fixed(_ schema.Name, expr string) (schema.Type, error) {
	if expr == "age > 17" || expr == "note <> ''" {
		return schema.Type{OID: 16, Mod: -1, SQL: "boolean", Kind: 'b'}, nil
	}
	return schema.Type{OID: 25, Mod: -1, SQL: "text", Kind: 'b'}, nil
}

func compileUsers(t *testing.T, r transform.Rule) *transform.Mapping {
	t.Helper()
	ms, err := transform.Compile([]schema.Table{users()}, map[string]transform.Rule{"users": r}, fixed)
	if err != nil {
		t.Fatal(err)
	}
	return &ms[0]
}
