package verify

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
)

// writer says when the target's row was written, and whether by something that replicates, as the link
// does where its role may use a replication origin. The server knows that where
// track_commit_timestamp is on, and for as long as it keeps it. It does not know the role: a watch does
// (Foreign), while the session is there.
func (d *drill) writer(ctx context.Context, f *found, out *Difference) error {
	n := d.s.nodes[target]
	if f.kind == Missing || !d.t.keyed() || n.settings["track_commit_timestamp"] != "on" {
		return nil
	}
	conditions := make([]string, 0, len(f.key))
	for i := range f.key {
		k := &d.t.half[target].key[i]
		if v := f.key[i]; v == nil {
			conditions = append(conditions, schema.QuoteIdent(k.column)+" IS NULL")
		} else {
			conditions = append(conditions, k.is(schema.QuoteLiteral(*v)+"::text"))
		}
	}
	origin := "NULL::text"
	if n.major() >= 14 {
		origin = `(SELECT coalesce(o.roname, '') FROM pg_catalog.pg_xact_commit_timestamp_origin(r.ficus_xmin) AS x LEFT JOIN pg_catalog.pg_replication_origin AS o ON o.roident = x.roident)`
	}
	sql := fmt.Sprintf("SELECT %s, pg_catalog.pg_xact_commit_timestamp(r.ficus_xmin), %s FROM (SELECT %s, xmin AS ficus_xmin FROM %s WHERE %s) AS r",
		d.t.half[target].hash, origin, schema.QuoteIdents(d.t.m.TargetColumns()), d.t.m.TargetFrom(), strings.Join(conditions, " AND "))
	rows, err := d.conns[target].Query(ctx, sql, pgx.QueryExecModeExec)
	if err != nil {
		return n.failTable(d.t, "read when a row was written", err)
	}
	var hash int64
	var at *time.Time
	var by *string
	if _, err := pgx.ForEachRow(rows, []any{&hash, &at, &by}, func() error {
		if hash == f.hash[target] && at != nil { // the key may not be unique here
			out.Writer = writtenText(*at, by)
		}
		return nil
	}); err != nil {
		return n.failTable(d.t, "read when a row was written", err)
	}
	return nil
}

// writtenText is "at 2026-11-21T03:04:05Z, by no replication".
func writtenText(at time.Time, origin *string) string {
	text := "at " + at.UTC().Format(time.RFC3339Nano)
	switch {
	case origin == nil:
	case *origin == "":
		text += ", by no replication"
	default:
		text += ", by replication origin " + *origin
	}
	return text
}
