package link

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/source"
	"github.com/ficus-migrate/ficus/transform"
)

// bucket holds one record per link, under its name.
const bucket = "links"

// trimEvery is how often applied transactions are removed from the event store. A range delete
// costs a little, whatever its size, so it is done seldom.
const trimEvery = 10 * time.Second

// ErrNotPrepared says that a link has no slot to follow yet.
var ErrNotPrepared = errors.New("link is not prepared")

// Config holds what a Link needs. Fields without a stated default are required.
type Config struct {
	Name     string // see the package comment; also names the slot
	From, To pg.DSN
	Mappings []transform.Mapping
	Store    *eventstore.Store

	// Full names origin tables that get REPLICA IDENTITY FULL while the link exists.
	Full []schema.Name
	// InsertOnly names origin tables of which only inserts are published.
	InsertOnly []schema.Name

	// Ack says what lets the origin forget WAL; a prepared link keeps to what it was prepared with.
	// Default source.AckStored.
	Ack source.AckPolicy
	// Streaming says whether the origin sends large transactions before they commit. Default
	// source.StreamingOn.
	Streaming source.Streaming
	// MaxRows and MaxBytes bound what is applied in one transaction of the destination; see
	// [apply.Config].
	MaxRows, MaxBytes int
	// Workers is over how many sessions a backlog is written at a time; see [apply.Config].
	Workers int
	// AnswerTimeout is how long the destination may be silent, and during a copy both sides; see
	// [apply.Config] and [snapshot.Config]. Default 5 min.
	AnswerTimeout time.Duration
	// Failover makes the slot one that standbys of the origin keep, from PostgreSQL 17 on. Default: where
	// the origin has synchronized_standby_slots set, since somebody wants it there.
	Failover *bool
	// MaxSourceWAL is how much WAL the origin may keep for the slot, in bytes. Default: no limit of ours.
	MaxSourceWAL int64
	// OnMaxSourceWAL says what is done when it keeps more. Default WALAlarm.
	OnMaxSourceWAL WALAnswer
	// Alarm is told once each time that a limit on WAL is crossed. It must not block. Default: the log alone.
	Alarm func(warning string)
	// OnConflict says what happens with a row that the destination refuses because its own rows are
	// not the origin's. Default apply.Stop.
	OnConflict apply.OnConflict
	// Pace is asked before each part of a copy, and waits while the copy should stand back. Default: never.
	Pace func(context.Context) error
	// Touch records the keys of changed rows, for delta proofs.
	Touch bool
	// LockTimeout bounds how long the application may wait behind a change of replica identity.
	// Default 200 ms.
	LockTimeout time.Duration
	// Guard is called first in each transaction of a copy at the destination; see [snapshot.Config].
	Guard func(context.Context, pgx.Tx) error
	// Enlist is called with each other session that changes something, at the origin or the destination,
	// before it does: an error says that another process has taken the link over. Default: nobody is asked.
	EnlistFrom, EnlistTo func(context.Context, *pgconn.PgConn) error
	// Log receives what an operator may want to know. Default: nothing.
	Log *slog.Logger
}

// A Link is one origin feeding one destination.
type Link struct {
	cfg    Config
	origin *pgxpool.Pool // one session, for Lag and what watches over WAL
	wal    walGuard

	trimEvery time.Duration // the constant; tests do not last as long

	recording sync.Mutex // serializes changes of the record in identityBucket

	mu struct {
		sync.Mutex
		stream *eventstore.Stream
		parts  *parts // nil until prepared
	}
}

// parts are the engines of a prepared link; a new preparation makes new ones.
type parts struct {
	record   record
	reader   *source.Reader
	applier  *apply.Applier
	attached time.Time
}

// record is what a link remembers between runs.
type record struct {
	Start      change.LSN `json:"start"`       // the destination holds everything up to here
	AfterEpoch int64      `json:"after_epoch"` // ignore everything before this epoch shows
	// AckApplied is the acknowledgement policy that the link was prepared with. It keeps to it: a
	// slot that was once acknowledged as stored is no base for Adopt.
	AckApplied bool `json:"ack_applied"`
}

// New returns a Link that touches no database yet. Close it when done.
func New(ctx context.Context, cfg Config) (*Link, error) {
	cfg.LockTimeout = cmp.Or(cfg.LockTimeout, 200*time.Millisecond)
	cfg.AnswerTimeout = cmp.Or(cfg.AnswerTimeout, 5*time.Minute)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	for _, enlist := range []*func(context.Context, *pgconn.PgConn) error{&cfg.EnlistFrom, &cfg.EnlistTo} {
		if *enlist == nil {
			*enlist = func(context.Context, *pgconn.PgConn) error { return nil }
		}
	}
	if cfg.Ack == source.AckApplied && cfg.OnMaxSourceWAL == WALPauseCopy {
		return nil, hint.Wrap(fmt.Errorf("link %s: pausing the copy does not let WAL go that is kept until the copy is done", cfg.Name),
			"choose follow.ack: stored, or alarm or drop-slot for follow.on_max_source_wal")
	}
	stream, err := cfg.Store.Stream(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", cfg.Name, err)
	}
	value, ok, err := cfg.Store.Bucket(bucket).Get(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("link %s: read its record: %w", cfg.Name, err)
	}
	l := &Link{cfg: cfg, trimEvery: trimEvery}
	l.mu.stream = stream
	if ok {
		var r record
		if err := json.Unmarshal(value, &r); err != nil {
			return nil, fmt.Errorf("link %s: read its record: %w", cfg.Name, err)
		}
		if err := l.attach(r); err != nil {
			return nil, err
		}
	}
	if l.origin, err = cfg.From.Pool(ctx, "lag", 1); err != nil {
		return nil, err
	}
	return l, nil
}

// Name returns the link's name.
func (l *Link) Name() string { return l.cfg.Name }

// Close ends the session that Lag measures over.
func (l *Link) Close() { l.origin.Close() }

// attach builds the engines for a prepared link.
func (l *Link) attach(r record) error {
	p, err := l.assemble(r)
	if err != nil {
		return fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.parts = p
	return nil
}

func (l *Link) assemble(r record) (*parts, error) {
	p := &parts{record: r, attached: time.Now()}
	publications := []string{l.cfg.Name}
	if len(l.cfg.InsertOnly) > 0 {
		publications = append(publications, source.InsertPublication(l.cfg.Name))
	}
	ack := source.AckStored
	if r.AckApplied {
		ack = source.AckApplied
	}
	reading := source.Config{
		DSN: l.cfg.From, Slot: l.cfg.Name, Publications: publications, Stream: l.Stream(), Start: r.Start,
		Ack: ack, Streaming: l.cfg.Streaming, Log: l.cfg.Log,
		Enlist:         l.cfg.EnlistFrom,
		ReceiveTimeout: min(l.cfg.AnswerTimeout, time.Minute),
		Applied:        func() change.LSN { return p.applier.Applied() },
	}
	err := l.guardOrigin(&reading)
	if err != nil {
		return nil, err
	}
	if p.reader, err = source.New(reading); err != nil {
		return nil, err
	}
	p.applier, err = apply.New(apply.Config{
		DSN: l.cfg.To, Link: l.cfg.Name, Mappings: l.cfg.Mappings, Stream: l.Stream(), Start: r.Start,
		AfterEpoch: r.AfterEpoch, OnConflict: l.cfg.OnConflict, MaxRows: l.cfg.MaxRows, MaxBytes: l.cfg.MaxBytes, Workers: l.cfg.Workers, Touch: l.cfg.Touch, Log: l.cfg.Log,
		Received: func() change.LSN { return p.reader.Status().Received },
		Check:    l.guardDestination, AnswerTimeout: l.cfg.AnswerTimeout,
	})
	return p, err
}

// attached returns the engines, or ErrNotPrepared.
func (l *Link) attached() (*parts, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.parts == nil {
		return nil, fmt.Errorf("link %s: %w", l.cfg.Name, ErrNotPrepared)
	}
	return l.mu.parts, nil
}

// Run implements [migrate.Link]: it receives and applies until ctx is done.
func (l *Link) Run(ctx context.Context) error {
	p, err := l.attached()
	if err != nil {
		return err
	}
	err = l.underBudget(ctx, func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return p.reader.Run(ctx) })
		g.Go(func() error { return p.applier.Run(ctx) })
		g.Go(func() error { return l.trim(ctx, p) })
		return g.Wait()
	})
	if err != nil {
		return fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}
	return nil
}

// Receive stores what the origin sends and applies nothing, until ctx is done: while the
// destination is being built, so that the origin need not keep its WAL.
func (l *Link) Receive(ctx context.Context) error {
	p, err := l.attached()
	if err != nil {
		return err
	}
	if err := l.underBudget(ctx, p.reader.Run); err != nil {
		return fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}
	return nil
}

// trim forgets stored transactions that the destination holds.
func (l *Link) trim(ctx context.Context, p *parts) error {
	tick := time.NewTicker(l.trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			if err := l.Stream().Trim(p.applier.Done()); err != nil {
				return fmt.Errorf("trim the event store: %w", err)
			}
		}
	}
}

// Lag says how far a link's destination is behind its origin.
type Lag struct {
	Bytes    int64         // WAL flushed on the origin and not yet applied
	Time     time.Duration // age of the last applied commit while something is outstanding, else 0
	Applied  change.LSN    // end of the last applied transaction
	Rows     int64         // row changes applied since this process attached the link
	Retained int64         // WAL that the slot keeps on the origin, in bytes
	Room     int64         // WAL that the origin may still write before it gives the slot up; -1: no limit
	Decided  int64         // rows that OnConflict decided, all that are recorded
}

// Lag measures now, over a session of its own.
func (l *Link) Lag(ctx context.Context) (Lag, error) {
	p, err := l.attached()
	if err != nil {
		return Lag{}, err
	}
	session, err := l.origin.Acquire(ctx)
	if err != nil {
		return Lag{}, fmt.Errorf("link %s: %w", l.cfg.Name, l.cfg.From.Redact(err))
	}
	defer session.Release()
	conn := session.Conn()
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&text); err != nil {
		return Lag{}, fmt.Errorf("link %s: read the origin's position: %w", l.cfg.Name, err)
	}
	end, err := change.ParseLSN(text)
	if err != nil {
		return Lag{}, err
	}
	slot, err := source.SlotState(ctx, conn, l.cfg.Name)
	if err != nil {
		return Lag{}, fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}

	stats := p.applier.Stats()
	lag := Lag{Applied: p.applier.Applied(), Rows: stats.Rows, Retained: slot.RetainedBytes, Room: max(-1, slot.SafeWALBytes), Decided: stats.Decided}
	at := lag.Applied
	if at >= l.Stream().Head() { // nothing stored is waiting: what was received is as good as applied
		at = max(at, p.reader.Status().Received)
	} else {
		newest := stats.LastCommit
		if newest.IsZero() { // nothing was applied since this process began
			newest = p.attached
		}
		lag.Time = time.Since(newest)
	}
	lag.Bytes = max(0, int64(end)-int64(at))
	return lag, nil
}

// Passed says how far the destination shows what the origin has written: the end of the last applied
// transaction, or what was received when nothing that was received waits. 0 before the link is prepared.
func (l *Link) Passed() change.LSN {
	p, err := l.attached()
	if err != nil {
		return 0
	}
	received := p.reader.Status().Received // before the head: all of it lies at or before that
	at := p.applier.Applied()
	if at >= l.Stream().Head() {
		at = max(at, received)
	}
	return at
}

// WaitSignal implements [migrate.Link].
func (l *Link) WaitSignal(ctx context.Context, nonce string) error {
	p, err := l.attached()
	if err != nil {
		return err
	}
	return p.applier.WaitSignal(ctx, nonce)
}

// Wait returns once everything up to lsn is applied and committed at the destination.
func (l *Link) Wait(ctx context.Context, lsn change.LSN) error {
	p, err := l.attached()
	if err != nil {
		return err
	}
	return p.applier.Wait(ctx, lsn)
}

// StopAt lets the destination stand exactly at lsn until release is called; see
// [apply.Applier.StopAt].
func (l *Link) StopAt(ctx context.Context, lsn change.LSN) (release func(), err error) {
	p, err := l.attached()
	if err != nil {
		return nil, err
	}
	return p.applier.StopAt(ctx, lsn)
}

// Applied returns the end of the last transaction that the destination holds, 0 before the link is
// prepared.
func (l *Link) Applied() change.LSN {
	p, err := l.attached()
	if err != nil {
		return 0
	}
	return p.applier.Applied()
}

// Stream returns the link's stored stream, for those who look into it.
func (l *Link) Stream() *eventstore.Stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.stream
}

// remember makes the link prepared, durably.
func (l *Link) remember(r record) error {
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}
	if err := l.cfg.Store.Bucket(bucket).Put(l.cfg.Name, value); err != nil {
		return fmt.Errorf("link %s: write its record: %w", l.cfg.Name, err)
	}
	return l.attach(r)
}

// forget makes the link unprepared, durably.
func (l *Link) forget() error {
	l.mu.Lock()
	l.mu.parts = nil
	l.mu.Unlock()
	if err := l.forgetIdentities(); err != nil {
		return err
	}
	if err := l.cfg.Store.Bucket(loadBucket).Delete(l.cfg.Name); err != nil {
		return fmt.Errorf("link %s: forget where its copy began: %w", l.cfg.Name, err)
	}
	if err := l.cfg.Store.Bucket(bucket).Delete(l.cfg.Name); err != nil {
		return hint.Wrap(fmt.Errorf("link %s: remove its record: %w", l.cfg.Name, err), "check that the data directory is writable and has space")
	}
	return nil
}
