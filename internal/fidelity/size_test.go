package fidelity

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// Large values and wide rows, up to what PostgreSQL takes.
func TestSizes(t *testing.T) {
	t.Parallel()
	megabytes, columns := 3, 300
	if long() {
		megabytes, columns = 100, 1599 // and the key
	}
	from, to := pgtest.DB(t), pgtest.DB(t)
	defs, values := make([]string, columns), make([]string, columns)
	for i := range defs {
		defs[i], values[i] = fmt.Sprintf("c%d %s", i, []string{"int", "bool", "smallint"}[i%3]), []string{"i", "true", "1"}[i%3]
	}
	ddl := `CREATE TABLE large (id int PRIMARY KEY, t text, b bytea, n int); CREATE TABLE large_no_key (t text, n int); ALTER TABLE large_no_key REPLICA IDENTITY FULL;
		CREATE TABLE wide (id int PRIMARY KEY, ` + strings.Join(defs, ", ") + `);
		CREATE TABLE wide_no_key (LIKE wide); ALTER TABLE wide_no_key REPLICA IDENTITY FULL`
	from.Exec(t, ddl)
	to.Exec(t, ddl)
	value := func(seed int) string {
		return fmt.Sprintf("(SELECT string_agg(repeat(md5((i + %d)::text), 32), '') FROM generate_series(1, 1024 * %d) AS i)", seed, megabytes)
	}
	from.Exec(t, "INSERT INTO large VALUES (1, "+value(1)+", NULL, 0), (2, NULL, convert_to("+value(2)+", 'UTF8'), 0); INSERT INTO large_no_key VALUES ("+value(1)+", 0)")
	row := "SELECT i, " + strings.Join(values, ", ") + " FROM generate_series(1, 20) AS i"
	from.Exec(t, "INSERT INTO wide "+row+"; INSERT INTO wide_no_key "+row)

	p := start(t, from, to)
	from.Exec(t, "UPDATE large SET n = 1; INSERT INTO large VALUES (3, "+value(3)+", NULL, 3)")
	from.Exec(t, "UPDATE large SET t = "+value(4)+" WHERE id = 2; UPDATE large SET id = 10 WHERE id = 1")
	from.Exec(t, "UPDATE large_no_key SET n = 1")
	last := fmt.Sprintf("c%d", columns-1)
	for _, table := range []string{"wide", "wide_no_key"} {
		from.Exec(t, fmt.Sprintf("UPDATE %s SET c0 = NULL WHERE id < 5; UPDATE %[1]s SET %s = NULL WHERE id = 6; DELETE FROM %[1]s WHERE id = 7; INSERT INTO %[1]s (id) VALUES (99); UPDATE %[1]s SET id = 100 WHERE id = 8", table, last))
	}
	p.equal(t)
}
