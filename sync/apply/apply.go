package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// Config holds what an Applier needs. Fields without a stated default are required.
type Config struct {
	DSN      pg.DSN // the destination
	Link     string // names the row of ficus.progress
	Mappings []transform.Mapping
	Stream   *eventstore.Stream
	// Start is where the destination stands while it has no progress row: the position of the
	// snapshot that it was copied from.
	Start change.LSN
	// AfterEpoch, when positive, ignores every transaction up to and including the one in which
	// ficus.ownership shows this epoch or a later one.
	AfterEpoch int64
	// Received says how far the source has been received; everything that ends up to there is in
	// Stream. With it an idle source can be stopped at a position where no transaction ends.
	// Default: never says so.
	Received func() change.LSN
	// Check is called with each new session, before anything is written. An error of it ends Run, unless
	// it is one of the connection. Default: nothing is checked.
	Check func(context.Context, *pgx.Conn) error
	// OnConflict says what happens with a row that the destination refuses because its own rows are
	// not the source's. Default Stop.
	OnConflict OnConflict
	// Touch records the keys of changed rows in Stream, durably before the rows are committed.
	Touch bool

	// MaxRows and MaxBytes bound a batch, and with it memory: about four times MaxBytes, and as much again for
	// each worker, are in memory at a time. Defaults: 10,000 rows; 8 MiB.
	MaxRows, MaxBytes int
	// MaxDelay is how long a transaction waits for company while the destination is idle.
	// Default: it does not wait.
	MaxDelay time.Duration

	// Workers is over how many sessions a backlog is written at a time, committed in order. Default 1.
	Workers int

	// AnswerTimeout is how long the destination may be silent before it is asked whether it is at work;
	// when it is not, or does not answer, the connection is made again. Default 5 min.
	AnswerTimeout time.Duration

	// Log receives what an operator may want to know. Default: nothing.
	Log *slog.Logger
	// Events are called as things happen. Default: nothing is called.
	Events Events

	inOrder  bool // everything takes the slow path; for tests
	copyRows int  // from how many on rows are inserted by COPY; tests have another than the default
}

// Events are callbacks; those that are nil are not called. They must not block.
type Events struct {
	Committed    func(Commit)    // a target transaction
	Disconnected func(err error) // the destination was lost and will be tried again
}

// A Commit is one target transaction.
type Commit struct {
	Transactions, Rows int
	Replayed           bool       // the fast path was refused
	Parallel           bool       // beside others, see Config.Workers
	Decided            int        // rows that OnConflict decided
	End                change.LSN // where the destination stands now
}

// Stats counts what this Applier has committed since it was made.
type Stats struct {
	Transactions, Rows int64
	Batches            int64     // target transactions
	Replayed           int64     // of these, how many the database refused at first
	Parallel           int64     // of these, how many were written beside others
	Decided            int64     // rows that OnConflict decided, those recorded before included
	LastCommit         time.Time // of the last applied transaction, at the source
}

// An Applier applies one stream to one destination. All methods but Run are safe for concurrent use.
type Applier struct {
	cfg     Config
	limits  limits
	trouble backoff.Trouble // over when the destination writes again, or has nothing to write
	log     log
	sources map[schema.Name]*transform.Mapping
	gate    *gate
	read    atomic.Uint64 // the session has read the stream up to here
}

// New returns an Applier that does nothing until Run.
func New(cfg Config) (*Applier, error) {
	if cfg.Stream == nil {
		return nil, errors.New("apply: no stream")
	}
	return newApplier(cfg, storeLog{cfg.Stream})
}

func newApplier(cfg Config, log log) (*Applier, error) {
	if cfg.DSN.IsZero() || cfg.Link == "" {
		return nil, errors.New("apply: no destination or no link name")
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.AnswerTimeout = cmp.Or(cfg.AnswerTimeout, 5*time.Minute)
	if cfg.Received == nil {
		cfg.Received = func() change.LSN { return 0 }
	}
	a := &Applier{
		cfg: cfg, log: log, sources: map[schema.Name]*transform.Mapping{},
		limits: limits{rows: cmp.Or(cfg.MaxRows, 10_000), bytes: cmp.Or(cfg.MaxBytes, 8<<20), delay: cfg.MaxDelay},
	}
	a.cfg.copyRows = cmp.Or(cfg.copyRows, copyRows)
	for i := range cfg.Mappings {
		m := &cfg.Mappings[i]
		if a.sources[m.Source.Name] != nil {
			return nil, fmt.Errorf("apply: two mappings of table %s", m.Source.Name.Display())
		}
		a.sources[m.Source.Name] = m
	}
	a.gate = newGate(a.idleAt)
	return a, nil
}

// mostInTheAir is how many bytes of batches may be on their way.
func (a *Applier) mostInTheAir() int { return (1 + max(1, a.cfg.Workers)) * a.limits.bytes }

// idleAt implements gate.idleAt. What was received is read before the head: everything received by
// then is in the log by then.
func (a *Applier) idleAt(applied change.LSN) change.LSN {
	if received := a.cfg.Received(); applied >= a.log.Head() {
		return received
	}
	return 0
}

// Applied returns the end of the last transaction committed at the destination, durably; 0 before
// the first session has read it.
func (a *Applier) Applied() change.LSN { return a.gate.read().applied }

// Done returns up to where the stream is of no more use: the destination holds it, and the session has
// read it. Where a stream was lost and fills again the session reads what the destination holds, for the
// descriptions of tables that are in it.
func (a *Applier) Done() change.LSN { return min(a.Applied(), change.LSN(a.read.Load())) }

// Stats returns the counters.
func (a *Applier) Stats() Stats { return a.gate.read().stats }

// Wait returns once the destination stands at lsn or behind it. It fails when Run does.
func (a *Applier) Wait(ctx context.Context, lsn change.LSN) error {
	err := a.gate.wait(ctx, false, func(s state) (bool, error) { return s.applied >= lsn, nil })
	if err != nil {
		return fmt.Errorf("wait for %s: %w", lsn, err)
	}
	return nil
}

// WaitSignal returns once the nonce, written to ficus.signal at the source, is committed at the
// destination together with everything before it. It fails when Run does.
func (a *Applier) WaitSignal(ctx context.Context, nonce string) error {
	err := a.gate.wait(ctx, false, func(s state) (bool, error) { return slices.Contains(s.signals, nonce), nil })
	if err != nil {
		return fmt.Errorf("wait for signal %s: %w", nonce, err)
	}
	return nil
}

// StopAt returns once everything that ends at or before lsn is committed at the destination, and
// nothing after it. Applying stands still from then until release, which may be called twice.
// The error wraps ErrPassed when the destination is past lsn already.
//
// lsn is the end of a transaction or any position between two. When no transaction is there after
// lsn, Config.Received tells that none can come before it either.
//
// StopAt(ctx, 0) stops at the next border of a target transaction, wherever that is. A stop at a
// position takes over from it: one that wants to stop at a position that is yet to be found stops
// at 0, finds the position, stops there, and then releases the first stop.
func (a *Applier) StopAt(ctx context.Context, lsn change.LSN) (release func(), err error) {
	return a.gate.stopAt(ctx, lsn)
}

// Run applies until ctx is done, whose cause it returns, or until an error that no retry mends: a
// *RowError, one that wraps ErrSchemaChanged, or one of the event store. Lost connections are made
// again. It may be called again after it has returned.
func (a *Applier) Run(ctx context.Context) error {
	a.gate.update(func(s *state) { s.ended = nil })
	err := a.run(ctx)
	a.gate.update(func(s *state) { s.ended, s.writing, s.standing = err, 0, 0 })
	return err
}

func (a *Applier) run(ctx context.Context) error {
	retry := backoff.Timer{Min: 100 * time.Millisecond, Max: 15 * time.Second}
	for {
		err := a.session(ctx, retry.Reset)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !retryable(err) {
			return fmt.Errorf("apply to %s: %w", a.cfg.DSN, err)
		}
		a.troubled(ctx, err)
		if f := a.cfg.Events.Disconnected; f != nil {
			f(err)
		}
		if err := retry.Wait(ctx); err != nil {
			return err
		}
	}
}

// session applies over one session until it fails; it calls progress after each commit.
func (a *Applier) session(ctx context.Context, progress func()) error {
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close(ctx)
	g, ctx := errgroup.WithContext(ctx)
	watching, stop := context.WithCancel(ctx)
	g.Go(func() error {
		defer stop()
		return a.applyOver(ctx, s, func() {
			a.trouble.Over()
			progress()
		})
	})
	g.Go(func() error {
		if err := a.watch(watching, s); watching.Err() == nil {
			return err
		}
		return nil
	})
	return g.Wait()
}

// applyOver applies over a session until it fails.
func (a *Applier) applyOver(ctx context.Context, lead *session, progress func()) error {
	if err := a.setUp(ctx, lead); err != nil {
		return err
	}
	conn := lead.conn
	targets, err := loadTargets(ctx, conn, a.cfg.Mappings)
	if err != nil {
		return err
	}
	held, err := readBases(ctx, conn, a.cfg.Link, a.cfg.Mappings)
	if err != nil {
		return err
	}
	at, err := startProgress(ctx, conn, a.cfg.Link, a.cfg.Start)
	if err != nil {
		return err
	}
	a.read.Store(uint64(min(at.lsn, a.log.Head()))) // where a reader begins
	a.gate.update(func(s *state) {
		s.applied, s.writing, s.standing = at.lsn, 0, 0
		if at.signal != "" && !slices.Contains(s.signals, at.signal) {
			s.signals = append(s.signals, at.signal)
		}
	})

	if at.lsn >= a.log.Head() {
		a.trouble.Over() // and nothing will be written that could tell
	}
	reader := a.log.Read(at.lsn)
	defer func() { _ = reader.Close() }() // it holds nothing
	pins, err := reader.Pins()
	if err != nil {
		return err
	}
	w := &writer{session: lead, link: a.cfg.Link, at: at.lsn, sourceWins: a.cfg.OnConflict == SourceWins}
	if err := a.countDecided(ctx, w); err != nil {
		return err
	}
	if a.cfg.Touch {
		w.touch = a.log.Touch
	}
	crew, err := a.hire(ctx, lead.fires)
	if err != nil {
		return err
	}
	defer crew.dismiss(ctx)
	chunks, batches := make(chan eventstore.Chunk, 2), newHandover()
	g, ctx := errgroup.WithContext(ctx)
	defer lead.interrupt(ctx)()
	l := newLane(a, w, crew, batches, progress)
	g.Go(func() error { return a.fetch(ctx, reader, chunks) })
	g.Go(func() error { return newCollector(a, at, held, targets, batches).run(ctx, pins, chunks) })
	g.Go(func() error { return l.run(ctx) })
	g.Go(func() error { return l.hear(ctx) })
	crew.run(ctx, a, g, lead)
	return g.Wait()
}

// countDecided begins with the decisions that earlier sessions have recorded.
func (a *Applier) countDecided(ctx context.Context, w *writer) error {
	if !w.sourceWins {
		return nil
	}
	decided, err := installConflicts(ctx, w.conn, w.link)
	if err != nil {
		return err
	}
	a.gate.update(func(s *state) { s.stats.Decided = decided })
	return nil
}

// fetch passes on the chunks of the log. The batches keep parts of them.
func (a *Applier) fetch(ctx context.Context, reader logReader, chunks chan<- eventstore.Chunk) error {
	for {
		c, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case chunks <- c:
		}
		a.read.Store(uint64(reader.Position()))
	}
}

// writeBefore writes the transactions of a batch before the one that holds the refused row, so that
// the applier stops right in front of that one. It returns why it stops.
func (a *Applier) writeBefore(ctx context.Context, w *writer, b *batch, why error) error {
	refused, ok := errors.AsType[*RowError](why)
	if !ok {
		return why
	}
	n := slices.IndexFunc(b.txns, func(t txn) bool { return t.end == refused.End })
	if n <= 0 {
		return why
	}
	before, _ := b.cut(n)
	if err := w.rollback(ctx); err != nil {
		return err
	}
	if err := w.write(ctx, before, false); err != nil {
		return err
	}
	a.committed(ctx, w, before)
	return why
}

// committed makes known what was committed.
func (a *Applier) committed(ctx context.Context, w *writer, b *batch) {
	rows := len(b.ops) + w.rows
	a.gate.update(func(s *state) {
		if s.applied = w.at; s.writing <= w.at {
			s.writing = 0
		}
		for _, t := range b.txns {
			s.signals = append(s.signals, t.signals...)
		}
		if n := len(s.signals); n > keptSignals {
			s.signals = slices.Delete(s.signals, 0, n-keptSignals)
		}
		s.stats.Transactions += int64(len(b.txns))
		s.stats.Rows += int64(rows)
		s.stats.Batches++
		if w.replayed {
			s.stats.Replayed++
		}
		if w.parallel {
			s.stats.Parallel++
		}
		s.stats.Decided += int64(w.decided)
		s.stats.LastCommit = b.txns[len(b.txns)-1].at
	})
	if w.decided > 0 {
		a.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "source wins: rows of the destination were overruled, see ficus.conflicts",
			slog.String("link", a.cfg.Link), slog.Int("rows", w.decided), slog.String("end", w.at.String()))
	}
	if f := a.cfg.Events.Committed; f != nil {
		f(Commit{Transactions: len(b.txns), Rows: rows, Replayed: w.replayed, Parallel: w.parallel, Decided: w.decided, End: w.at})
	}
	w.tally = tally{}
}
