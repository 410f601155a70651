package preflight

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
)

// inexact tells which columns hold types that do not travel exactly between these two servers.
// Source of the OIDs: PostgreSQL's pg_type.dat.
func (r *report) inexact(cfg Config, src, dst inspect.Info) {
	for i := range cfg.Mappings {
		m := &cfg.Mappings[i]
		for j := range m.Source.Columns {
			c := &m.Source.Columns[j]
			if why, fix := inexact(c.Type, src, dst); why != "" && !c.Generated {
				r.add(warn, "type", m.Source.Name.Display()+"."+c.Name, fix, "%s: %s", c.Type.SQL, why)
			}
		}
	}
}

// inexact returns what may happen to values of a type, "" when they all arrive as they are.
func inexact(t schema.Type, src, dst inspect.Info) (why, fix string) {
	older := func(major int) bool { return src.Major >= major && dst.Major < major }
	switch t.OID {
	case 1186, 1187: // interval
		if older(17) {
			return "PostgreSQL before 17 has no infinity: such a value stops the copy or the link", "set infinite values to something else"
		}
	case 1700, 1231: // numeric
		if older(14) && t.Mod == -1 {
			return "PostgreSQL before 14 has no infinity: such a value stops the copy or the link", "set infinite values to something else"
		}
	case 18, 1002: // "char"
		if older(15) {
			return `PostgreSQL before 15 does not read how newer ones write a "char" above 127: in a table that is copied as text, and in arrays, it arrives as another one`, `move such values to smallint or bytea`
		}
		if src.Major < 15 && dst.Major >= 15 && src.Encoding != "SQL_ASCII" {
			return `PostgreSQL before 15 writes a "char" above 127 as a byte that is no character: in the stream, and in a table that is copied as text, it stops the link`, `move such values to smallint or bytea`
		}
	case 1042, 1014: // char(n)
		if t.Mod > 0 && src.Encoding != dst.Encoding && (src.Encoding == "SQL_ASCII" || dst.Encoding == "SQL_ASCII") {
			return "SQL_ASCII counts bytes where others count characters: values are padded to another length", "ALTER the column to varchar, or make the target's encoding " + src.Encoding
		}
	}
	return "", ""
}

// A locale is how a database sorts text: pg_database's columns, as far as the version has them.
type locale struct{ provider, name, version, recorded string }

// collations compares how the two databases sort. Indexes are built on the target, so they are right
// in any case; what is ordered by the application may come in another order.
func (r *report) collations(src, dst inspect.Info) func(context.Context, Config, *pgx.Conn, *pgx.Conn) error {
	return func(ctx context.Context, cfg Config, source, target *pgx.Conn) error {
		from, err := readLocale(ctx, source, src.Major)
		if err != nil {
			return fmt.Errorf("source: %w", err)
		}
		to, err := readLocale(ctx, target, dst.Major)
		if err != nil {
			return fmt.Errorf("target: %w", err)
		}
		const differs = "ORDER BY and range conditions on text may answer differently"
		switch {
		case from.provider != to.provider:
			r.add(warn, "collation-provider", "target", "CREATE DATABASE ... LOCALE_PROVIDER "+from.provider+" TEMPLATE template0",
				"source sorts by %s, target by %s: %s", from.provider, to.provider, differs)
		case from.provider != "libc" && from.name != to.name:
			r.add(warn, "collation", "target", "CREATE DATABASE ... with that locale TEMPLATE template0", "source sorts by %s locale %s, target by %s: %s", from.provider, from.name, to.name, differs)
		case from.version != "" && to.version != "" && from.version != to.version:
			r.add(info, "collation-version", "target", "compare the order of what the application sorts; Ficus builds the indexes anew on the target",
				"the %s library of the source is version %s, the target's %s: %s", from.provider, from.version, to.version, differs)
		}
		if from.recorded != "" && from.version != "" && from.recorded != from.version {
			r.add(warn, "collation-version", "source", "REINDEX the indexes on text, then ALTER DATABASE ... REFRESH COLLATION VERSION",
				"the database was made with version %s of its collation library and runs with %s: indexes on text may be corrupt, and unique ones let duplicates in that the target refuses", from.recorded, from.version)
		}
		return nil
	}
}

func readLocale(ctx context.Context, conn *pgx.Conn, major int) (l locale, err error) {
	name := "d.datcollate"
	switch {
	case major >= 17:
		name = "coalesce(d.datlocale, d.datcollate)"
	case major >= 15:
		name = "coalesce(d.daticulocale, d.datcollate)"
	}
	provider, version, recorded := "'c'", "''", "''"
	if major >= 15 {
		provider, recorded = "d.datlocprovider", "coalesce(d.datcollversion, '')"
		version = "coalesce(pg_database_collation_actual_version(d.oid), '')"
	}
	err = conn.QueryRow(ctx, strings.Join([]string{"SELECT CASE " + provider + " WHEN 'c' THEN 'libc' WHEN 'i' THEN 'icu' ELSE 'builtin' END", name, version, recorded}, ", ")+
		" FROM pg_database d WHERE d.datname = current_database()").Scan(&l.provider, &l.name, &l.version, &l.recorded)
	if err != nil {
		return l, fmt.Errorf("read the collation: %w", err)
	}
	return l, nil
}
