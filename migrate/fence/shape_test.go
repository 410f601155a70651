package fence

import (
	"strings"
	"testing"
)

// TestShape: nothing of a row's values is shown with a blocker's statement, also where the server cut it off.
func TestShape(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]string{
		`UPDATE users SET mail = 'anna@example.org', n = 42 WHERE id = $1`: `UPDATE users SET mail = ?, n = ? WHERE id = $1`,
		"SELECT t1.c2\n\tFROM \"O'Brien\" t1":                              `SELECT t1.c2 FROM "O'Brien" t1`,
		`INSERT INTO t VALUES ('it''s', E'x', -1.5e3, 0xFF)`:               `INSERT INTO t VALUES (?, E?, -?, ?)`,
		`INSERT INTO t VALUES ('secr`:                                      `INSERT INTO t VALUES (?...`,
		`INSERT INTO t VALUES (E'a\'secret', 1)`:                           `INSERT INTO t VALUES (E?...`,
		`DO $$ secret $$`:                                                  `DO ...`,
		`DO $tag$ secret $tag$`:                                            `DO ...`,
		`DELETE FROM t -- secret`:                                          `DELETE FROM t`,
		"DELETE FROM t -- secret\nWHERE true":                              `DELETE FROM t WHERE true`,
		`DELETE /* secret */ FROM t`:                                       `DELETE ...`,
		`DELETE FROM "secr`:                                                `DELETE FROM ...`,
		``:                                                                 ``,
	} {
		if got := shape(sql); got != want {
			t.Errorf("shape(%q) = %q, want %q", sql, got, want)
		}
	}
	if got := shape("SELECT " + strings.Repeat("ü", 500)); len([]rune(got)) > shapeLength {
		t.Errorf("%d characters", len([]rune(got)))
	}
}

func FuzzShape(f *testing.F) {
	f.Add(`SELECT 'secret', $1, $$secret$$, "secret`)
	f.Fuzz(func(t *testing.T, sql string) {
		if strings.Contains(shape("SELECT 'secret"+sql), "secret") && !strings.Contains(sql, "secret") {
			t.Errorf("a literal shows: %q", shape("SELECT 'secret"+sql))
		}
	})
}
