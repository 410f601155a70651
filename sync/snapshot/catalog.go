package snapshot

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/manifest"
	"github.com/ficus-migrate/ficus/transform"
)

// tidRangeVersion is the first server that reads a range of ctid without reading the whole table.
const tidRangeVersion = 140000

// A source is where the rows of one mapping are: one piece for a plain table, one for each leaf of
// a partitioned one.
type source struct {
	pieces []piece
	whole  bool // some piece has rights or policies of its own, which reading the root passes over
}

// A piece is a relation that holds rows itself.
type piece struct {
	name  schema.Name
	file  string // its oid and file: other ones mean that its rows are elsewhere
	plain bool   // an ordinary table, which has ctids; not a foreign one
	pages int64  // of the main fork
	bytes int64  // with TOAST
}

// A target is what the catalog says about a mapping's target table.
type target struct {
	kind       string // pg_class.relkind, "" when there is no such table
	referenced bool   // by another table's foreign key
	filled     bool   // it has pages, if only of rows that are gone
	triggers   bool   // that fire for an ordinary session
	columns    []schema.Column
}

// readSources measures the tables now: estimates in the mappings may be old. canSplit says whether
// the server reads ranges of ctid efficiently. The tables come in the order of mappings.
func readSources(ctx context.Context, conn *pgx.Conn, mappings []transform.Mapping) (sources []source, canSplit bool, err error) {
	const query = `
SELECT i.n, ln.nspname, l.relname, l.oid || '/' || coalesce(pg_relation_filenode(l.oid), 0), l.relkind = 'r',
       l.oid = r.oid OR has_table_privilege(l.oid, 'SELECT') AND NOT l.relrowsecurity,
       CASE WHEN l.relkind = 'r' THEN pg_relation_size(l.oid) / current_setting('block_size')::int ELSE 0 END,
       CASE WHEN l.relkind = 'r' THEN pg_table_size(l.oid) ELSE 0 END,
       current_setting('server_version_num')::int
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS i(s, t, n)
JOIN pg_namespace rn ON rn.nspname = i.s
JOIN pg_class r ON r.relnamespace = rn.oid AND r.relname = i.t
CROSS JOIN LATERAL (
	SELECT r.oid WHERE r.relkind <> 'p'
	UNION ALL
	SELECT relid FROM pg_partition_tree(r.oid) WHERE isleaf AND r.relkind = 'p'
) AS leaf(oid)
JOIN pg_class l ON l.oid = leaf.oid AND l.relkind <> 'p'
JOIN pg_namespace ln ON ln.oid = l.relnamespace
ORDER BY i.n, l.oid`
	schemas, tables := names(mappings, func(m *transform.Mapping) schema.Name { return m.Source.Name })
	rows, err := conn.Query(ctx, query, schemas, tables)
	if err != nil {
		return nil, false, err
	}
	sources = make([]source, len(mappings))
	var n int64
	var p piece
	var direct bool
	var version int
	_, err = pgx.ForEachRow(rows, []any{&n, &p.name.Schema, &p.name.Name, &p.file, &p.plain, &direct, &p.pages, &p.bytes, &version}, func() error {
		s := &sources[n-1]
		s.pieces = append(s.pieces, p)
		s.whole = s.whole || !direct
		canSplit = version >= tidRangeVersion
		return nil
	})
	return sources, canSplit, err
}

// readVersions asks both servers what they are.
func readVersions(ctx context.Context, source, target *pgx.Conn) (v Versions, err error) {
	const query = `SELECT current_setting('server_version_num')::int / 10000`
	if err := source.QueryRow(ctx, query).Scan(&v.Source); err != nil {
		return v, err
	}
	err = target.QueryRow(ctx, query).Scan(&v.Target)
	return v, err
}

// readTargets returns what the target has for each mapping, in the order of mappings.
func readTargets(ctx context.Context, conn *pgx.Conn, mappings []transform.Mapping) ([]target, error) {
	const tables = `
SELECT i.n, c.relkind::text,
       c.relkind = 'r' AND pg_relation_size(c.oid) > 0 OR EXISTS (
           SELECT FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid
           WHERE l.relkind NOT IN ('r', 'p') OR l.relkind = 'r' AND pg_relation_size(l.oid) > 0),
       EXISTS (SELECT FROM pg_constraint f WHERE f.confrelid = c.oid AND f.contype = 'f' AND f.conrelid <> c.oid),
       EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgenabled IN ('O', 'A'))
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS i(s, t, n)
JOIN pg_namespace ns ON ns.nspname = i.s
JOIN pg_class c ON c.relnamespace = ns.oid AND c.relname = i.t`
	const columns = `
SELECT i.n, a.attname, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod), t.typtype::text, a.attgenerated <> ''
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS i(s, t, n)
JOIN pg_namespace ns ON ns.nspname = i.s
JOIN pg_class c ON c.relnamespace = ns.oid AND c.relname = i.t
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
ORDER BY i.n, a.attnum`
	schemas, relations := names(mappings, func(m *transform.Mapping) schema.Name { return m.Target })
	targets := make([]target, len(mappings))
	var n int64

	rows, err := conn.Query(ctx, tables, schemas, relations)
	if err != nil {
		return nil, err
	}
	t := target{columns: []schema.Column{}}
	if _, err := pgx.ForEachRow(rows, []any{&n, &t.kind, &t.filled, &t.referenced, &t.triggers}, func() error {
		targets[n-1] = t
		return nil
	}); err != nil {
		return nil, err
	}

	if rows, err = conn.Query(ctx, columns, schemas, relations); err != nil {
		return nil, err
	}
	var c schema.Column
	var typtype string
	_, err = pgx.ForEachRow(rows, []any{&n, &c.Name, &c.Type.OID, &c.Type.Mod, &c.Type.SQL, &typtype, &c.Generated}, func() error {
		c.Type.Kind = typtype[0]
		targets[n-1].columns = append(targets[n-1].columns, c)
		return nil
	})
	return targets, err
}

func names(mappings []transform.Mapping, name func(*transform.Mapping) schema.Name) (schemas, tables []string) {
	for i := range mappings {
		n := name(&mappings[i])
		schemas, tables = append(schemas, n.Schema), append(tables, n.Name)
	}
	return schemas, tables
}

// checkTarget refuses a target that the copy could not fill, before anything is emptied.
func checkTarget(m *transform.Mapping, t *target, replica bool) error {
	name := m.Target.Display()
	switch {
	case t.kind == "":
		return hint.Wrap(fmt.Errorf("the target has no table %s", name), "create the target's tables before the copy")
	case t.kind != "r" && t.kind != "p":
		return hint.Wrap(fmt.Errorf("%s is not a table on the target", name), "rename or drop what is there under that name")
	case t.triggers && !replica:
		return hint.Wrap(fmt.Errorf("triggers on %s would fire, and the target's role may not keep them from it", name),
			"create triggers and foreign keys after the copy, or GRANT SET ON PARAMETER session_replication_role (PostgreSQL 15), or connect as a superuser")
	}
	for _, c := range m.Columns {
		var found *schema.Column
		for i := range t.columns {
			if t.columns[i].Name == c.Target {
				found = &t.columns[i]
			}
		}
		if found == nil {
			return hint.Wrap(fmt.Errorf("table %s on the target has no column %q", name, c.Target),
				"add it, or leave it out with a rule (drop)")
		}
		if found.Generated {
			return hint.Wrap(fmt.Errorf("column %q of %s is generated on the target, so nothing can be copied into it", c.Target, name),
				"leave it out with a rule (drop)")
		}
	}
	return nil
}

// becomeReplica keeps triggers, foreign keys and the fence from firing in this session; ok is false
// when the role may not.
func becomeReplica(ctx context.Context, conn *pgx.Conn) (ok bool, err error) {
	_, err = conn.Exec(ctx, "SET session_replication_role = replica")
	if pg.Code(err) == pg.CodeInsufficientPrivilege {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("set session_replication_role: %w", err)
	}
	return true, nil
}

// empty removes the rows of target tables, of most of them at once, so that foreign keys among them
// do not matter. With alone set, rows of tables that stay may refer to them, and rows are deleted.
func empty(ctx context.Context, db manifest.DB, tables []*table, alone bool) error {
	var list []string
	for _, t := range tables {
		if !t.filled { // most often they have just been made
			continue
		}
		if !alone || !t.referenced {
			list = append(list, t.truncated())
			continue
		}
		if _, err := db.Exec(ctx, "DELETE FROM "+t.truncated()); err != nil {
			return fmt.Errorf("empty the target's table %s: %w", t.m.Target.Display(), targetError(err))
		}
	}
	if len(list) == 0 {
		return nil
	}
	_, err := db.Exec(ctx, "TRUNCATE "+strings.Join(list, ", "))
	if err == nil {
		return nil
	}
	err = fmt.Errorf("empty the target's tables: %w", targetError(err))
	if pg.Code(err) == "0A000" {
		err = hint.Wrap(err, "a table that is not copied has a foreign key to one that is: drop that constraint on the target, or copy its table too")
	}
	return err
}
