package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/fence"
	"github.com/ficus-migrate/ficus/playbooks"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/sync/snapshot"
)

// engineFlags choose two databases and tables, for the commands that use the engine alone.
type engineFlags struct {
	playbookFlags
	include, exclude []string
}

func (f *engineFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.source, "source", "", "connection string of the database to read")
	fs.StringVar(&f.target, "target", "", "connection string of the database to write")
	fs.StringVarP(&f.file, "file", "f", "", "playbook with rules for tables")
	fs.StringArrayVarP(&f.params, "param", "p", nil, "parameter of the playbook, key=value (repeatable)")
	fs.StringSliceVar(&f.include, "include", nil, "tables, as patterns such as public.* (default: all)")
	fs.StringSliceVar(&f.exclude, "exclude", nil, "tables to leave out, as patterns")
	fs.IntVar(&f.workers, "workers", 0, "connections to each side (default: as many as the smaller server has cores)")
}

// job reads the playbook, or makes one from the flags.
func (f *engineFlags) job(cmd *cobra.Command, name string) (*job, error) {
	var j *job
	var err error
	if f.file != "" {
		j, err = f.load(cmd, nil)
	} else {
		var p *playbooks.Playbook
		p, err = playbooks.Parse(name, fmt.Appendf(nil, "name: %s\n", name), f.databases())
		if err != nil {
			return nil, &statusError{exitUsage, err}
		}
		if err := f.chooseDDL(p); err != nil {
			return nil, err
		}
		if err := f.chooseApplyWorkers(p); err != nil {
			return nil, err
		}
		p.Copy.Workers, p.Follow.NoReplicaIdentity = f.workers, f.noReplicaIdentity
		j, err = newJob(p, name)
	}
	if err != nil {
		return nil, err
	}
	p := j.playbook
	p.Select.Include, p.Select.Exclude = append(p.Select.Include, f.include...), append(p.Select.Exclude, f.exclude...)
	p.Router.Type = "none"
	p.Until = string(migrate.Following)
	return j, nil
}

// databases are the parameters that a playbook of its own flags needs.
func (f *engineFlags) databases() map[string]string {
	params := map[string]string{}
	if f.source != "" {
		params["source"] = f.source
	}
	if f.target != "" {
		params["target"] = f.target
	}
	return params
}

func (a *app) copyCommand() *cobra.Command {
	var f engineFlags
	cmd := &cobra.Command{
		Use:   "copy",
		Short: "Make one consistent copy of a database",
		Long: `Copy schema, rows and sequences of one database into another, empty one, as they were at one
instant. Nothing is left behind in either database and nothing is followed afterwards.`,
		Example: "  ficus copy --source postgresql://app@old/shop --target postgresql://app@new/shop",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			j, err := f.job(cmd, "copy")
			if err != nil {
				return err
			}
			return a.copy(cmd.Context(), j)
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) copy(ctx context.Context, j *job) error {
	log, err := a.log()
	if err != nil {
		return err
	}
	j.copyOnly = true
	if err := j.read(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ficus-copy-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l := &loader{job: j, dir: dir, log: log}
	if err := a.checkAndOpen(ctx, l); err != nil {
		return err
	}

	screen := a.newConsole(func() migrate.Status { return migrate.Status{Phase: migrate.Copying} })
	defer screen.close()
	var telling sync.Mutex // rows and indexes are told of from two sides
	show := func(e migrate.Event) {
		telling.Lock()
		defer telling.Unlock()
		e.Time = time.Now()
		screen.event(e)
	}
	if err := l.make(ctx); err != nil {
		return err
	}
	step := func(what string, done, total int) {
		if a.json || screen.screen != nil {
			show(migrate.Event{Type: "step", Phase: migrate.Copying, Message: fmt.Sprintf("build %d/%d %s", done+1, total, what)})
		}
	}
	result, err := l.copySnapshot(ctx, show, step)
	if err != nil {
		return err
	}
	if err := l.buildIndexes(ctx, step); err != nil {
		return err
	}
	if err := l.buildRest(ctx, step); err != nil {
		return err
	}
	if err := copySequences(ctx, j); err != nil {
		return err
	}
	screen.close()
	a.line("result", map[string]any{"tables": result.Tables, "rows_copied": result.Rows, "bytes_copied": result.Bytes, "copy_seconds": result.Elapsed.Seconds()},
		fmt.Sprintf("copied %d tables, %s rows, %s, in %s", result.Tables, units.Count(result.Rows), units.Bytes(result.Bytes), units.Duration(result.Elapsed)))
	return nil
}

// checkAndOpen looks for what stands against the copy, and reads the source's schema meanwhile.
func (a *app) checkAndOpen(ctx context.Context, l *loader) error {
	opening, cancel := context.WithCancel(ctx)
	defer cancel()
	opened := make(chan error, 1)
	go func() { opened <- l.open(opening) }() // ends with opening, and is waited for
	findings, err := l.job.check(ctx)
	if err == nil {
		a.findings(findings)
		err = refusal(findings)
	}
	if err != nil {
		cancel()
	}
	if openErr := <-opened; err == nil {
		err = openErr
	}
	return err
}

// copySnapshot copies the rows of one instant, which a session holds open meanwhile, and builds indexes.
func (l *loader) copySnapshot(ctx context.Context, show func(migrate.Event), step func(what string, done, total int)) (result snapshot.Result, err error) {
	j := l.job
	var load link.LoadConfig
	if err := l.besideCopy(ctx, &load, step); err != nil {
		return snapshot.Result{}, err
	}
	g, ctx := errgroup.WithContext(ctx)
	copied := make(chan struct{})
	g.Go(func() error {
		holder, exported, err := holdSnapshot(ctx, j.source)
		if err != nil {
			return err
		}
		defer holder.Close(context.WithoutCancel(ctx))
		result, err = snapshot.Run(ctx, snapshot.Config{
			Source: j.source, Target: j.target, Snapshot: exported, Mappings: j.plan.Forward.Mappings,
			Workers: j.playbook.Copy.Workers, ChunkBytes: int64(j.playbook.Copy.Chunk), Copied: load.Copied, Idle: load.Idle,
			Progress: func(t snapshot.Table) {
				show(migrate.Event{Type: "progress", Phase: migrate.Copying, Message: "copy " + t.Name.Display(), Data: map[string]any{"table": tableProgress(t)}})
			},
		})
		if err == nil {
			close(copied)
		}
		return err
	})
	if load.Beside != nil {
		g.Go(func() error { return load.Beside(ctx, copied) })
	}
	err = g.Wait()
	return result, err
}

// holdSnapshot exports a snapshot of now, for as long as holder is open.
func holdSnapshot(ctx context.Context, source pg.DSN) (holder *pgx.Conn, exported string, err error) {
	if holder, err = source.Connect(ctx, "snapshot"); err != nil {
		return nil, "", err
	}
	if _, err = holder.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`); err == nil {
		err = holder.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&exported)
	}
	if err != nil {
		return nil, "", fmt.Errorf("hold a snapshot: %w", errors.Join(err, holder.Close(context.WithoutCancel(ctx))))
	}
	return holder, exported, nil
}

// copySequences sets the target's sequences to where the source's stand (they may be ahead of the
// snapshot, never behind it), and takes what the copy noted there away.
func copySequences(ctx context.Context, j *job) error {
	names, serials := j.plan.sequences()
	open := func(c fence.Config) (*fence.Database, error) {
		c.Sequences = names
		return fence.New(ctx, c)
	}
	source, err := open(fence.Config{DSN: j.source, Self: migrate.Source})
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := open(fence.Config{DSN: j.target, Self: migrate.Target, Serials: serials})
	if err != nil {
		return err
	}
	defer target.Close()
	seqs, err := source.Sequences(ctx)
	if err != nil {
		return err
	}
	if err := target.SetSequences(ctx, seqs, 0); err != nil {
		return err
	}
	return target.Uninstall(ctx) // the schema copy's own records
}
