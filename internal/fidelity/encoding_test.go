package fidelity

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// Text of databases in other encodings is the same characters on the target.
func TestEncodings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ from, to, text string }{
		{"LATIN1", "UTF8", "àéîõü ÿ ¡"},
		{"LATIN1", "LATIN1", "àéîõü ÿ ¡"},
		{"EUC_JP", "UTF8", "漢字かな"},
		{"UTF8", "LATIN1", "only what LATIN1 has: é"},
		{"SQL_ASCII", "UTF8", "žluťoučký 🎉"}, // bytes that happen to be UTF-8
		{"SQL_ASCII", "SQL_ASCII", "žluťoučký 🎉"},
	} {
		t.Run(tt.from+"to"+tt.to, func(t *testing.T) {
			t.Parallel()
			from, to := pgtest.DB(t, pgtest.Encoding(tt.from)), pgtest.DB(t, pgtest.Encoding(tt.to))
			const tables = `CREATE TABLE "tablé" (k text PRIMARY KEY, "naïve" varchar(40), c char(30), j jsonb, a text[]);
				CREATE TABLE no_key (v text); ALTER TABLE no_key REPLICA IDENTITY FULL`
			ddl := tables
			if tt.from != "LATIN1" {
				ddl = strings.NewReplacer("é", "e", "ï", "i").Replace(tables)
			}
			if tt.from == "SQL_ASCII" { // counts bytes where others count characters, so it pads to another length
				ddl = strings.ReplaceAll(ddl, "char(30)", "text")
			}
			from.Exec(t, ddl)
			to.Exec(t, ddl)
			table, column := `"table"`, `"naive"`
			if tt.from == "LATIN1" {
				table, column = `"tablé"`, `"naïve"`
			}
			from.Exec(t, fmt.Sprintf(`INSERT INTO %s SELECT i || '%[2]s', '%[2]s', '%[2]s', to_jsonb('%[2]s'::text), ARRAY['%[2]s', NULL] FROM generate_series(1, 9) AS i;
				INSERT INTO no_key SELECT '%[2]s' FROM generate_series(1, 3)`, table, tt.text))
			p := start(t, from, to)
			from.Exec(t, fmt.Sprintf(`UPDATE %s SET %s = '%[3]s!', c = NULL WHERE k = '1%[3]s'; DELETE FROM %[1]s WHERE k = '2%[3]s'; UPDATE %[1]s SET k = '%[3]s' WHERE k = '3%[3]s';
				INSERT INTO %[1]s VALUES ('%[3]s%[3]s', '%[3]s');
				DELETE FROM no_key WHERE ctid = (SELECT ctid FROM no_key LIMIT 1); UPDATE no_key SET v = '%[3]s!' WHERE ctid = (SELECT ctid FROM no_key LIMIT 1)`,
				table, column, tt.text))
			p.equal(t)
		})
	}
}
