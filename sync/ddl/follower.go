package ddl

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/dump"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/sync/snapshot"
)

// lockWait bounds how long readers of the destination may wait behind a statement that follows DDL.
const lockWait = 500 * time.Millisecond

// ErrBusy says that a change of tables is being followed, or has yet to be.
var ErrBusy = errors.New("tables changed")

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

// Requests are what operators ask for beside the stream.
type Requests interface {
	// Asked returns the requests that are not answered, the oldest first.
	Asked() []Ask
	// Answered is called when the requests up to a number are fulfilled.
	Answered(number int64)
}

// An Ask is a request to copy tables anew.
type Ask struct {
	Number int64 // higher than that of any earlier request
	Tables []schema.Name
	By     string
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
	Requests Requests

	// Choice is asked for each time: rules may change while the link stands.
	Choice func() Choice
	// Safe lets what is safe be followed; the rest stops the link, as does everything without it.
	Safe bool
	// MakesTables says that the destination's tables are made like the origin's, new ones too.
	MakesTables bool
	// Tools finds a pg_dump that reads the origin. Dir is where it may write.
	Tools func(context.Context) (dump.Tools, error)
	Dir   string

	Workers    int   // see [link.LoadConfig]
	ChunkBytes int64 // see [link.LoadConfig]
	// Progress is told how far a table is that is being copied anew, and nil when all are. It must not
	// block. Default: nobody is told.
	Progress func(why string, t *snapshot.Table)
	// Look is how often the origin's catalog is looked at. Default 2 s.
	Look time.Duration
	// Log receives what an operator may want to know. Default: nothing.
	Log *slog.Logger
}

// A Follower runs a link through what becomes of its origin's tables.
type Follower struct {
	cfg   Config
	watch watcher

	watching *pgxpool.Pool // one session at the origin, for the watcher's looks
	woken    chan struct{} // holds one when there may be a new request
	// acting is held by whoever changes anything but rows at the destination, and by Settle.
	acting lock

	mu struct {
		sync.Mutex
		settled bool  // Settle holds acting
		trouble error // for which act tries again
	}
}

// New returns a Follower that touches no database yet. Close it when done.
func New(ctx context.Context, cfg Config) (*Follower, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.Look = cmp.Or(cfg.Look, lookEvery)
	if cfg.Progress == nil {
		cfg.Progress = func(string, *snapshot.Table) {}
	}
	f := &Follower{cfg: cfg, woken: make(chan struct{}, 1), acting: newLock()}
	f.watch.looking = newLock()
	var err error
	f.watching, err = cfg.Origin.Pool(ctx, "watch", 1)
	return f, err
}

// Close ends the session that looks at the origin's catalog.
func (f *Follower) Close() { f.watching.Close() }

// Run follows until ctx is done, or until something stops the link that no retry mends.
func (f *Follower) Run(ctx context.Context) error {
	for {
		err := f.act(ctx, f.outstanding)
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

// round follows until the link stops, somebody asks for something, or the watcher has found
// something for which it must.
func (f *Follower) round(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.cfg.Link.Run(ctx) })
	g.Go(func() error { return f.watch.run(ctx, f) })
	g.Go(func() error {
		select {
		case <-f.woken:
			return errAsked
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	return g.Wait()
}

// react deals with why a round ended; nil means that the next one may begin.
func (f *Follower) react(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d, ok := errors.AsType[*drift](err); ok {
		return f.act(ctx, func(ctx context.Context) error { return f.drifted(ctx, d) })
	}
	if change, ok := errors.AsType[*apply.SchemaChange](err); ok {
		return f.act(ctx, func(ctx context.Context) error { return f.streamed(ctx, change) })
	}
	if errors.Is(err, apply.ErrSchemaChanged) {
		return f.act(ctx, func(ctx context.Context) error { return f.misfit(ctx, err) })
	}
	if f.cfg.Safe && pg.Code(err) == codeNoPartition {
		return f.act(ctx, func(ctx context.Context) error { return f.unpartitioned(ctx, err) })
	}
	if errors.Is(err, errAsked) {
		return nil
	}
	return err
}

// Interrupted reports whether an error means that the link stood still, or stands, for DDL.
func Interrupted(err error) bool {
	_, drifted := errors.AsType[*drift](err)
	_, changed := errors.AsType[*apply.SchemaChange](err)
	return drifted || changed
}

// outstanding does what is written down and not done, and what was asked for.
func (f *Follower) outstanding(ctx context.Context) error {
	if err := f.finish(ctx); err != nil {
		return err
	}
	return f.answer(ctx)
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
	if err := f.carryRenames(ctx, p); err != nil {
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
	if changed, err := f.stillThere(ctx, p.Resync); changed || err != nil {
		return cmp.Or(err, ErrReshaped)
	}
	for _, t := range p.Resync {
		f.tell(ctx, "copies table "+t.Display()+" anew: "+p.Why)
	}
	defer f.cfg.Progress(p.Why, nil)
	_, err := f.cfg.Link.Resync(ctx, p.Resync, link.LoadConfig{
		Workers: f.cfg.Workers, ChunkBytes: f.cfg.ChunkBytes, Progress: func(t snapshot.Table) { f.cfg.Progress(p.Why, &t) },
		Locked: func(ctx context.Context) error { return f.unchanged(ctx, p.Resync, f.cfg.Safe) },
	})
	return err
}

// stillThere makes sure that tables are to be found under their names, and otherwise deals with that:
// changed says that the plan is another one then.
func (f *Follower) stillThere(ctx context.Context, tables []schema.Name) (changed bool, err error) {
	v, err := f.look(ctx)
	if err != nil {
		return false, err
	}
	if list := v.renamed(); len(list) > 0 {
		return true, f.rename(ctx, v, list)
	}
	for _, t := range tables {
		known := v.plan.Mapping(t)
		if _, why := v.find(&known.Source); why != "" {
			return true, f.lost(ctx, known, why)
		}
	}
	return false, nil
}

// tell journals an event.
func (f *Follower) tell(ctx context.Context, message string) {
	f.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "ddl", slog.String("what", message))
	f.cfg.Host.Tell(message)
}
