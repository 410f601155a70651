package fidelity

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// versions are those that Ficus reads and writes.
func versions() []int { return []int{13, 14, 15, 16, 17, 18} }

// documented is the version whose run docs/fidelity.md shows: it has every type.
const documented = 15

// pairs returns the versions to run between: {0, 0} is the default one on both sides.
func pairs() [][2]int {
	if !long() {
		return [][2]int{{0, 0}, {13, 18}}
	}
	var all [][2]int
	for _, from := range versions() {
		for _, to := range versions() {
			all = append(all, [2]int{from, to})
		}
	}
	return all
}

// databases makes a database on each side, of the versions that the machine has.
func databases(t *testing.T, versions [2]int) (from, to *pgtest.Database) {
	t.Helper()
	return pgtest.DB(t, pgtest.Version(versions[0])), pgtest.DB(t, pgtest.Version(versions[1]))
}

// Every type, its odd values, changed in every way.
func TestTypes(t *testing.T) {
	t.Parallel()
	var seen sync.Map // pairs of versions: one that is not on this machine becomes another
	for _, versions := range pairs() {
		t.Run(fmt.Sprintf("%dto%d", versions[0], versions[1]), func(t *testing.T) {
			t.Parallel()
			from, to := databases(t, versions)
			if _, done := seen.LoadOrStore([2]int{from.Major, to.Major}, true); done {
				t.Logf("%d to %d is done by another", from.Major, to.Major)
				return
			}
			testTypes(t, from, to)
		})
	}
}

func testTypes(t *testing.T, from, to *pgtest.Database) {
	t.Helper()
	major := min(from.Major, to.Major)
	chosen := slices.DeleteFunc(kinds(), func(k kind) bool { return k.since > major })
	if from.Major != to.Major && !long() {
		for i := range chosen { // how rows are found does not depend on both versions
			chosen[i].brief = true
		}
	}

	var ddl strings.Builder
	for i := range chosen {
		ddl.WriteString(chosen[i].ddl())
	}
	to.Exec(t, "CREATE TYPE other_numbers AS ENUM ('so that types get other OIDs');"+ddl.String())
	from.Exec(t, ddl.String())
	for i := range chosen {
		from.Exec(t, chosen[i].rows(major))
	}

	if from.Major != to.Major {
		unfriendly(t, from, "SQL, DMY")
		unfriendly(t, to, "German")
	}

	p := start(t, from, to)
	for i := range chosen {
		for _, txn := range chosen[i].changes(major) {
			from.Exec(t, txn)
		}
	}
	report := p.equal(t)
	if max(from.Major, to.Major) == documented && major == documented {
		checkDocs(t, p, report)
	}
}

// unfriendly gives a database's sessions settings that change what values look like, or how they are read.
func unfriendly(t *testing.T, db *pgtest.Database, datestyle string) {
	t.Helper()
	for _, setting := range []string{
		"datestyle = '" + datestyle + "'", "intervalstyle = sql_standard", "timezone = 'America/St_Johns'", "extra_float_digits = -5", "bytea_output = escape",
		"xmloption = document", "standard_conforming_strings = off", "search_path = pg_temp", "quote_all_identifiers = on", "array_nulls = off",
		"transform_null_equals = on", "default_transaction_isolation = serializable", "statement_timeout = '10min'", "client_encoding = LATIN1",
	} {
		db.Exec(t, "ALTER DATABASE "+db.Name+" SET "+setting)
	}
}
