package inspect

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
)

// Describe returns the type of an SQL expression over the columns of a table, which the expression
// may name as the table's unqualified name. PostgreSQL parses the expression and does not run it.
func Describe(ctx context.Context, conn *pgx.Conn, table schema.Name, expr string) (schema.Type, error) {
	// The line break ends a comment that the expression may end with.
	sql := "SELECT (" + expr + "\n) FROM " + table.String() + " AS " + schema.QuoteIdent(table.Name)
	desc, err := conn.PgConn().Prepare(ctx, "", sql, nil)
	if err != nil {
		return schema.Type{}, hint.Wrap(fmt.Errorf("expression %q over %s: %w", expr, table.Display(), err),
			"an expression is PostgreSQL's SQL over the columns of %s; functions and types outside pg_catalog need their schema's name", table.Display())
	}
	if len(desc.Fields) != 1 || len(desc.ParamOIDs) != 0 {
		return schema.Type{}, hint.Wrap(fmt.Errorf("expression %q over %s: not one value", expr, table.Display()),
			"an expression yields one value and has no parameters ($1)")
	}
	t := schema.Type{OID: desc.Fields[0].DataTypeOID, Mod: desc.Fields[0].TypeModifier}
	var kind string
	err = conn.QueryRow(ctx, `SELECT pg_catalog.format_type(oid, $2), typtype::text FROM pg_catalog.pg_type WHERE oid = $1`,
		t.OID, t.Mod).Scan(&t.SQL, &kind)
	if err != nil {
		return schema.Type{}, fmt.Errorf("type of expression %q over %s: %w", expr, table.Display(), err)
	}
	t.Kind = kind[0]
	return t, nil
}
