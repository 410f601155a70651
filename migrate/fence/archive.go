package fence

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// maxIdentifier is how many bytes of a name PostgreSQL keeps.
const maxIdentifier = 63

// Archive implements [migrate.Archiver]: each table that carries the fence moves into a schema of its own
// schema's name and suffix, with its indexes, constraints and the sequences that belong to it. It returns
// these schemas. Repeated it moves what is left; the tables keep their fence.
func (d *Database) Archive(ctx context.Context, suffix string) ([]string, error) {
	tables, err := d.armed(ctx)
	if err != nil {
		return nil, d.wrap("archive the tables", err)
	}
	var schemas []string
	made := map[string]bool{}
	for _, t := range tables {
		into := archiveName(t.Schema, suffix)
		if archived(t.Schema, suffix) {
			into = t.Schema // moved by an earlier call
		}
		if !made[into] {
			made[into] = true
			schemas = append(schemas, into)
		}
		if into == t.Schema {
			continue
		}
		if err := d.move(ctx, t, into); err != nil {
			return nil, d.wrap("archive "+t.Display(), err)
		}
	}
	return schemas, nil
}

// move puts one table into a schema, waiting for its lock no longer at a time than the application may.
func (d *Database) move(ctx context.Context, t schema.Name, into string) error {
	retry := backoff.Timer{Min: 50 * time.Millisecond, Max: 2 * time.Second}
	for {
		err := pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
			if err := d.stillMine(ctx, tx); err != nil {
				return err
			}
			for _, sql := range []string{
				fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, max(1, d.cfg.LockTimeout.Milliseconds())),
				`CREATE SCHEMA IF NOT EXISTS ` + schema.QuoteIdent(into),
				`ALTER TABLE ` + t.String() + ` SET SCHEMA ` + schema.QuoteIdent(into),
			} {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
		switch pg.Code(err) {
		case pg.CodeLockNotAvailable:
		case pg.CodeInsufficientPrivilege:
			return hint.Wrap(err, "the role must own the table and may create schemas: GRANT CREATE ON DATABASE ... TO ...; or leave the old data where it is: complete.old_data: keep")
		default:
			return err
		}
		if waitErr := retry.Wait(ctx); waitErr != nil {
			return hint.Wrap(fmt.Errorf("%w: %w", waitErr, err), "somebody still reads the table: end that session")
		}
	}
}

// archiveName is the schema's name with the suffix, within what PostgreSQL keeps of a name.
func archiveName(name, suffix string) string {
	r := []rune(name)
	for len(string(r))+len(suffix) > maxIdentifier {
		r = r[:len(r)-1]
	}
	return string(r) + suffix
}

func archived(name, suffix string) bool {
	return strings.HasSuffix(name, suffix) && name != suffix
}
