package dump

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
)

const (
	// cancelGrace is how long a canceled statement has to end before its connection is closed.
	cancelGrace = 5 * time.Second
	// deadlockTries bounds how often one object is tried while an applier or a vacuum is in its way.
	deadlockTries = 5
)

// PreData builds schemas, types, functions, tables, sequences and views in one transaction: all or
// nothing. What an earlier run built stays as it is. The error says which object is in the way.
func (d *Dump) PreData(ctx context.Context, target pg.DSN) error {
	conn, err := d.connect(ctx, target)
	if err != nil {
		return fmt.Errorf("create tables: %w", ended(ctx, err))
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = pgx.BeginFunc(ctx, conn, func(pgx.Tx) error {
		if err := execute(ctx, conn, installSQL); err != nil {
			return explain(err, nil)
		}
		roles, err := readRoles(ctx, conn)
		if err != nil {
			return err
		}
		todo, err := d.todo(ctx, conn, stageTables, stageTables)
		if err != nil {
			return err
		}
		d.checkOwners(roles, stageTables, stageTables)
		for _, e := range todo {
			if err := d.create(ctx, conn, e, roles); err != nil {
				return fmt.Errorf("%s: %w", e, explain(ended(ctx, err), e))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("create tables: %w", ended(ctx, err))
	}
	return nil
}

// create builds one entry inside the open transaction.
func (d *Dump) create(ctx context.Context, conn *pgx.Conn, e *entry, r roles) error {
	sql := sqlFor(e, r) + "\n" + e.record()
	if e.kind != "SCHEMA" && e.kind != "COMMENT" {
		return execute(ctx, conn, sql)
	}
	if err := execute(ctx, conn, "SAVEPOINT ficus_object"); err != nil {
		return err
	}
	err := execute(ctx, conn, sql)
	switch code := pg.Code(err); {
	case err == nil:
		return execute(ctx, conn, "RELEASE SAVEPOINT ficus_object")
	case e.kind == "SCHEMA" && code == codeDuplicateSchema: // an empty container is in nobody's way
	case e.kind == "COMMENT" && code == pg.CodeInsufficientPrivilege: // on an extension that an administrator made
		d.warn("%s is left out: %s", e, message(err))
	default:
		return err
	}
	return execute(ctx, conn, "ROLLBACK TO SAVEPOINT ficus_object")
}

// Indexes builds primary keys, unique and exclusion constraints of each table, then its other
// indexes and extended statistics, and gathers statistics of the tables of Config.Analyze. Config.Workers sessions work at once, the largest tables first. Each
// object is one transaction.
func (d *Dump) Indexes(ctx context.Context, target pg.DSN, progress Progress) error {
	ready := make(chan Ready)
	close(ready)
	return d.IndexesBeside(ctx, target, ready, progress)
}

// IndexesBeside is Indexes while the tables are being filled. It begins with a table when ready says
// that it is filled, and uses no more sessions than ready lets it, until ready is closed.
func (d *Dump) IndexesBeside(ctx context.Context, target pg.DSN, ready <-chan Ready, progress Progress) error {
	b := &builder{d: d, target: target, progress: progress}
	if err := b.run(ctx, stageKeys, stageStatistics, ready); err != nil {
		return fmt.Errorf("build indexes: %w", ended(ctx, err))
	}
	return nil
}

// Final adds constraints that are NOT VALID, then foreign keys, then checks those, several at once;
// builds triggers, rules, policies and views that need a key; fills the materialized views that hold
// rows on the source; and grants privileges. Privileges of roles that the target does not have are
// left out, with a warning.
func (d *Dump) Final(ctx context.Context, target pg.DSN, progress Progress) error {
	ready := make(chan Ready)
	close(ready)
	b := &builder{d: d, target: target, progress: progress}
	if err := b.run(ctx, stageChecks, stageEvents, ready); err != nil {
		return fmt.Errorf("finish schema: %w", ended(ctx, err))
	}
	return nil
}

// todo returns the entries of a range of stages that no earlier run built.
func (d *Dump) todo(ctx context.Context, conn *pgx.Conn, first, last stage) ([]*entry, error) {
	done, err := built(ctx, conn)
	if err != nil {
		return nil, explain(err, nil)
	}
	var list []*entry
	for _, e := range d.entries {
		if e.stage >= first && e.stage <= last && !done[e.digest()] {
			list = append(list, e)
		}
	}
	return list, nil
}

// build builds one entry in a transaction of its own.
func (d *Dump) build(ctx context.Context, conn *pgx.Conn, e *entry, r roles) error {
	start := time.Now()
	var err error
	for range deadlockTries {
		switch e.kind {
		case "ACL", "DEFAULT ACL":
			err = d.grant(ctx, conn, e)
		default:
			err = execute(ctx, conn, sqlFor(e, r)+"\n"+e.record())
		}
		if pg.Code(err) != codeDeadlock {
			break
		}
	}
	if code := pg.Code(err); e.stage == stageEvents && (code == pg.CodeInsufficientPrivilege ||
		code == pg.CodeUndefinedObject && e.kind == "COMMENT") { // event triggers are for superusers
		d.warn("%s is left out: %s", e, message(err))
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e, explain(ended(ctx, err), e))
	}
	d.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "schema object built",
		slog.String("object", e.String()), slog.Duration("elapsed", time.Since(start)))
	return nil
}

// ended puts the reason why ctx ended in the place of what that did to a statement.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return cause
	}
	return err
}
