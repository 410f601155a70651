package link

// Bucket "loads" holds one record per link, under its name: where the copy began that is under way,
// or that the link was made by. It is written when the slot is there, and goes with the link.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/manifest"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/sync/source"
)

const loadBucket = "loads"

// keeperEvery is how often the session that locks the tables for a copy is asked whether it still does.
const keeperEvery = 10 * time.Second

// errLoaded is the cause with which a copy stops its reader.
var errLoaded = errors.New("the copy is done")

// LoadConfig says how to copy.
type LoadConfig struct {
	Workers    int   // see [snapshot.Config]
	ChunkBytes int64 // see [snapshot.Config]
	Progress   func(snapshot.Table)
	Resumed    func(done, all int)                           // see [snapshot.Config]
	Copied     func(ctx context.Context, target schema.Name) // see [snapshot.Config]
	Idle       func(ctx context.Context)                     // see [snapshot.Config]
	// Beside runs beside the copy; it may end later, and Load ends when both have. copied is closed
	// when all rows are there. From then on nothing of the origin is held any more, and its changes
	// are stored on. Default: nothing.
	Beside func(ctx context.Context, copied <-chan struct{}) error
	// Locked is called once nobody can change the definition of the tables any more, and before the
	// snapshot is taken: the place to make sure that they are what the mappings were made from. An
	// error ends the copy before it begins. Default: nothing is called.
	Locked func(context.Context) error
}

// lock keeps DDL off tables for as long as keeper lives.
func (c *LoadConfig) lock(ctx context.Context, l *Link, keeper *pgx.Conn, tables []schema.Name) error {
	if err := l.lockTables(ctx, keeper, tables); err != nil || c.Locked == nil {
		return err
	}
	return c.Locked(ctx)
}

// loading is what is remembered of a copy before the link is prepared by it.
type loading struct {
	Record record `json:"record"` // of the link that it will be
	Base   string `json:"base"`   // pg_snapshot of the slot
}

// A base is a snapshot of the origin that a session holds open, for copying under.
type base struct {
	exported string
	sees     change.Snapshot
	until    change.LSN // nothing that it sees commits at or after this, and all of it is on the origin's disk
}

// Load prepares the link at an exported snapshot and copies every row of that snapshot, while the
// changes that follow are being stored.
//
// A load that was interrupted goes on: the slot and what was stored are kept, tables that are
// complete stay as they are, and the others are completed under a new snapshot (see package
// snapshot). Where slot, publication, stored changes and manifest do not fit together any more, or
// the link has been followed since, it starts over whatever is there.
func (l *Link) Load(ctx context.Context, cfg LoadConfig) (snapshot.Result, error) {
	// Snapshots do not see through a TRUNCATE: a table truncated between the slot and its copy would
	// be copied empty, and the changes before the TRUNCATE would find no row. Like pg_dump, a session
	// holds ACCESS SHARE locks until the copy is done, so that TRUNCATE and DDL wait.
	// Source: PostgreSQL manual, "Concurrency Control", section "Caveats".
	s, err := l.sessions(ctx)
	if err != nil {
		return snapshot.Result{}, err
	}
	defer s.end(ctx)

	begun, p, err := l.interrupted(ctx)
	if err != nil {
		return snapshot.Result{}, err
	}
	var b base
	var rec record
	if begun != nil {
		rec = begun.Record
		if err := cfg.lock(ctx, l, s.keeper, l.tables()); err != nil {
			return snapshot.Result{}, err
		}
		b, err = l.newBase(ctx, s.holder)
	} else {
		rec, b, err = l.firstBase(ctx, &cfg, s)
		if err == nil {
			p, err = l.assemble(rec)
		}
	}
	if err != nil {
		return snapshot.Result{}, err
	}
	result, err := l.copy(ctx, &cfg, p, b, s, snapshot.Config{
		Mappings: l.cfg.Mappings,
		Keep:     func(*manifest.Table) bool { return true },
		Changed:  l.changedSince(p, b, rec.Start),
	})
	if err != nil {
		return snapshot.Result{}, fmt.Errorf("link %s: load: %w", l.cfg.Name, err)
	}
	return result, l.remember(rec)
}

// sessions are what a copy holds at the origin.
type sessions struct {
	keeper *pgx.Conn // locks its tables
	holder *pgx.Conn // holds its snapshot
}

func (l *Link) sessions(ctx context.Context) (s sessions, err error) {
	if s.keeper, err = l.cfg.From.Connect(ctx, "lock"); err != nil {
		return sessions{}, err
	}
	if s.holder, err = l.cfg.From.Connect(ctx, "snapshot"); err != nil {
		return sessions{}, errors.Join(err, s.keeper.Close(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// end lets go of what the sessions hold, in order or not. It may be called again.
func (s sessions) end(ctx context.Context) {
	_ = s.holder.Close(context.WithoutCancel(ctx))
	_ = s.keeper.Close(context.WithoutCancel(ctx))
}

// copy copies under b while p receives and s keeps the tables as they are.
func (l *Link) copy(ctx context.Context, load *LoadConfig, p *parts, b base, s sessions, cfg snapshot.Config) (result snapshot.Result, err error) {
	cfg.Source, cfg.Target, cfg.Log, cfg.Link = l.cfg.From, l.cfg.To, l.cfg.Log, l.cfg.Name
	cfg.Snapshot, cfg.Base, cfg.Until = b.exported, b.sees, b.until
	cfg.Gate, cfg.Guard, cfg.AnswerTimeout = l.gate, l.cfg.Guard, l.cfg.AnswerTimeout
	cfg.Workers, cfg.ChunkBytes = load.Workers, load.ChunkBytes
	cfg.Progress, cfg.Resumed, cfg.Copied, cfg.Idle = load.Progress, load.Resumed, load.Copied, load.Idle
	err = l.underBudget(ctx, func(ctx context.Context) error {
		result, err = l.copyAndReceive(ctx, load, p, s, cfg)
		return err
	})
	return result, err
}

// copyAndReceive runs the reader until the copy is done, and what runs beside it.
func (l *Link) copyAndReceive(ctx context.Context, load *LoadConfig, p *parts, s sessions, cfg snapshot.Config) (result snapshot.Result, err error) {
	g, ctx := errgroup.WithContext(ctx)
	readCtx, stopReading := context.WithCancelCause(ctx)
	defer stopReading(nil)
	g.Go(func() error {
		if err := p.reader.Run(readCtx); !errors.Is(err, errLoaded) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		defer stopReading(errLoaded)
		copied := make(chan struct{})
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() (err error) {
			if result, err = snapshot.Run(ctx, cfg); err == nil {
				close(copied)
			}
			return err
		})
		g.Go(func() error {
			defer s.end(ctx)
			return l.watchKeeper(ctx, s.keeper, copied)
		})
		if load.Beside != nil {
			g.Go(func() error { return load.Beside(ctx, copied) })
		}
		return g.Wait()
	})
	err = g.Wait()
	return result, err
}

// watchKeeper asks the session that locks the tables, now and then and once when they are copied,
// whether it still does. It also keeps a firewall from forgetting a connection that is idle for hours.
func (l *Link) watchKeeper(ctx context.Context, keeper *pgx.Conn, copied <-chan struct{}) error {
	tick := time.NewTicker(keeperEvery)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-copied:
			last = true
		case <-tick.C:
		}
		ask, cancel := context.WithTimeout(ctx, l.cfg.AnswerTimeout)
		_, err := keeper.Exec(ask, `SELECT`)
		cancel()
		if err != nil {
			return fmt.Errorf("keep the tables as they are during the copy: %w", err)
		}
	}
	return nil
}

// firstBase starts afresh: it makes the slot, and s.holder takes its snapshot over.
func (l *Link) firstBase(ctx context.Context, cfg *LoadConfig, s sessions) (rec record, b base, err error) {
	replication, snap, err := l.begin(ctx, func() error { return cfg.lock(ctx, l, s.keeper, l.tables()) })
	if err != nil {
		return record{}, base{}, err
	}
	// The slot's snapshot dies with the next command on its connection, and the reader needs the
	// slot at once: a second session imports the snapshot and exports it again.
	b.until = snap.LSN // the slot streams what the snapshot does not see, and nothing else
	b.exported, b.sees, err = export(ctx, s.holder, snap.Name)
	if err = errors.Join(err, replication.Close(context.WithoutCancel(ctx))); err != nil {
		return record{}, base{}, fmt.Errorf("link %s: hold the snapshot: %w", l.cfg.Name, err)
	}
	rec = record{Start: snap.LSN, AckApplied: l.cfg.Ack == source.AckApplied}
	value, err := json.Marshal(loading{Record: rec, Base: b.sees.String()})
	if err == nil {
		err = l.cfg.Store.Bucket(loadBucket).Put(l.cfg.Name, value)
	}
	if err != nil {
		return record{}, base{}, fmt.Errorf("link %s: remember where the copy began: %w", l.cfg.Name, err)
	}
	return rec, b, nil
}

// newBase takes a snapshot of now, which holder holds. Everything that the link has taken as applied
// is visible in it. What it sees is on disk, and the link remembers how far that is, before anything is
// copied under it: an origin that crashed or was replaced by its standby might have another past.
func (l *Link) newBase(ctx context.Context, holder *pgx.Conn) (b base, err error) {
	if err := l.awaitCommits(ctx); err != nil {
		return base{}, fmt.Errorf("link %s: wait for transactions that are about to end: %w", l.cfg.Name, err)
	}
	b.exported, b.sees, err = export(ctx, holder, "")
	if err == nil {
		b.until, err = l.mark(ctx)
	}
	if err != nil {
		return base{}, fmt.Errorf("link %s: take a snapshot: %w", l.cfg.Name, err)
	}
	return b, l.updateIdentities(func(ids *identities) { ids.Copied = max(ids.Copied, b.until) })
}

// export begins a transaction that holds a snapshot, that of the given name if there is one, and
// exports it. Source: PostgreSQL manual, "Snapshot Synchronization Functions".
func export(ctx context.Context, conn *pgx.Conn, name string) (exported string, sees change.Snapshot, err error) {
	sql := []string{`BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`}
	if name != "" {
		sql = append(sql, `SET TRANSACTION SNAPSHOT `+schema.QuoteLiteral(name))
	}
	for _, s := range sql {
		if _, err := conn.Exec(ctx, s); err != nil {
			return "", change.Snapshot{}, err
		}
	}
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_export_snapshot(), pg_current_snapshot()::text`).Scan(&exported, &text); err != nil {
		return "", change.Snapshot{}, err
	}
	if name != "" { // a slot's
		if err := pg.AwaitSnapshot(ctx, conn); err != nil {
			return "", change.Snapshot{}, err
		}
	}
	sees, err = change.ParseSnapshot(text)
	return exported, sees, err
}

// interrupted returns what an earlier load remembered, and engines for it, when it can go on from
// there; nil when a load has to begin.
func (l *Link) interrupted(ctx context.Context) (*loading, *parts, error) {
	value, ok, err := l.cfg.Store.Bucket(loadBucket).Get(l.cfg.Name)
	if err != nil || !ok {
		return nil, nil, err
	}
	var begun loading
	if err := json.Unmarshal(value, &begun); err != nil {
		return nil, nil, fmt.Errorf("link %s: read where the copy began: %w", l.cfg.Name, err)
	}
	p, err := l.assemble(begun.Record)
	if err != nil {
		return nil, nil, err
	}
	why, err := l.unfit(ctx, p)
	if err != nil {
		return nil, nil, fmt.Errorf("link %s: look for an interrupted copy: %w", l.cfg.Name, err)
	}
	if why != "" {
		l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "the interrupted copy cannot go on: everything is copied again",
			slog.String("link", l.cfg.Name), slog.String("why", why))
		return nil, nil, nil
	}
	return &begun, p, nil
}

// unfit says why an interrupted load cannot go on, "" when it can.
func (l *Link) unfit(ctx context.Context, p *parts) (why string, err error) {
	if err := p.reader.Check(ctx); lost(err) {
		return err.Error(), nil
	} else if err != nil {
		return "", err
	}
	to, err := l.cfg.To.Connect(ctx, "prepare")
	if err != nil {
		return "", err
	}
	defer to.Close(context.WithoutCancel(ctx))
	if _, followed, err := apply.Progress(ctx, to, l.cfg.Name); err != nil || followed {
		return "the link has been followed since", err
	}
	known, err := manifest.Read(ctx, to, l.cfg.Name)
	if err != nil {
		return "", err
	}
	if known == nil {
		return "there is no manifest of it at the destination", nil
	}
	from, err := l.cfg.From.Connect(ctx, "prepare")
	if err != nil {
		return "", err
	}
	defer from.Close(context.WithoutCancel(ctx))
	var missing *string
	err = from.QueryRow(ctx, `
		SELECT min(t.name) FROM unnest($1::text[], $2::text[], $3::bool[]) t(name, publication, whole)
		LEFT JOIN pg_class c ON c.oid = to_regclass(t.name)
		WHERE t.whole AND c.relreplident <> 'f' OR NOT EXISTS (
			SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = t.publication AND r.prrelid = c.oid)`,
		l.published()...).Scan(&missing)
	if err == nil && missing != nil {
		why = "table " + *missing + " was not published as it has to be"
	}
	return why, err
}

// lost reports whether an error means that the origin cannot send what is missing.
func lost(err error) bool {
	for _, target := range []error{source.ErrSlotGone, source.ErrSlotLost, source.ErrSlotAhead, source.ErrServerBehind, source.ErrPublicationGone, source.ErrOtherServer, source.ErrForked} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
