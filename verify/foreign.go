package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// A ForeignWrite is a change of a followed table on the target that the link did not make.
type ForeignWrite struct {
	Table schema.Name `json:"table"`
	Op    string      `json:"op"`            // insert, update, delete, truncate
	Key   string      `json:"key,omitempty"` // "id=5"
	At    time.Time   `json:"at"`            // of the commit
	LSN   change.LSN  `json:"lsn"`           // of the target
	XID   uint32      `json:"xid"`
	// Roles are those whose sessions had just done something when it was found: who wrote, if they
	// are still connected. WAL does not say.
	Roles []string `json:"roles,omitempty"`
	// More is how many further changes the same transaction made.
	More int64 `json:"more,omitempty"`
}

// ForeignConfig holds what Foreign needs. Fields without a stated default are required.
type ForeignConfig struct {
	Target pg.DSN
	Name   string        // of the migration; the publication is named after it
	Tables []schema.Name // of the target
	// Found is called for each transaction that the link did not make, with its first change.
	Found func(ForeignWrite)
	// Uncovered is called, once, with the tables that cannot be watched, and why. Default: nothing.
	Uncovered func(tables []schema.Name, why string)
	// Every is how often it looks. Default 1 s.
	Every time.Duration
	// Log receives what an operator may want to know. Default: nothing.
	Log *slog.Logger
}

// pollChanges is after how many changes one look ends, at the end of a transaction.
const pollChanges = 20_000

// Foreign watches the target's WAL for writes that the link did not make, until ctx is done. The link
// is known by what it writes: every transaction of Ficus that changes a followed table changes one in
// schema ficus, too. What happened before Foreign ran is not seen: its slot is temporary, lest the
// target keeps WAL for a process that is gone.
func Foreign(ctx context.Context, cfg ForeignConfig) error {
	cfg.Every = cmp.Or(cfg.Every, time.Second)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	conn, err := cfg.Target.Connect(ctx, "watch")
	if err != nil {
		return fmt.Errorf("watch the target: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = conn.Close(ctx) // its slot goes with it
	}()
	w := &foreign{cfg: cfg, conn: conn, dec: change.NewDecoder(), slot: fmt.Sprintf("ficus_watch_%08x", rand.Uint32()), publication: "ficus_" + cfg.Name + "_watch"}
	if err := w.begin(ctx); err != nil {
		return fmt.Errorf("watch the target: %w", err)
	}
	tick := time.NewTicker(cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if err := w.look(ctx); err != nil {
			return fmt.Errorf("watch the target: %w", err)
		}
	}
}

// A foreign is a watch over one target.
type foreign struct {
	cfg               ForeignConfig
	conn              *pgx.Conn
	dec               *change.Decoder
	slot, publication string

	tx   change.Begin
	ours bool
	rows int64         // changes of followed tables in this transaction
	one  *ForeignWrite // the first of them
}

// watchable finds the tables whose changes can be published without harm: an UPDATE of a published
// table without a replica identity fails.
const watchable = `
WITH t AS (SELECT n, n::regclass AS r FROM unnest($1::text[]) n WHERE to_regclass(n) IS NOT NULL)
SELECT n, NOT EXISTS (
	SELECT FROM (SELECT r AS relid UNION SELECT relid FROM pg_partition_tree(r)) l JOIN pg_class c ON c.oid = l.relid
	WHERE c.relkind = 'r' AND NOT (c.relreplident = 'f' OR c.relreplident = 'd' AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
		OR c.relreplident = 'i' AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident)))
FROM t`

func (w *foreign) begin(ctx context.Context) error {
	names := make([]string, len(w.cfg.Tables))
	byName := map[string]schema.Name{}
	for i, t := range w.cfg.Tables {
		names[i] = t.String()
		byName[names[i]] = t
	}
	rows, err := w.conn.Query(ctx, watchable, names)
	if err != nil {
		return err
	}
	var watched []string
	var left []schema.Name
	var name string
	var can bool
	if _, err := pgx.ForEachRow(rows, []any{&name, &can}, func() error {
		if can {
			watched = append(watched, name)
		} else {
			left = append(left, byName[name])
		}
		return nil
	}); err != nil {
		return err
	}
	if len(left) > 0 && w.cfg.Uncovered != nil {
		w.cfg.Uncovered(left, "they have no replica identity on the target")
	}
	ours, err := w.ownTables(ctx)
	if err != nil {
		return err
	}
	publication := schema.QuoteIdent(w.publication)
	for _, sql := range []string{
		"DROP PUBLICATION IF EXISTS " + publication,
		"CREATE PUBLICATION " + publication + " FOR TABLE " + strings.Join(append(watched, ours...), ", "),
		"SELECT pg_create_logical_replication_slot(" + schema.QuoteLiteral(w.slot) + ", 'pgoutput', true)",
	} {
		if _, err := w.conn.Exec(ctx, sql); err != nil {
			switch pg.Code(err) {
			case pg.CodeObjectNotReady:
				return hint.Wrap(err, "set wal_level = logical on the target and restart it")
			case pg.CodeInsufficientPrivilege:
				return hint.Wrap(err, "the target's role needs REPLICATION, and to own the tables")
			}
			return err
		}
	}
	return nil
}

// ownTables returns Ficus' own tables that mark its transactions.
func (w *foreign) ownTables(ctx context.Context) ([]string, error) {
	rows, err := w.conn.Query(ctx, `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'ficus' AND c.relkind = 'r' AND c.relpersistence = 'p' AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)`)
	if err != nil {
		return nil, err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(tables) == 0 {
		err = errors.New("no link writes to this database: it has no schema ficus")
	}
	return tables, err
}

// look reads what was committed since the last look, until nothing is left.
func (w *foreign) look(ctx context.Context) error {
	for {
		rows, err := w.conn.Query(ctx, `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, $2, 'proto_version', '1', 'publication_names', $3)`,
			w.slot, pollChanges, schema.QuoteIdent(w.publication))
		if err != nil {
			return err
		}
		var raw []byte
		n := 0
		var found []ForeignWrite
		if _, err := pgx.ForEachRow(rows, []any{&raw}, func() error {
			n++
			msg, err := w.dec.Decode(raw)
			if err != nil {
				return err
			}
			if f := w.take(msg); f != nil {
				found = append(found, *f)
			}
			return nil
		}); err != nil {
			return err
		}
		if err := w.tell(ctx, found); err != nil {
			return err
		}
		if n < pollChanges {
			return nil
		}
	}
}

// take takes one message and returns, at the end of a transaction that is not the link's, its first
// change.
func (w *foreign) take(m change.Message) *ForeignWrite {
	switch m.Kind {
	case change.KindBegin:
		w.tx, w.ours, w.rows, w.one = m.Begin, false, 0, nil
	case change.KindInsert, change.KindUpdate, change.KindDelete:
		w.change(m.Row.Rel, m.Row.Op.String(), func() string { return keyOf(&m.Row) })
	case change.KindTruncate:
		for _, rel := range m.Truncate.Relations {
			w.change(rel, "truncate", func() string { return "" })
		}
	case change.KindCommit:
		if w.one == nil || w.ours {
			return nil
		}
		w.one.At, w.one.LSN, w.one.More = m.Commit.CommitTime, m.Commit.EndLSN, w.rows-1
		return w.one
	case change.KindRelation, change.KindType, change.KindOrigin, change.KindMessage, change.KindSubtransaction: // the decoder's, or nobody's
	}
	return nil
}

func (w *foreign) change(rel *change.Relation, op string, key func() string) {
	if rel.Namespace == "ficus" {
		w.ours = true
		return
	}
	if w.rows++; w.one == nil {
		w.one = &ForeignWrite{Table: schema.Name{Schema: rel.Namespace, Name: rel.Name}, Op: op, Key: key(), XID: w.tx.XID}
	}
}

// keyOf returns the columns of the row's replica identity as people read them.
func keyOf(r *change.Row) string {
	tuple := r.New
	if r.Old != nil {
		tuple = r.Old
	}
	var parts []string
	for i, c := range r.Rel.Columns {
		if c.Identity && r.Rel.ReplicaIdentity != 'f' && i < len(tuple) {
			parts = append(parts, c.Name+"="+string(tuple[i].Data))
		}
	}
	return strings.Join(parts, ", ")
}

// tell tells what was found, and who may have done it.
func (w *foreign) tell(ctx context.Context, found []ForeignWrite) error {
	for _, f := range found {
		rows, err := w.conn.Query(ctx, `SELECT DISTINCT usename::text FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
			AND application_name NOT LIKE 'ficus/%' AND state_change >= $1::timestamptz - interval '50 ms' ORDER BY 1 LIMIT 5`, f.At)
		if err != nil {
			return err
		}
		if f.Roles, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return err
		}
		w.cfg.Found(f)
	}
	return nil
}

// String returns what people read.
func (f ForeignWrite) String() string {
	who := "a role that is not known"
	if len(f.Roles) > 0 {
		who = "perhaps by " + strings.Join(f.Roles, " or ")
	}
	more := ""
	if f.More > 0 {
		more = fmt.Sprintf(" and %d more changes", f.More)
	}
	return fmt.Sprintf("somebody else wrote to the target: %s of %s %s%s at %s, %s", f.Op, f.Table.Display(), f.Key, more, f.At.UTC().Format(time.RFC3339), who)
}
