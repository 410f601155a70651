package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/dump"
	"github.com/ficus-migrate/ficus/sync/ddl"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/transform"
)

// A loader makes and fills the target's tables: schema/dump for the tables that keep their shape,
// the rules for the others, sync/link for the rows. It is migrate.Loader.
type loader struct {
	job  *job
	link *link.Link
	dir  string
	log  *slog.Logger
	dump *dump.Dump // of this run; read again after a restart

	engine   *engine
	follower *ddl.Follower // what sees to it that the tables are what the plan says; nil when nothing is followed
}

// CreateTables implements [migrate.Loader].
func (l *loader) CreateTables(ctx context.Context) error {
	// What an earlier attempt left on the source would be copied as if it belonged there.
	if err := l.link.Drop(ctx); err != nil {
		return err
	}
	return l.make(ctx)
}

// make creates the tables that are not there yet.
func (l *loader) make(ctx context.Context) error {
	target, err := l.job.target.Connect(ctx, "schema")
	if err != nil {
		return err
	}
	defer target.Close(context.WithoutCancel(ctx))
	if sql := l.job.playbook.Schema.Before; sql != "" {
		if _, err := target.Exec(ctx, sql); err != nil {
			return hint.Wrap(fmt.Errorf("run schema.before: %w", err), "correct the SQL in the playbook; it must be fit to run again")
		}
	}
	if l.job.playbook.CopiesSchema() {
		if err := l.open(ctx); err != nil {
			return err
		}
		if err := l.dump.PreData(ctx, l.job.target); err != nil {
			return err
		}
	}
	return l.createReshaped(ctx, target)
}

// createReshaped makes the tables that a rule gives another shape and that are not there yet, in
// one transaction.
func (l *loader) createReshaped(ctx context.Context, target *pgx.Conn) error {
	return pgx.BeginFunc(ctx, target, func(tx pgx.Tx) error {
		for _, m := range l.reshaped() {
			var exists bool
			if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, m.Target.String()).Scan(&exists); err != nil {
				return err
			}
			if exists {
				continue
			}
			ddl := m.Rule.Create
			if strings.TrimSpace(ddl) == "" {
				ddl = transform.CreateTable(m)
			}
			if _, err := tx.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS `+schema.QuoteIdent(m.Target.Schema)); err != nil {
				return fmt.Errorf("create schema %s: %w", m.Target.Schema, err)
			}
			if _, err := tx.Exec(ctx, ddl); err != nil {
				return hint.Wrap(fmt.Errorf("create %s: %w", m.Target.Display(), err), "give the table's DDL under create in the playbook")
			}
		}
		return nil
	})
}

// reshaped lists the mappings whose tables pg_dump must not make.
func (l *loader) reshaped() []*transform.Mapping {
	var out []*transform.Mapping
	for i := range l.job.plan.Forward.Mappings {
		if m := &l.job.plan.Forward.Mappings[i]; m.Reshaped() {
			out = append(out, m)
		}
	}
	return out
}

// open reads the source's schema, once a run, where it is copied.
func (l *loader) open(ctx context.Context) error {
	if l.dump != nil || !l.job.playbook.CopiesSchema() {
		return nil
	}
	tools, err := l.job.tools(ctx)
	if err != nil {
		return err
	}
	var skip []schema.Name
	for _, m := range l.reshaped() {
		skip = append(skip, m.Source.Name)
	}
	p := l.job.playbook
	var analyze []schema.Name
	if p.Schema.After == "" { // whose indexes may want statistics, too
		_, analyze = l.job.plan.Forward.Moved()
	}
	l.dump, err = dump.Open(ctx, dump.Config{
		Source: l.job.source, Tools: tools, SkipTables: skip, Dir: l.dir, Log: l.log, Workers: p.Copy.Workers,
		Filter: schema.Filter{Include: p.Select.Include, Exclude: p.Select.Exclude}, Analyze: analyze,
	})
	return err
}

// Load implements [migrate.Loader].
func (l *loader) Load(ctx context.Context, progress func(migrate.TableProgress), step func(what string, done, total int)) (migrate.Copied, error) {
	for i := range l.job.plan.Forward.Mappings { // so that the surfaces know all of them from the start
		t := &l.job.plan.Forward.Mappings[i].Source
		progress(migrate.TableProgress{Table: t.Name.Display(), TotalRows: t.Rows})
	}
	p := l.job.playbook.Copy
	cfg := link.LoadConfig{
		Workers: p.Workers, ChunkBytes: int64(p.Chunk),
		Progress: func(t snapshot.Table) { progress(tableProgress(t)) },
	}
	if l.follower != nil {
		cfg.Locked = l.follower.AsPlanned
		cfg.Resumed = func(done, all int) {
			l.engine.migration.Tell(fmt.Sprintf("copy resumed: %d of %d chunks are there already", done, all))
		}
	}
	for {
		if err := l.besideCopy(ctx, &cfg, step); err != nil {
			return migrate.Copied{}, err
		}
		r, err := l.link.Load(ctx, cfg)
		if !errors.Is(err, ddl.ErrReshaped) {
			return migrate.Copied(r), err
		}
		plan := &l.engine.current().Forward
		if err := l.link.Remap(ctx, plan.Mappings, plan.Full, plan.InsertOnly); err != nil {
			return migrate.Copied{}, err
		}
	}
}

func tableProgress(t snapshot.Table) migrate.TableProgress {
	return migrate.TableProgress{Table: t.Name.Display(), Rows: t.Rows, Bytes: t.Bytes, TotalRows: t.TotalRows, Done: t.Done, Format: t.Format}
}

// besideCopy lets indexes of tables that are copied be built with the workers that have nothing left
// to copy. The copy comes first: it keeps the source's snapshot open.
func (l *loader) besideCopy(ctx context.Context, cfg *link.LoadConfig, step func(what string, done, total int)) error {
	if !l.job.playbook.CopiesSchema() {
		return nil
	}
	if err := l.open(ctx); err != nil {
		return err
	}
	ready := make(chan dump.Ready)
	tell := func(ctx context.Context, r dump.Ready) {
		select {
		case ready <- r:
		case <-ctx.Done():
		}
	}
	cfg.Copied = func(ctx context.Context, target schema.Name) { tell(ctx, dump.Ready{Table: target}) }
	cfg.Idle = func(ctx context.Context) { tell(ctx, dump.Ready{Session: true}) }
	cfg.Beside = func(ctx context.Context, copied <-chan struct{}) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return l.dump.IndexesBeside(ctx, l.job.target, ready, step) })
		g.Go(func() error {
			select {
			case <-copied:
				close(ready)
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
		return g.Wait()
	}
	return nil
}

// Finish implements [migrate.Loader]. Foreign keys come when the tables stand at one instant, which those of a
// copy that was interrupted do not yet.
func (l *loader) Finish(ctx context.Context, step func(what string, done, total int)) error {
	if err := l.receiving(ctx, func(ctx context.Context) error { return l.buildIndexes(ctx, step) }); err != nil {
		return err
	}
	if err := l.link.Settle(ctx); err != nil {
		return err
	}
	return l.receiving(ctx, func(ctx context.Context) error { return l.buildRest(ctx, step) })
}

// receiving lets changes be received while something is built, so that the source need not keep its WAL
// however long that takes.
func (l *loader) receiving(ctx context.Context, build func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	receiving, stop := context.WithCancelCause(ctx)
	g.Go(func() error {
		if err := l.link.Receive(receiving); !errors.Is(err, errBuilt) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		defer stop(errBuilt)
		return build(ctx)
	})
	return g.Wait()
}

// errBuilt is the cause with which receiving ends.
var errBuilt = errors.New("the target's tables are built")

// buildIndexes makes keys and indexes.
func (l *loader) buildIndexes(ctx context.Context, step func(what string, done, total int)) error {
	if !l.job.playbook.CopiesSchema() {
		return nil
	}
	if err := l.open(ctx); err != nil {
		return err
	}
	return l.dump.Indexes(ctx, l.job.target, step)
}

// buildRest makes constraints, triggers, foreign keys and statistics.
func (l *loader) buildRest(ctx context.Context, step func(what string, done, total int)) error {
	target, err := l.job.target.Connect(ctx, "schema")
	if err != nil {
		return err
	}
	defer target.Close(context.WithoutCancel(ctx))
	if sql := l.job.playbook.Schema.After; sql != "" {
		if _, err := target.Exec(ctx, sql); err != nil {
			return hint.Wrap(fmt.Errorf("run schema.after: %w", err), "correct the SQL in the playbook; it must be fit to run again")
		}
	}
	if l.job.playbook.CopiesSchema() {
		if err := l.dump.Final(ctx, l.job.target, step); err != nil {
			return err
		}
		for _, w := range l.dump.Warnings() {
			l.log.LogAttrs(ctx, slog.LevelWarn, "schema copy", slog.String("warning", w))
		}
	}
	_, names := l.job.plan.Forward.Moved()
	if l.dump != nil {
		done := l.dump.Analyzed()
		names = slices.DeleteFunc(names, func(n schema.Name) bool { return slices.Contains(done, n) })
	}
	for i, n := range names {
		step("statistics of "+n.Display(), i, len(names))
		if _, err := target.Exec(ctx, `ANALYZE `+n.String()); err != nil {
			return fmt.Errorf("gather statistics of %s: %w", n.Display(), err)
		}
	}
	return nil
}
