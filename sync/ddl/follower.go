package ddl

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema/dump"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/sync/snapshot"
)

// lockWait bounds how long readers of the destination may wait behind a statement that follows DDL.
const lockWait = 500 * time.Millisecond

// A Host is the migration that a link belongs to.
type Host interface {
	// Tell journals something that an operator may want to know.
	Tell(message string)
	// Warn journals what stands against the migration, though not in its way.
	Warn(Warning)
	// Unprove makes all that was proved of the origin count no more, comparisons that run included.
	Unprove(why string) error
	// Signal writes a nonce at the origin; the stream carries it after everything committed before.
	Signal(ctx context.Context, nonce string) error
	// Arm puts the fence on the destination's tables, as the plan names them now.
	Arm(ctx context.Context) error
}

// A Warning is told once.
type Warning struct {
	Object  string // public.users
	Check   string // short name: new-table, ...
	Message string
	Fix     string // the SQL or setting that mends it
}

// Plans keeps the plan of a link.
type Plans interface {
	Current() *Plan
	// Replace makes another plan the link's, durably.
	Replace(next *Plan) error
	// Loses says what a plan would make impossible to carry back, though it is possible now.
	Loses(next *Plan) []string
}

// Config holds what a Follower needs. Fields without a stated default are required.
type Config struct {
	Migration           string // its name, for advice
	Origin, Destination pg.DSN
	Link                *link.Link
	// Opposite is told of mappings, too, though it does not run now. Default: there is none.
	Opposite func(context.Context) error
	Plans    Plans
	Host     Host

	Choice Choice
	// Safe lets what is safe be followed; the rest stops the link, as does everything without it.
	Safe bool
	// MakesTables says that the destination's tables are made like the origin's, new ones too.
	MakesTables bool
	// Tools finds a pg_dump that reads the origin. Dir is where it may write.
	Tools func(context.Context) (dump.Tools, error)
	Dir   string

	Workers    int   // see [link.LoadConfig]
	ChunkBytes int64 // see [link.LoadConfig]
	// Log receives what an operator may want to know. Default: nothing.
	Log *slog.Logger
}

// A Follower runs a link through what becomes of its origin's tables.
type Follower struct {
	cfg   Config
	watch watcher
}

// New returns a Follower. It starts nothing.
func New(cfg Config) *Follower {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Follower{cfg: cfg}
}

// Run follows until ctx is done, or until something stops the link that no retry mends.
func (f *Follower) Run(ctx context.Context) error {
	for {
		err := f.finish(ctx)
		if err == nil {
			err = f.react(ctx, f.round(ctx))
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !errors.Is(err, ErrReshaped):
			return err
		}
	}
}

// round follows until the link stops, or the watcher has found something for which it must.
func (f *Follower) round(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.cfg.Link.Run(ctx) })
	g.Go(func() error { return f.watch.run(ctx, f) })
	return g.Wait()
}

// react deals with why a round ended; nil means that the next one may begin.
func (f *Follower) react(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d, ok := errors.AsType[*drift](err); ok {
		return f.drifted(ctx, d)
	}
	if change, ok := errors.AsType[*apply.SchemaChange](err); ok {
		return f.streamed(ctx, change)
	}
	if made, lookErr := f.madePartitions(ctx, err); made || lookErr != nil {
		return lookErr
	}
	return err
}

// Interrupted reports whether an error means that the link stood still, or stands, for DDL.
func Interrupted(err error) bool {
	_, drifted := errors.AsType[*drift](err)
	_, changed := errors.AsType[*apply.SchemaChange](err)
	return drifted || changed
}

// finish brings a change through that was written down, by this process or one that was killed.
func (f *Follower) finish(ctx context.Context) error {
	plan := f.cfg.Plans.Current()
	p := plan.Pending
	if p == nil {
		return nil
	}
	// From here on nothing that was proved holds: rows may have changed without a trace in the stream.
	if err := f.cfg.Host.Unprove(p.Why); err != nil {
		return err
	}
	if err := f.makeTables(ctx, p.New); err != nil {
		return err
	}
	if err := f.cfg.Link.Remap(ctx, plan.Mappings, plan.Full, plan.InsertOnly); err != nil {
		return err
	}
	if f.cfg.Opposite != nil {
		if err := f.cfg.Opposite(ctx); err != nil {
			return err
		}
	}
	if len(p.Resync) > 0 {
		if err := f.copyAgain(ctx, p); err != nil {
			return err
		}
	}
	if err := f.buildTables(ctx, p); err != nil {
		return err
	}
	if err := f.cfg.Host.Arm(ctx); err != nil {
		return err
	}
	done := *plan
	done.Pending = nil
	// Once more, for comparisons that began while tables were being copied.
	return errors.Join(f.cfg.Host.Unprove(p.Why), f.cfg.Plans.Replace(&done))
}

// copyAgain copies tables anew.
func (f *Follower) copyAgain(ctx context.Context, p *Pending) error {
	for _, t := range p.Resync {
		f.tell(ctx, "copies table " + t.Display() + " anew: " + p.Why)
	}
	_, err := f.cfg.Link.Resync(ctx, p.Resync, link.LoadConfig{
		Workers: f.cfg.Workers, ChunkBytes: f.cfg.ChunkBytes, Progress: func(snapshot.Table) {},
		Locked: func(ctx context.Context) error { return f.unchanged(ctx, p.Resync, f.cfg.Safe) },
	})
	return err
}

// tell journals an event.
func (f *Follower) tell(ctx context.Context, message string) {
	f.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "ddl", slog.String("what", message))
	f.cfg.Host.Tell(message)
}
