package dump

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// grant runs the statements of an ACL entry one by one in one transaction, leaving out those that
// the target has no role for or that the connected role may not run. pg_dump frames grants that
// another role made with SET SESSION AUTHORIZATION ... RESET SESSION AUTHORIZATION; where we cannot
// become that role, its grants are left out with it.
func (d *Dump) grant(ctx context.Context, conn *pgx.Conn, e *entry) error {
	return pgx.BeginFunc(ctx, conn, func(pgx.Tx) error {
		skip, complete := false, true
		for stmt := range strings.SplitSeq(e.sql, ";\n") {
			stmt = strings.TrimSuffix(strings.TrimSpace(stmt), ";")
			if skip {
				skip = stmt != "RESET SESSION AUTHORIZATION"
				continue
			}
			if stmt == "" {
				continue
			}
			if err := execute(ctx, conn, "SAVEPOINT ficus_grant"); err != nil {
				return err
			}
			err := execute(ctx, conn, stmt)
			switch pg.Code(err) {
			case pg.CodeUndefinedObject, codeInvalidParameter, pg.CodeInsufficientPrivilege:
				d.warn("%s are left out in part: %s", e, message(err))
				complete = false
				skip = strings.HasPrefix(stmt, "SET SESSION AUTHORIZATION ")
				err = execute(ctx, conn, "ROLLBACK TO SAVEPOINT ficus_grant")
			}
			if err != nil {
				return err
			}
		}
		if !complete { // a later run tries, and tells, again: grants may be repeated
			return nil
		}
		return execute(ctx, conn, e.record())
	})
}
