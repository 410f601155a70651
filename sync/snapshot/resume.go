package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/manifest"
	"github.com/ficus-migrate/ficus/transform"
)

// ErrUnfollowable says that the stream does not tell which rows of a table changed.
var ErrUnfollowable = errors.New("the stream does not say which rows changed since")

// clearEvery is how often it is looked whether an earlier copy is in the way. One that has just been
// killed goes by itself.
const clearEvery = 2 * time.Second

// maxAge bounds how many transactions may lie between two bases: ids without epoch are compared.
const maxAge = 1 << 31

// resume finds out what stays of an interrupted copy, and brings tables that it left half copied
// to this run's base.
func (c *copier) resume(ctx context.Context, pulse *pg.Pulse, dst *pgx.Conn) error {
	if c.cfg.Link == "" {
		return nil
	}
	err := pgx.BeginFunc(ctx, dst, func(tx pgx.Tx) error {
		if err := c.guard(ctx, tx); err != nil {
			return err
		}
		return manifest.Claim(ctx, tx, c.cfg.Link)
	})
	if err != nil {
		return err
	}
	known, err := manifest.Read(ctx, dst, c.cfg.Link)
	if err != nil {
		return err
	}
	for _, t := range c.tables {
		kept := known[t.m.Source.Name]
		if kept == nil || len(kept.Done) == 0 || c.cfg.Keep == nil || !c.cfg.Keep(kept) {
			continue
		}
		why := c.unfit(t, kept)
		if why == "" && !kept.Complete() && kept.Base.String() != c.cfg.Base.String() {
			if why, err = c.rebase(ctx, pulse, dst, t, kept); err != nil {
				return fmt.Errorf("%s: bring finished parts up to date: %w", t.m.Source.Name.Display(), err)
			}
		}
		if why != "" {
			c.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "table is copied again from its beginning",
				slog.String("table", t.m.Source.Name.Display()), slog.String("why", why))
			continue
		}
		t.keep(kept)
	}
	return nil
}

// clearTheWay ends sessions of an earlier copy that dst waits for, until the returned function is
// called. Their network may have swallowed the news that nobody speaks to them any more, and what they
// write must not count.
func (c *copier) clearTheWay(ctx context.Context, dst *pgx.Conn) (done func()) {
	ctx, cancel := context.WithCancel(ctx)
	var clearing sync.WaitGroup
	clearing.Go(func() {
		for pid := dst.PgConn().PID(); backoff.Sleep(ctx, clearEvery) == nil; {
			if n, err := pg.Unblock(ctx, c.cfg.Target, pid, "copy"); err == nil && n > 0 { // else it is asked again
				c.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "sessions of an earlier copy were in the way: ended", slog.Int("sessions", n))
			}
		}
	})
	return func() {
		cancel()
		clearing.Wait()
	}
}

// keep counts what is there already.
func (t *table) keep(kept *manifest.Table) {
	t.kept, t.run = kept, kept.Run
	rows, bytes := kept.Copied()
	t.rows.Store(rows)
	t.bytes.Store(bytes)
}

// unfit says why the finished parts of a table cannot stay, "" when they can. A table all of whose
// parts are there stays under the base that it has, whatever became of it at the source: that is
// in the stream.
func (c *copier) unfit(t *table, kept *manifest.Table) string {
	switch {
	case kept.Shape != Shape(t.m):
		return "its rules or its columns changed"
	case kept.Complete():
		return ""
	case !immediateKey(t.m):
		return "it has no key that finds a changed row for sure"
	case t.src.whole || slices.ContainsFunc(t.src.pieces, func(p piece) bool { return !p.plain }):
		return "it is not read by pages"
	case !slices.Equal(kept.Relations, t.relations()):
		return "it was rewritten, truncated or partitioned otherwise meanwhile"
	case c.cfg.Base.Xmax()-kept.Base.Xmin() >= maxAge:
		return "too many transactions have ended since"
	case c.cfg.Changed == nil:
		return ErrUnfollowable.Error()
	}
	return ""
}

// immediateKey reports whether no two rows have the mapping's key at any moment, also not inside of
// a transaction, where a deferrable key may be violated.
func immediateKey(m *transform.Mapping) bool {
	key := make([]string, len(m.Key))
	for i, k := range m.Key {
		key[i] = k.Source
	}
	slices.Sort(key)
	return len(key) > 0 && slices.ContainsFunc(m.Source.Keys, func(k schema.Key) bool {
		return k.Immediate && slices.Equal(slices.Sorted(slices.Values(k.Columns)), key)
	})
}

// relations names what holds the table's rows at the source.
func (t *table) relations() []string {
	names := make([]string, len(t.src.pieces))
	for i, p := range t.src.pieces {
		names[i] = p.name.String() + " " + p.file
	}
	return names
}

// Shape returns a fingerprint of what a mapping does with rows. Copies of one shape fit together.
func Shape(m *transform.Mapping) string {
	type column struct {
		Name, Type string
	}
	s := struct {
		Source, Target schema.Name
		From           []column
		Columns        []transform.Column
		Where          string
		Key            []transform.KeyColumn
	}{Source: m.Source.Name, Target: m.Target, Columns: m.Columns, Where: m.Where, Key: m.Key}
	for _, c := range m.Source.Columns {
		if !c.Generated {
			s.From = append(s.From, column{c.Name, c.Type.SQL})
		}
	}
	text, err := json.Marshal(s)
	if err != nil { // there is nothing in it that could not be marshalled
		return err.Error()
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// record notes in the manifest how a table is cut.
func (c *copier) record(ctx context.Context, db manifest.DB, t *table, chunks int) error {
	switch {
	case c.cfg.Link == "":
		return nil
	case t.kept == nil:
		begun := &manifest.Table{
			Source: t.m.Source.Name, Base: c.cfg.Base, Until: c.cfg.Until, Shape: Shape(t.m),
			Relations: t.relations(), Parts: chunks,
		}
		err := manifest.Begin(ctx, db, c.cfg.Link, begun)
		t.run = begun.Run
		return err
	}
	return manifest.Recut(ctx, db, c.cfg.Link, t.kept, len(t.kept.Done)+chunks)
}
