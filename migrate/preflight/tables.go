package preflight

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// tables tells which tables get special treatment, so that nobody is surprised.
func (r *report) tables(cfg Config) {
	if len(cfg.Mappings) == 0 {
		r.add(fail, "tables", "source", "look at select in the playbook, and at \\dt in the source", "there is no table to move")
	}
	if !cfg.Follows {
		return
	}
	keyless := map[schema.Name]bool{}
	for i := range cfg.Mappings {
		m := &cfg.Mappings[i]
		keyless[m.Source.Name] = len(m.Source.IdentKey) == 0
		if m.Source.Kind == schema.Partitioned {
			r.add(warn, "partitions", m.Source.Name.Display(), "truncate the whole table, or DELETE",
				"PostgreSQL leaves TRUNCATE of a single partition out of the stream: the target would keep its rows, and only a comparison tells; partitions that are attached or detached are noticed, and followed with follow.ddl: safe")
		}
	}
	for _, n := range cfg.Full {
		fix := ""
		if keyless[n] {
			fix = "add a primary key to keep it as it is; or --no-replica-identity to move only a keyless table's inserts"
		}
		r.add(info, "replica-identity", n.Display(), fix,
			"%s: it gets REPLICA IDENTITY FULL for the time of the migration, which writes more WAL for each UPDATE and DELETE", cfg.Why[n])
	}
	for _, n := range cfg.InsertOnly {
		r.add(warn, "inserts-only", n.Display(), "add a primary key, or leave --no-replica-identity out", "only its inserts are moved: the target's copy misses updates and deletes")
	}
	for _, why := range cfg.Lossy {
		r.add(warn, "lossy", "", "an expression under inverse brings a computed or dropped column back; rows that where leaves out have no way back", "a rollback is not possible: %s", why)
	}
}

// unmoved reports what was selected and does not move: never forgotten silently.
func (r *report) unmoved(ctx context.Context, cfg Config, source, _ *pgx.Conn) error {
	for i := range cfg.Tables {
		t := &cfg.Tables[i]
		if ok, why := transform.Movable(t); !ok {
			r.add(warn, "not-moved", t.Name.Display(), remedy(t), "its rows are not moved: %s", why)
		}
	}
	var subscriptions int
	if err := source.QueryRow(ctx, `SELECT count(*) FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
		WHERE d.datname = pg_catalog.current_database()`).Scan(&subscriptions); err != nil && pg.Code(err) != "42501" {
		return fmt.Errorf("source: look for subscriptions: %w", err)
	}
	if subscriptions > 0 {
		r.add(warn, "subscription", "source", "move it by hand: CREATE SUBSCRIPTION on the new database, then drop the old one",
			"%d native subscriptions write to this database and go on doing so after a promotion: their workers pass the fence", subscriptions)
	}
	return nil
}

// remedy says how the rows of a table that cannot be moved get to the target.
func remedy(t *schema.Table) string {
	switch t.Kind {
	case schema.MaterializedView:
		return "REFRESH MATERIALIZED VIEW " + t.Name.Display() + " on the target after the promotion"
	case schema.Foreign:
		return "see that the target reaches the foreign server"
	case schema.Ordinary, schema.Partitioned:
	}
	return "ALTER TABLE " + t.Name.Display() + " SET LOGGED on the source"
}

// occupied refuses a target that holds tables of the same names, unless this migration made them.
func (r *report) occupied(ctx context.Context, cfg Config, _, target *pgx.Conn) error {
	var owner string
	err := target.QueryRow(ctx, `SELECT migration FROM ficus.ownership`).Scan(&owner)
	switch code := pg.Code(err); {
	case err == nil && owner == cfg.Migration:
		return nil // a run that was interrupted: its tables are emptied and filled again
	case err == nil:
		r.add(fail, "other-migration", "target", "finish it, or ficus cleanup --target with this database", "migration %q uses this database", owner)
		return nil
	case code != pg.CodeUndefinedTable && code != pg.CodeInsufficientPrivilege:
		return fmt.Errorf("target: look for another migration: %w", err)
	}

	have, err := inspect.Occupied(ctx, target, inspect.Filter{})
	if err != nil {
		return fmt.Errorf("target: look for tables: %w", err)
	}
	exists := make(map[schema.Name]bool, len(have))
	for _, n := range have {
		exists[n] = true
	}
	var clash, missing []string
	for i := range cfg.Mappings {
		n := cfg.Mappings[i].Target
		switch {
		case exists[n] && cfg.CopiesSchema:
			clash = append(clash, n.Display())
		case !exists[n] && !cfg.CopiesSchema:
			missing = append(missing, n.Display())
		case exists[n]:
			var filled bool
			if err := target.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+n.String()+`)`).Scan(&filled); err != nil {
				return fmt.Errorf("target: look into %s: %w", n.Display(), err)
			}
			if filled {
				clash = append(clash, n.Display())
			}
		}
	}
	if len(clash) > 0 {
		r.add(fail, "target-not-empty", "target", "give an empty database, drop these tables, or leave them out with select.exclude",
			"%s there already: %s", plural(len(clash), "a table is", "tables are"), some(clash))
	}
	if len(missing) > 0 {
		r.add(fail, "target-table", "target", "make them, or let schema.copy be true", "schema.copy is false and %s missing: %s",
			plural(len(missing), "a table is", "tables are"), some(missing))
	}
	return nil
}

// privileges checks what the source's role may do with each table. A superuser may do all.
func (r *report) privileges(src inspect.Info) func(context.Context, Config, *pgx.Conn, *pgx.Conn) error {
	return func(ctx context.Context, cfg Config, source, _ *pgx.Conn) error {
		if src.Superuser {
			return nil
		}
		names := make([]string, len(cfg.Mappings))
		for i := range cfg.Mappings {
			names[i] = cfg.Mappings[i].Source.Name.String()
		}
		rows, err := source.Query(ctx, `
			SELECT n, pg_catalog.has_table_privilege(n::regclass, 'SELECT'), pg_catalog.pg_has_role(c.relowner, 'USAGE'), c.relrowsecurity
			FROM unnest($1::text[]) n JOIN pg_catalog.pg_class c ON c.oid = n::regclass`, names)
		if err != nil {
			return fmt.Errorf("source: read privileges: %w", err)
		}
		var name string
		var readable, owned, rowSecurity bool
		role := schema.QuoteIdent(src.Role)
		_, err = pgx.ForEachRow(rows, []any{&name, &readable, &owned, &rowSecurity}, func() error {
			if !readable {
				r.add(fail, "select", name, "GRANT SELECT ON "+name+" TO "+role, "role %s may not read it", src.Role)
			}
			if !owned {
				r.add(fail, "owner", name, "GRANT the owner's role TO "+role, "role %s does not own it: publishing a table and fencing it take its owner", src.Role)
			}
			if rowSecurity && !src.BypassRLS {
				r.add(fail, "row-security", name, "ALTER ROLE "+role+" BYPASSRLS", "row level security would hide rows from role %s", src.Role)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("source: read privileges: %w", err)
		}
		return nil
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// some lists the first few names and counts the rest.
func some(names []string) string {
	const show = 8
	if len(names) <= show {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:show], ", "), len(names)-show)
}
