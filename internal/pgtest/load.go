package pgtest

import (
	_ "embed"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// chinookSubstitute stands in for Chinook where that is not at hand: a few of its tables and rows.
//
//go:embed testdata/music.sql
var chinookSubstitute string

// Rows of pgbench's tables as Load makes them: a tenth of pgbench's scale 1.
const pgbenchTables = `
CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88)) WITH (fillfactor = 100);
CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84)) WITH (fillfactor = 100);
CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84)) WITH (fillfactor = 100);
CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
INSERT INTO pgbench_branches SELECT 1, 0, '';
INSERT INTO pgbench_tellers SELECT i, 1, 0, '' FROM generate_series(1, 10) i;
INSERT INTO pgbench_accounts SELECT i, 1, 0, '' FROM generate_series(1, 10000) i;
INSERT INTO pgbench_history SELECT 1 + i % 10, 1, i, i, '2024-01-01'::timestamp + i * interval '1 s', '' FROM generate_series(1, 100) i;
`

// Load fills db with a known data set: "chinook", a music shop of 11 tables (a small substitute
// where the file is not beside the checkout), or "pgbench", pgbench's four tables with 10000
// accounts, of which pgbench_history has no key.
func Load(t testing.TB, db *Database, name string) {
	t.Helper()
	switch name {
	case "chinook":
		db.Exec(t, chinook(t))
	case "pgbench":
		db.Exec(t, pgbenchTables)
	default:
		t.Fatalf("no data set %q", name)
	}
}

// chinook returns the script without the lines that make and enter a database of its own.
func chinook(t testing.TB) string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join(root, "../shared/data/chinook.sql"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Log("no chinook.sql beside the checkout: using the built-in substitute")
		return chinookSubstitute
	} else if err != nil {
		t.Fatal(err)
	}
	var kept strings.Builder
	for line := range strings.Lines(string(script)) {
		if strings.HasPrefix(line, `\c`) || strings.HasPrefix(line, "CREATE DATABASE") || strings.HasPrefix(line, "DROP DATABASE") {
			continue
		}
		kept.WriteString(line)
	}
	return kept.String()
}

// moduleRoot returns the nearest folder above the test's that holds a go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the working directory")
		}
	}
	return "", err
}
