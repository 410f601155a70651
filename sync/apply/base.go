package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/manifest"
	"github.com/ficus-migrate/ficus/transform"
)

// ErrUnfinished says that the copy of a table is not complete, so that nothing may be applied yet.
var ErrUnfinished = errors.New("table is not copied completely")

// bases are the snapshots that tables were copied under, while the stream still has transactions
// that such a copy holds.
//
// A transaction is passed over, for one table, if the table's base sees it. Its position would not
// tell: a commit is in the WAL, and is streamed, before others see it, so a snapshot may not see a
// transaction whose commit lies before the position at which the snapshot was taken.
type bases struct {
	named map[schema.Name]base
	oids  map[uint32]base // the same tables: in the stream they may still have other names
	until change.LSN      // nothing that commits at or after it is seen by any
}

type base struct {
	sees  change.Snapshot
	until change.LSN
}

// readBases reads the bases of all mapped tables. Tables without one were not copied by this link,
// or were copied at the position where it starts.
func readBases(ctx context.Context, conn *pgx.Conn, link string, mappings []transform.Mapping) (bases, error) {
	known, err := manifest.Read(ctx, conn, link)
	if err != nil {
		return bases{}, err
	}
	b := bases{named: map[schema.Name]base{}, oids: map[uint32]base{}}
	var unfinished []string
	for i := range mappings {
		source := &mappings[i].Source
		t := known[source.Name]
		switch {
		case t == nil:
			continue
		case !t.Complete():
			unfinished = append(unfinished, source.Name.Display())
		}
		b.named[source.Name] = base{t.Base, t.Until}
		if source.OID != 0 {
			b.oids[source.OID] = b.named[source.Name]
		}
		b.until = max(b.until, t.Until)
	}
	if len(unfinished) > 0 {
		slices.Sort(unfinished)
		return bases{}, hint.Wrap(fmt.Errorf("%w: %s", ErrUnfinished, strings.Join(unfinished, ", ")),
			"a copy of these tables was begun and not finished: let it finish (ficus resume, or the command that began it), then apply")
	}
	return b, nil
}

// pass drops what no transaction from this commit on needs any more.
func (b *bases) pass(commit change.LSN) {
	if commit >= b.until {
		*b = bases{}
	}
}

// holds reports whether the copy of a table holds what a transaction did to it.
func (b *bases) holds(rel *change.Relation, commit change.LSN, xid uint32) bool {
	if b.until == 0 {
		return false
	}
	t, ok := b.oids[rel.ID]
	if !ok {
		t = b.named[schema.Name{Schema: rel.Namespace, Name: rel.Name}]
	}
	return commit < t.until && t.sees.Sees(xid)
}
