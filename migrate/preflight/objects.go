package preflight

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
)

// A question asks a catalog for objects that do not move with the tables, or not as they are. Each
// row of the answer is one finding.
type question struct {
	check    string
	severity migrate.Severity
	schema   bool   // of interest only where the schema is copied, and with it everything else
	fix      string // "" where the answer's third column says it
	sql      string // object, message, fix
}

// mine is the condition on an object's name that keeps what Ficus made itself out.
const mine = ` !~ '^ficus_'`

// unmovedObjects are asked of the source.
func unmovedObjects() []question {
	return []question{
		{
			check: "publication", severity: warn, fix: "CREATE PUBLICATION on the target after the promotion, for whoever subscribes",
			sql: `SELECT quote_ident(pubname), 'publications are not moved', '' FROM pg_publication WHERE pubname` + mine + ` ORDER BY 1`,
		},
		{
			check: "replication-slot", severity: warn, fix: "let its reader start anew from the target after the promotion",
			sql: `SELECT slot_name::text, 'a replication slot of this database (' || coalesce(plugin, slot_type) || ') is not moved: its reader gets nothing more once the target owns the data', ''
				FROM pg_replication_slots WHERE database = current_database() AND NOT temporary AND slot_name` + mine + ` ORDER BY 1`,
		},
		{
			check: "settings", severity: warn,
			sql: `SELECT coalesce('role ' || quote_ident(r.rolname), 'database'), 'settings that ALTER ' || CASE WHEN r.oid IS NULL THEN 'DATABASE' ELSE 'ROLE ... IN DATABASE' END ||
					' gave are not moved: ' || array_to_string(ARRAY(SELECT split_part(c, '=', 1) FROM unnest(s.setconfig) c), ', '),
					coalesce('ALTER ROLE ' || quote_ident(r.rolname) || ' IN DATABASE ', 'ALTER DATABASE ') || '... SET ... on the target'
				FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase AND d.datname = current_database() LEFT JOIN pg_roles r ON r.oid = s.setrole ORDER BY 1`,
		},
		{
			check: "database-privileges", severity: info, schema: true, fix: "GRANT them on the target's database",
			sql: `SELECT 'database', 'privileges on the database itself are not moved: ' || array_to_string(datacl, ' '), '' FROM pg_database WHERE datname = current_database() AND datacl IS NOT NULL`,
		},
		{
			check: "tablespace", severity: warn, schema: true, fix: "ALTER ... SET TABLESPACE on the target, or set its default_tablespace",
			sql: `SELECT quote_ident(t.spcname), 'tablespaces are not moved: ' || count(*) || ' relations in this one go to the target''s default', ''
				FROM pg_class c JOIN pg_tablespace t ON t.oid = c.reltablespace WHERE t.spcname <> 'pg_global' GROUP BY t.spcname ORDER BY 1`,
		},
		{
			check: "temporary", severity: info, fix: "none: they end with their sessions",
			sql: `SELECT 'source', count(*) || ' temporary relations belong to sessions and are not moved', '' FROM pg_class
				WHERE relpersistence = 't' AND relkind IN ('r', 'p', 'v', 'S') HAVING count(*) > 0`,
		},
		{
			check: "extension-rows", severity: warn, schema: true, fix: "copy these rows by hand: pg_dump --data-only --table",
			sql: `SELECT quote_ident(e.extname), 'rows that were added to the extension''s own tables are not moved: ' ||
					string_agg(c.oid::regclass::text, ', ' ORDER BY c.oid::regclass::text), ''
				FROM pg_extension e CROSS JOIN LATERAL unnest(e.extconfig) u(oid) JOIN pg_class c ON c.oid = u.oid
				WHERE c.relkind IN ('r', 'p') AND pg_relation_size(c.oid) > 0 GROUP BY e.extname ORDER BY 1`,
		},
		{
			check: "invalid-index", severity: warn, schema: true, fix: "REINDEX INDEX CONCURRENTLY on the source, or DROP INDEX",
			sql: `SELECT i.indexrelid::regclass::text, 'the index is not valid, so it is not made on the target', ''
				FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE NOT i.indisvalid AND n.nspname !~ '^pg_' AND c.relkind = 'i' ORDER BY 1`,
		},
		{
			check: "oid-column", severity: info, fix: "regclass and the like move by name",
			sql: `SELECT a.attrelid::regclass || '.' || quote_ident(a.attname), 'a column of type oid moves as a number, which may mean another object (or none) on the target', ''
				FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE a.atttypid IN ('oid'::regtype, 'oid[]'::regtype) AND a.attnum > 0 AND NOT a.attisdropped AND NOT c.relispartition
				AND c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'ficus') AND c.relpersistence <> 't' ORDER BY 1`,
		},
		{
			check: "prepared", severity: warn, fix: "COMMIT PREPARED or ROLLBACK PREPARED it",
			sql: `SELECT quote_literal(gid), 'the transaction was prepared at ' || date_trunc('second', prepared) || ' by ' || owner || ': making the slot waits for it, and so does a promotion', ''
				FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared`,
		},
		{
			check: "security-label", severity: warn, schema: true, fix: "the label's provider must be loaded on the target (shared_preload_libraries)",
			sql: `SELECT provider, count(*) || ' security labels of this provider are moved, and refused where the target does not have it', ''
				FROM pg_seclabel GROUP BY provider ORDER BY 1`,
		},
	}
}

// newer asks a source of 18 or newer for parts of tables that an older target cannot have.
func newer() question {
	return question{
		check: "newer", severity: warn, fix: "change it on the source, or make the target's table yourself (schema.copy: false)",
		sql: `SELECT x.rel::regclass::text, string_agg(DISTINCT x.what, ', ') || ': PostgreSQL before 18 does not have it, and the schema copy stops there', ''
			FROM (SELECT attrelid, 'virtual generated column ' || quote_ident(attname) FROM pg_attribute WHERE attgenerated = 'v' AND NOT attisdropped
				UNION ALL SELECT conrelid, 'constraint ' || quote_ident(conname) || ' is NOT ENFORCED' FROM pg_constraint WHERE NOT conenforced AND conrelid <> 0
				UNION ALL SELECT conrelid, 'constraint ' || quote_ident(conname) || ' is NOT NULL and NOT VALID' FROM pg_constraint WHERE contype = 'n' AND NOT convalidated
				UNION ALL SELECT conrelid, 'key ' || quote_ident(conname) || ' is over a period' FROM pg_constraint WHERE conperiod) x(rel, what)
			JOIN pg_class c ON c.oid = x.rel JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'ficus') AND c.relpersistence <> 't' GROUP BY x.rel ORDER BY 1`,
	}
}

// alwaysFires is asked of whichever side the target's triggers come from.
func alwaysFires() question {
	return question{
		check: "fires-always", severity: warn,
		sql: `SELECT c.oid::regclass::text, format('%s %I is ENABLE %s: it fires on the target for rows that Ficus applies, although its effects on the source arrive as well', w.what, w.name,
				CASE w.enabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END),
				format('ALTER TABLE %s ENABLE %s %I  -- until the migration is over; or leave it if it changes no moved table', c.oid::regclass, upper(w.what), w.name)
			FROM (SELECT tgrelid, tgname, tgenabled, 'trigger' FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'ficus_fence'
				UNION ALL SELECT ev_class, rulename, ev_enabled, 'rule' FROM pg_rewrite WHERE rulename <> '_RETURN') w(rel, name, enabled, what)
			JOIN pg_class c ON c.oid = w.rel WHERE w.enabled IN ('A', 'R') ORDER BY 1, w.name`,
	}
}

// objects asks both databases about what does not move by itself.
func (r *report) objects(ctx context.Context, cfg Config, source, target *pgx.Conn) error {
	for _, q := range unmovedObjects() {
		if q.schema && !cfg.CopiesSchema {
			continue
		}
		if err := r.ask(ctx, source, q); err != nil {
			return fmt.Errorf("source: %w", err)
		}
	}
	side, conn := "target", target
	if cfg.CopiesSchema {
		side, conn = "source", source
	}
	if !cfg.Follows {
		return nil
	}
	if err := r.ask(ctx, conn, alwaysFires()); err != nil {
		return fmt.Errorf("%s: %w", side, err)
	}
	return nil
}

// events tells of event triggers, which only a superuser can make.
func (r *report) events(dst inspect.Info) func(context.Context, Config, *pgx.Conn, *pgx.Conn) error {
	return func(ctx context.Context, cfg Config, source, _ *pgx.Conn) error {
		if !cfg.CopiesSchema || dst.Superuser {
			return nil
		}
		return r.ask(ctx, source, question{
			check: "event-trigger", severity: warn, fix: "let a superuser of the target make it",
			sql: `SELECT quote_ident(evtname), 'an event trigger takes a superuser: it is left out', '' FROM pg_event_trigger e
				WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e') ORDER BY 1`,
		})
	}
}

// virtualColumns refuses tables that are found by the whole row and have a virtual generated column:
// PostgreSQL 18 refuses the application's updates and deletes once such a table is published.
func (r *report) virtualColumns(ctx context.Context, cfg Config, source, _ *pgx.Conn) error {
	if !cfg.Follows {
		return nil
	}
	var whole []string
	for i := range cfg.Mappings {
		t := &cfg.Mappings[i].Source
		if slices.Contains(cfg.Full, t.Name) || t.Identity == schema.IdentityFull && !slices.Contains(cfg.InsertOnly, t.Name) {
			whole = append(whole, t.Name.String())
		}
	}
	rows, err := source.Query(ctx, `SELECT DISTINCT n FROM unnest($1::text[]) n JOIN pg_attribute a ON a.attrelid = n::regclass AND a.attgenerated = 'v' AND NOT a.attisdropped ORDER BY 1`, whole)
	if err != nil {
		return fmt.Errorf("source: look for virtual columns: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("source: look for virtual columns: %w", err)
	}
	for _, n := range names {
		r.add(fail, "virtual-column", n, "add a primary key, or ALTER TABLE "+n+" REPLICA IDENTITY USING INDEX; or --no-replica-identity to move only its inserts",
			"it needs REPLICA IDENTITY FULL and has a virtual generated column: PostgreSQL would refuse the application's updates and deletes")
	}
	return nil
}

// newerTables tells what of the source's tables an older target cannot have.
func (r *report) newerTables(src, dst inspect.Info) func(context.Context, Config, *pgx.Conn, *pgx.Conn) error {
	return func(ctx context.Context, cfg Config, source, _ *pgx.Conn) error {
		const brought = 18
		if !cfg.CopiesSchema || src.Major < brought || dst.Major >= brought {
			return nil
		}
		return r.ask(ctx, source, newer())
	}
}

// ask adds a finding for each row of the answer. What the role may not see, it cannot be told.
func (r *report) ask(ctx context.Context, conn *pgx.Conn, q question) error {
	rows, err := conn.Query(ctx, q.sql)
	if err != nil {
		return fmt.Errorf("look for %s: %w", q.check, err)
	}
	var object, message, fix string
	_, err = pgx.ForEachRow(rows, []any{&object, &message, &fix}, func() error {
		if q.fix != "" {
			fix = q.fix
		}
		r.add(q.severity, q.check, object, fix, "%s", message)
		return nil
	})
	if err != nil && pg.Code(err) != pg.CodeInsufficientPrivilege {
		return fmt.Errorf("look for %s: %w", q.check, err)
	}
	return nil
}

// missingRoles looks for roles that the source's objects name and the target does not have. Ficus
// makes no roles: they belong to the cluster, with their passwords.
func (r *report) missingRoles(ctx context.Context, cfg Config, source, target *pgx.Conn) error {
	if !cfg.CopiesSchema {
		return nil
	}
	rows, err := target.Query(ctx, `SELECT rolname::text FROM pg_roles`)
	if err != nil {
		return fmt.Errorf("target: read roles: %w", err)
	}
	have, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("target: read roles: %w", err)
	}
	rows, err = source.Query(ctx, `SELECT r.rolname::text, bool_or(d.deptype = 'r'), bool_or(d.deptype = 'o'), count(*)
		FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid
		WHERE d.refclassid = 'pg_authid'::regclass AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
		GROUP BY r.rolname ORDER BY 1`)
	if err != nil {
		return fmt.Errorf("source: read roles: %w", err)
	}
	var role string
	var inPolicy, owns bool
	var objects int
	_, err = pgx.ForEachRow(rows, []any{&role, &inPolicy, &owns, &objects}, func() error {
		const fix = "pg_dumpall --roles-only on the source shows it; create it on the target before the migration"
		switch {
		case slices.Contains(have, role):
		case inPolicy:
			r.add(fail, "role", role, fix, "the target has no such role, and a row level security policy is for it")
		case owns:
			r.add(warn, "role", role, fix, "the target has no such role: its %d objects will belong to the connecting role", objects)
		default:
			r.add(warn, "role", role, fix, "the target has no such role: its privileges on %d objects are left out", objects)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("source: read roles: %w", err)
	}
	return nil
}
