package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/sync/source"
	"github.com/ficus-migrate/ficus/transform"
)

const (
	// receivePoll is how often a copy looks whether the stream has come far enough.
	receivePoll = 50 * time.Millisecond
	// endPoll is how often it is looked whether transactions have ended, and tellEvery how often
	// those that have not are told.
	endPoll, tellEvery = 20 * time.Millisecond, 10 * time.Second
)

// changedSince returns what [snapshot.Config] wants as Changed: the keys of changed rows, from the
// stored stream, of which everything after from is there.
func (l *Link) changedSince(p *parts, b base, from change.LSN) func(context.Context, *transform.Mapping, change.Snapshot, func([][]byte) error) error {
	return func(ctx context.Context, m *transform.Mapping, since change.Snapshot, emit func([][]byte) error) error {
		if slices.Contains(l.cfg.InsertOnly, m.Source.Name) {
			return fmt.Errorf("%w: of this table only inserts are published", snapshot.ErrUnfollowable)
		}
		if err := l.awaitReceived(ctx, p, b.until); err != nil {
			return err
		}
		w := walk{base: b, since: since, m: m, emit: emit, decoder: change.NewDecoder()}
		return w.run(ctx, l.Stream(), from)
	}
}

// awaitReceived returns once everything that commits before until is stored.
func (l *Link) awaitReceived(ctx context.Context, p *parts, until change.LSN) error {
	if p.reader.Status().Received >= until {
		return nil
	}
	if _, err := l.mark(ctx); err != nil { // so that something comes behind until also where nobody writes
		return err
	}
	for p.reader.Status().Received < until {
		if err := backoff.Sleep(ctx, receivePoll); err != nil {
			return err
		}
	}
	return nil
}

// mark commits a message, and returns a position up to which the origin has its WAL on disk: behind all
// that was committed before. It waits for no standby: there may be one that is missed.
func (l *Link) mark(ctx context.Context) (at change.LSN, err error) {
	conn, err := l.cfg.From.Connect(ctx, "mark", pg.Setting("synchronous_commit", "local"))
	if err != nil {
		return 0, err
	}
	var text string
	_, err = conn.Exec(ctx, `SELECT pg_logical_emit_message(true, 'ficus', 'base')`)
	if err == nil {
		err = conn.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&text)
	}
	if err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))); err != nil {
		return 0, fmt.Errorf("mark the stream: %w", err)
	}
	return change.ParseLSN(text)
}

// A walk goes through stored transactions and emits the keys of the rows of one table that those
// changed which base sees and since does not.
type walk struct {
	base    base
	since   change.Snapshot
	m       *transform.Mapping
	emit    func([][]byte) error
	decoder *change.Decoder

	counts bool // the open transaction is one of those
	last   change.LSN
	rel    *change.Relation // that key was looked up in
	key    []int            // the columns of the mapping's key; nil where rel is another table
	values [][]byte
}

func (w *walk) run(ctx context.Context, stream *eventstore.Stream, from change.LSN) error {
	head := stream.Head()
	reader := stream.Read(from)
	defer func() { _ = reader.Close() }() // it holds nothing
	pins, err := reader.Pins()
	if err != nil {
		return err
	}
	for _, pin := range pins {
		if _, err := w.decoder.Decode(pin); err != nil {
			return fmt.Errorf("decode a pinned relation: %w", err)
		}
	}
	for w.last = from; w.last < min(head, w.base.until); {
		chunk, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		for rest := chunk.Data; len(rest) > 0; {
			var msg []byte
			if msg, rest, err = change.NextFrame(rest); err != nil {
				return fmt.Errorf("chunk that ends at %s: %w", chunk.End, err)
			}
			m, err := w.decoder.Decode(msg)
			if err != nil {
				return fmt.Errorf("chunk that ends at %s: %w", chunk.End, err)
			}
			if err := w.message(&m); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walk) message(m *change.Message) error {
	switch m.Kind {
	case change.KindBegin:
		w.counts = w.base.sees.Sees(m.Begin.XID) && !w.since.Sees(m.Begin.XID)
	case change.KindCommit:
		w.last = m.Commit.EndLSN
	case change.KindInsert, change.KindUpdate, change.KindDelete:
		if w.counts {
			return w.row(&m.Row)
		}
	case change.KindTruncate:
		if w.counts && slices.ContainsFunc(m.Truncate.Relations, w.ours) {
			return fmt.Errorf("%w: it was truncated", snapshot.ErrUnfollowable)
		}
	case change.KindRelation, change.KindOrigin, change.KindType, change.KindMessage, change.KindSubtransaction: // no rows
	}
	return nil
}

func (w *walk) ours(rel *change.Relation) bool {
	if w.m.Source.OID != 0 && rel.ID != 0 {
		return rel.ID == w.m.Source.OID // whatever it is called
	}
	return rel.Namespace == w.m.Source.Name.Schema && rel.Name == w.m.Source.Name.Name
}

// row emits the keys of the row as it was and as it became.
func (w *walk) row(r *change.Row) error {
	if err := w.bind(r.Rel); err != nil || w.key == nil {
		return err
	}
	if r.Op == change.Delete && r.Old == nil {
		return fmt.Errorf("%w: a row was deleted without saying which", snapshot.ErrUnfollowable)
	}
	for _, image := range []change.Tuple{r.Old, r.New} {
		if image == nil {
			continue
		}
		w.values = w.values[:0]
		for _, i := range w.key {
			v := image[i]
			if v.Kind == change.Unchanged && r.Old != nil {
				v = r.Old[i]
			}
			if v.Kind != change.Text {
				return fmt.Errorf("%w: a change left out a column of its row's key", snapshot.ErrUnfollowable)
			}
			w.values = append(w.values, v.Data)
		}
		if err := w.emit(w.values); err != nil {
			return err
		}
	}
	return nil
}

// bind looks the mapping's key up in a relation.
func (w *walk) bind(rel *change.Relation) error {
	if w.rel == rel {
		return nil
	}
	w.rel, w.key = rel, nil
	if !w.ours(rel) {
		return nil
	}
	key := make([]int, len(w.m.Key))
	for n, k := range w.m.Key {
		key[n] = slices.IndexFunc(rel.Columns, func(c change.Column) bool { return c.Name == k.Source })
		full := rel.ReplicaIdentity == byte(schema.IdentityFull)
		if key[n] < 0 || !full && !rel.Columns[key[n]].Identity {
			return fmt.Errorf("%w: key column %q is not in its replica identity", snapshot.ErrUnfollowable, k.Source)
		}
	}
	w.key = key
	return nil
}

// awaitCommits returns once every transaction whose commit may have been streamed by now is visible
// to others. Between the two it still counts as running (for long, where the commit waits for a
// synchronous standby), and a snapshot taken now would not see what the destination may have already.
// Transactions that are idle, or prepared while nobody commits such, have not come to their commit.
func (l *Link) awaitCommits(ctx context.Context) error {
	return l.awaitEnd(ctx, `
		SELECT x::text FROM pg_snapshot_xip(pg_current_snapshot()) x
		WHERE x::text::bigint < $1 AND NOT EXISTS (
			SELECT FROM pg_stat_activity a WHERE a.backend_xid::text::bigint = x::text::bigint % 4294967296
			AND (a.datname <> current_database() OR a.state LIKE 'idle%'))
		AND NOT EXISTS (
			SELECT FROM pg_prepared_xacts p WHERE p.transaction::text::bigint = x::text::bigint % 4294967296
			AND (p.database <> current_database() OR NOT EXISTS (
				SELECT FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid() AND a.datname = current_database() AND a.state IS DISTINCT FROM 'idle'
				AND (a.state IS NULL OR a.query ILIKE '%prepared%'))))`)
}

// awaitTransactions returns once every transaction of this database that had an id when it was called
// has ended.
func (l *Link) awaitTransactions(ctx context.Context) error {
	return l.awaitEnd(ctx, `
		SELECT x::text FROM pg_snapshot_xip(pg_current_snapshot()) x
		WHERE x::text::bigint < $1 AND NOT EXISTS (
			SELECT FROM pg_stat_activity a
			WHERE a.backend_xid::text::bigint = x::text::bigint % 4294967296 AND a.datname <> current_database())
		AND NOT EXISTS (
			SELECT FROM pg_prepared_xacts p
			WHERE p.transaction::text::bigint = x::text::bigint % 4294967296 AND p.database <> current_database())`)
}

// awaitEnd waits until a query finds no transaction any more that is older than the call.
func (l *Link) awaitEnd(ctx context.Context, query string) error {
	conn, err := l.cfg.From.Connect(ctx, "wait")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var before int64
	if err := conn.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint`).Scan(&before); err != nil {
		return err
	}
	for told := time.Now(); ; {
		rows, err := conn.Query(ctx, query, before)
		if err != nil {
			return err
		}
		running, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(running) == 0 {
			return err
		}
		if time.Since(told) >= tellEvery {
			told = time.Now()
			if err := l.tellRunning(ctx, conn, running); err != nil {
				return err
			}
		}
		if err := backoff.Sleep(ctx, endPoll); err != nil {
			return err
		}
	}
}

// tellRunning logs whom the link waits for.
func (l *Link) tellRunning(ctx context.Context, conn *pgx.Conn, xids []string) error {
	rows, err := conn.Query(ctx, `
		SELECT format('pid %s (%s, %s, %s)', a.pid, a.usename, coalesce(nullif(a.application_name, ''), '?'), coalesce(a.state, '?'))
		FROM pg_stat_activity a JOIN unnest($1::text[]) x ON a.backend_xid::text::bigint = x::bigint % 4294967296
		UNION ALL
		SELECT format('prepared transaction %L', p.gid)
		FROM pg_prepared_xacts p JOIN unnest($1::text[]) x ON p.transaction::text::bigint = x::bigint % 4294967296`, xids)
	if err != nil {
		return err
	}
	blockers, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "waiting for transactions to end",
		slog.String("link", l.cfg.Name), slog.String("blockers", strings.Join(blockers, ", ")))
	return nil
}

// published lists what the publications have to hold: names of tables, of their publications, and
// whether the table has to be published with whole rows.
func (l *Link) published() []any {
	var names, publications []string
	var whole []bool
	for _, t := range l.tables() {
		publication := l.cfg.Name
		if slices.Contains(l.cfg.InsertOnly, t) {
			publication = source.InsertPublication(publication)
		}
		names, publications = append(names, t.String()), append(publications, publication)
		whole = append(whole, slices.Contains(l.cfg.Full, t))
	}
	return []any{names, publications, whole}
}
