package dump

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// definitions lists what a schema holds, in words that do not depend on the server's version.
const definitions = `
	SELECT 'column', attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, pg_get_expr(adbin, adrelid)
	FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum JOIN pg_class c ON c.oid = attrelid
	WHERE attnum > 0 AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'pg_toast', 'information_schema', 'ficus') AND relkind IN ('r', 'p', 'f')
	UNION ALL
	SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid), indrelid::regclass::text, indisvalid, '', '', '' FROM pg_index
	WHERE indrelid > 16384
	AND indrelid::regclass::text !~ '^(pg_toast|ficus)'
	UNION ALL
	SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated, '', '', '' FROM pg_constraint
	WHERE contype <> 'n' AND conparentid = 0 AND connamespace::regnamespace::text NOT IN ('information_schema', 'ficus', 'pg_catalog')
	UNION ALL
	SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), true, tgenabled, '', '' FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'ficus_fence'
	UNION ALL
	SELECT 'relation', oid::regclass::text, relkind::text, reloptions::text, relrowsecurity, relreplident, relpersistence, obj_description(oid) FROM pg_class
	WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'pg_toast', 'information_schema', 'ficus')
	ORDER BY 1, 2, 3, 4`

// A dump that an older pg_dump made builds the same schema on a newer server.
func TestVersions(t *testing.T) {
	t.Parallel()
	chinook := func(t *testing.T, db *pgtest.Database) { t.Helper(); pgtest.Load(t, db, "chinook") }
	all := func(t *testing.T, db *pgtest.Database) { t.Helper(); db.Exec(t, everything(t)) }
	for _, tt := range []struct {
		source, target int
		load           func(*testing.T, *pgtest.Database)
	}{{13, 15, chinook}, {13, 18, chinook}, {15, 17, all}, {15, 18, all}} {
		t.Run(fmt.Sprintf("%d to %d", tt.source, tt.target), func(t *testing.T) {
			t.Parallel()
			source, target := pgtest.DB(t, pgtest.Version(tt.source)), pgtest.DB(t, pgtest.Version(tt.target))
			tt.load(t, source)
			d := open(t, Config{Source: source.DSN})
			copyAll(t, d, target.DSN)
			if diff := cmp.Diff(source.Strings(t, definitions), target.Strings(t, definitions)); diff != "" {
				t.Errorf("definitions (-source +target):\n%s", diff)
			}
			if w := d.Warnings(); len(w) != 0 {
				t.Errorf("warnings: %q", w)
			}
		})
	}
}
