package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/manifest"
	"github.com/ficus-migrate/ficus/transform"
)

// Config says what to copy. Fields without a stated default are required.
type Config struct {
	Source, Target pg.DSN

	// Snapshot is what pg_export_snapshot or a new slot returned; its session must stay open.
	Snapshot string
	// Mappings are the tables. Their target tables exist, and lose the rows that they have.
	Mappings []transform.Mapping
	// Workers is how many chunks are copied at a time; each takes a session on either side.
	// ChunkBytes is how much of a table, TOAST included, is copied at once. Default: see [Sizing.Size].
	Workers    int
	ChunkBytes int64
	// Progress is called about five times a second for each table that moved on, and once more when
	// the table is done, never by two goroutines at a time. Default: nobody is told.
	Progress func(Table)
	// AnswerTimeout is how long nothing may move on the sessions of a worker before both servers are
	// asked whether they are at work for it; where neither is, the copy ends with an error that a new
	// connection may mend (see [pg.Retryable]). Default: 5 min.
	AnswerTimeout time.Duration
	// Copied is called with the target's name when a table is copied, and Idle when a worker has found
	// no more chunks to copy, both by the worker. They may wait for ctx. Default: nobody is told.
	Copied func(ctx context.Context, target schema.Name)
	Idle   func(ctx context.Context)
	// Gate is called before each chunk and may wait, to let the source breathe. Default: none.
	Gate func(context.Context) error
	// Guard is called first in each transaction that changes the target. An error refuses it: another
	// process may have taken the copy over meanwhile. Default: nobody is asked.
	Guard func(context.Context, pgx.Tx) error
	// Resumed is told, before anything is copied, how many of how many chunks an earlier, interrupted
	// copy has finished, if there are any. Default: nobody is told.
	Resumed func(done, all int)
	// Log receives one line for each table. Default: discarded.
	Log *slog.Logger

	// Link names the manifest at the target in which the copy is recorded (see sync/manifest), where
	// it is installed. Default: none is kept, and nothing of the following counts.
	Link string
	// Base is what Snapshot sees, and Until a position at and after which nothing that it sees commits.
	Base  change.Snapshot
	Until change.LSN
	// Keep reports whether what an earlier, interrupted copy has finished of a table stays.
	// Default: nothing does.
	Keep func(*manifest.Table) bool
	// Alone says that tables which are not among Mappings stay as they are and may refer to them.
	Alone bool
	// Changed hands over the key of every row, as it was and as it became, that a transaction changed
	// which Base sees and since does not: one text per column of the mapping's key. It may wait. An
	// error that wraps ErrUnfollowable has the table copied again. Default: no key is ever known.
	Changed func(ctx context.Context, m *transform.Mapping, since change.Snapshot, emit func(key [][]byte) error) error
}

// A Table is how far the copy of one table is.
type Table struct {
	Name      schema.Name // of the source
	Rows      int64       // copied so far
	Bytes     int64       // of COPY data, so far
	TotalRows int64       // the source's estimate, -1 when it has none
	Done      bool
	Format    string // "binary" or "text"
}

// A Result sums up a copy.
type Result struct {
	Tables  int
	Rows    int64
	Bytes   int64 // of COPY data
	Elapsed time.Duration
}

// Run copies every row of the snapshot and returns when all of it is durable at the target, or at
// the first error. Errors name the table. A cancelled ctx ends it promptly with ctx's cause.
func Run(ctx context.Context, cfg Config) (Result, error) {
	start := time.Now()
	cfg.AnswerTimeout = cmp.Or(cfg.AnswerTimeout, 5*time.Minute)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Snapshot == "" {
		return Result{}, errors.New("copy: no snapshot to read from")
	}
	if len(cfg.Mappings) == 0 {
		return Result{}, nil
	}
	c := &copier{cfg: cfg}
	err := c.run(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // a session that we cut says nothing of interest
	}
	if err != nil {
		return Result{}, fmt.Errorf("copy: %w", err)
	}

	res := Result{Tables: len(c.tables), Elapsed: time.Since(start)}
	for _, t := range c.tables { // with what earlier runs copied
		res.Rows += t.rows.Load()
		res.Bytes += t.bytes.Load()
	}
	return res, nil
}

// A copier is one Run.
type copier struct {
	cfg     Config
	tables  []*table
	replica bool // the target's sessions may take session_replication_role = replica
}

func (c *copier) run(ctx context.Context) error {
	queue, err := c.plan(ctx)
	if err != nil {
		return err
	}
	finished, reported := make(chan struct{}), make(chan struct{})
	go func() { // ends with finished, below
		defer close(reported)
		c.report(finished)
	}()

	chunks := make(chan chunk, len(queue))
	for _, ch := range queue {
		chunks <- ch
	}
	close(chunks)
	for _, t := range c.tables {
		if t.left.Load() == 0 { // by an earlier run
			c.tell(ctx, t)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for range min(c.cfg.Workers, len(queue)) {
		g.Go(func() error { return c.work(gctx, chunks) })
	}
	err = g.Wait()
	close(finished)
	<-reported
	return err
}

// tell tells who waits for a table that it is copied.
func (c *copier) tell(ctx context.Context, t *table) {
	if c.cfg.Copied != nil {
		c.cfg.Copied(ctx, t.m.Target)
	}
}

// plan calls prepare, with a pulse of its own.
func (c *copier) plan(ctx context.Context) (queue []chunk, err error) {
	pulse := pg.NewPulse(c.cfg.AnswerTimeout)
	err = pulse.Run(ctx, func(ctx context.Context) error {
		queue, err = c.prepare(ctx, pulse)
		return err
	})
	return queue, err
}

// prepare looks at both sides, decides how each table goes, and empties those that begin.
func (c *copier) prepare(ctx context.Context, pulse *pg.Pulse) ([]chunk, error) {
	src, err := pulse.Connect(ctx, c.cfg.Source, "source", "copy")
	if err != nil {
		return nil, err
	}
	defer closeSession(ctx, src)
	dst, err := pulse.Connect(ctx, c.cfg.Target, "target", "copy")
	if err != nil {
		return nil, err
	}
	defer closeSession(ctx, dst)
	defer c.clearTheWay(ctx, dst)()
	if c.replica, err = becomeReplica(ctx, dst); err != nil {
		return nil, err
	}
	limits, err := c.look(ctx, src, dst)
	if err != nil {
		return nil, err
	}
	if err := c.resume(ctx, pulse, dst); err != nil {
		return nil, err
	}
	return c.begin(ctx, dst, limits)
}

// look reads both catalogs.
func (c *copier) look(ctx context.Context, src, dst *pgx.Conn) (limits planLimits, err error) {
	sources, canSplit, err := readSources(ctx, src, c.cfg.Mappings)
	if err != nil {
		return limits, fmt.Errorf("read the source's catalog: %w", err)
	}
	targets, err := readTargets(ctx, dst, c.cfg.Mappings)
	if err != nil {
		return limits, fmt.Errorf("read the target's catalog: %w", err)
	}
	if limits.versions, err = readVersions(ctx, src, dst); err != nil {
		return limits, fmt.Errorf("read the servers' versions: %w", err)
	}
	cores, err := Cores(ctx, src, dst)
	if err != nil {
		return limits, fmt.Errorf("find out how many cores there are: %w", err)
	}
	c.size(cores, sources)
	limits.chunkBytes, limits.split = c.cfg.ChunkBytes, canSplit
	for i := range c.cfg.Mappings {
		m := &c.cfg.Mappings[i]
		if err := checkTarget(m, &targets[i], c.replica); err != nil {
			return limits, fmt.Errorf("%s: %w", m.Source.Name.Display(), err)
		}
		c.tables = append(c.tables, newTable(m, &sources[i], &targets[i], limits.versions))
	}
	return limits, nil
}

// guard asks whether a transaction may still change the target.
func (c *copier) guard(ctx context.Context, tx pgx.Tx) error {
	if c.cfg.Guard == nil {
		return nil
	}
	return c.cfg.Guard(ctx, tx)
}

// begin cuts the tables into chunks, empties those of which nothing is kept, and records both.
func (c *copier) begin(ctx context.Context, dst *pgx.Conn, limits planLimits) (queue []chunk, err error) {
	var fresh []*table
	done := 0
	for _, t := range c.tables {
		if t.kept == nil {
			fresh = append(fresh, t)
		} else {
			done += len(t.kept.Done)
		}
	}
	err = pgx.BeginFunc(ctx, dst, func(tx pgx.Tx) error {
		if err := c.guard(ctx, tx); err != nil {
			return err
		}
		if err := empty(ctx, tx, fresh, c.cfg.Alone || len(fresh) < len(c.tables)); err != nil {
			return err
		}
		for _, t := range c.tables {
			chunks := t.plan(limits)
			queue = append(queue, chunks...)
			if err := c.record(ctx, tx, t, len(chunks)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if done > 0 {
		c.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "copy resumed",
			slog.Int("chunks_done", done), slog.Int("chunks", done+len(queue)))
		if f := c.cfg.Resumed; f != nil {
			f(done, done+len(queue))
		}
	}
	if len(queue) == 0 {
		return nil, flush(ctx, dst) // of what an earlier run committed
	}
	largestFirst(queue)
	return queue, nil
}
