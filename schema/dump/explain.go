package dump

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// SQLSTATE codes that building a schema meets. Source: PostgreSQL manual, Appendix A.
const (
	codeDuplicateTable    = "42P07" // any relation: indexes and sequences, too
	codeDuplicateFunction = "42723"
	codeDuplicateSchema   = "42P06"
	codeDuplicateColumn   = "42701"
	codeInvalidTable      = "42P16" // a second primary key
	codeFeature           = "0A000"
	codeUndefinedFile     = "58P01"
	codeInvalidParameter  = "22023"
	codeDeadlock          = "40P01"
	codeForeignKey        = "23503"
	codeUnique            = "23505"
	codeCheck             = "23514"
	codeExclusion         = "23P01"
	codeDiskFull          = "53100"
)

// message returns what PostgreSQL said, without SQLSTATE.
func message(err error) string {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pe.Message
	}
	return err.Error()
}

// explain adds what to do about an error of the target; e is nil when no object was being built.
func explain(err error, e *entry) error {
	switch pg.Code(err) {
	case codeDuplicateTable, codeDuplicateFunction, codeDuplicateSchema, codeDuplicateColumn, codeInvalidTable, pg.CodeDuplicateObject:
		return hint.Wrap(err, "the target has an object of that name, which this migration did not build, or the source's definition "+
			"changed since: use an empty database, or drop the object on the target")
	case codeFeature, codeUndefinedFile:
		if e != nil && e.kind == "EXTENSION" {
			return hint.Wrap(err, "the target's server does not have extension %s: install its package there, or drop the extension on the source", e.name)
		}
	case pg.CodeInsufficientPrivilege:
		if e != nil && e.kind == "EXTENSION" {
			return hint.Wrap(err, "let an administrator of the target run: CREATE EXTENSION %s", e.name)
		}
		return hint.Wrap(err, "connect to the target as the owner of the database or as a role with CREATE on it: GRANT CREATE ON DATABASE ... TO ...")
	case pg.CodeUndefinedTable:
		if e == nil { // ficus.built
			return hint.Wrap(err, "the tables were not created by this migration on this database: run it from the start")
		}
	case codeForeignKey:
		return hint.Wrap(err, "the source holds rows that violate this foreign key, too, although it does not say NOT VALID: find and mend them there")
	case codeUnique, codeExclusion, codeCheck:
		return hint.Wrap(err, "rows on the target violate it; if the source has the same rows, an index there is corrupt: "+
			"REINDEX it and mend the rows that this shows")
	case codeDiskFull:
		return hint.Wrap(err, "free or add disk space on the target, then run again: what is built already stays")
	}
	return err
}
