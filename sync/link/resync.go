package link

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/manifest"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/sync/source"
	"github.com/ficus-migrate/ficus/transform"
)

// Resync copies these source tables of a prepared link anew, under a snapshot of now, while the
// origin's changes are being stored. Run must not work meanwhile, so nothing is applied to any table
// until it is done; afterwards Run goes on where the destination stands, and passes over, for these
// tables, what the copy holds.
//
// It may be repeated after it was interrupted: what it had finished of a table that it had not
// completed is kept. Until all is complete, Run fails with [apply.ErrUnfinished].
func (l *Link) Resync(ctx context.Context, tables []schema.Name, cfg LoadConfig) (snapshot.Result, error) {
	p, err := l.attached()
	if err != nil {
		return snapshot.Result{}, err
	}
	mappings, err := l.mappingsOf(tables)
	if err != nil {
		return snapshot.Result{}, err
	}
	from, err := l.installManifest(ctx, p)
	if err != nil {
		return snapshot.Result{}, err
	}
	s, err := l.sessions(ctx)
	if err != nil {
		return snapshot.Result{}, err
	}
	defer s.end(ctx)
	if err := cfg.lock(ctx, l, s.keeper, tables); err != nil {
		return snapshot.Result{}, err
	}
	b, err := l.newBase(ctx, s.holder)
	if err != nil {
		return snapshot.Result{}, err
	}
	if err := l.touchAll(ctx, tables, b.until); err != nil {
		return snapshot.Result{}, err
	}
	result, err := l.copy(ctx, &cfg, p, b, s, snapshot.Config{
		Mappings: mappings, Alone: true,
		Keep:    func(t *manifest.Table) bool { return !t.Complete() },
		Changed: l.changedSince(p, b, from),
	})
	if err != nil {
		return snapshot.Result{}, fmt.Errorf("link %s: resync: %w", l.cfg.Name, err)
	}
	return result, nil
}

// mappingsOf returns the mappings of source tables.
func (l *Link) mappingsOf(tables []schema.Name) ([]transform.Mapping, error) {
	var mappings []transform.Mapping
	for _, t := range tables {
		i := slices.IndexFunc(l.cfg.Mappings, func(m transform.Mapping) bool { return m.Source.Name == t })
		if i < 0 {
			return nil, fmt.Errorf("link %s: table %s is not one that it moves", l.cfg.Name, t.Display())
		}
		mappings = append(mappings, l.cfg.Mappings[i])
	}
	return mappings, nil
}

// installManifest makes the manifest where it is missing, and returns where the destination stands.
func (l *Link) installManifest(ctx context.Context, p *parts) (at change.LSN, err error) {
	to, err := l.connectTo(ctx, "prepare")
	if err != nil {
		return 0, err
	}
	defer to.Close(context.WithoutCancel(ctx))
	if err := manifest.Install(ctx, to); err != nil {
		return 0, fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}
	at, _, err = apply.Progress(ctx, to, l.cfg.Name)
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}
	return max(at, p.record.Start), nil
}

// touchAll records every row of the tables as touched at a position. A proof from before it is then
// brought up to date by comparing all of them.
func (l *Link) touchAll(ctx context.Context, tables []schema.Name, at change.LSN) error {
	if !l.cfg.Touch {
		return nil
	}
	var touched []eventstore.Touched
	for _, t := range tables {
		touched = append(touched, eventstore.Touched{Table: apply.TouchedTable(t), At: at})
	}
	if err := errors.Join(l.Stream().Touches().Add(touched), l.Stream().Sync(ctx)); err != nil {
		return fmt.Errorf("link %s: record touched keys: %w", l.cfg.Name, err)
	}
	return nil
}

// Remap gives a link other mappings: for tables whose shape changed, or with more or fewer tables.
// One that is not prepared will be prepared with them. Run must not work meanwhile. It takes effect for as long as the Link lives: the caller
// remembers the mappings, and gives them to New when it makes the link again.
//
// Tables that the link did not move before have to be copied by Resync, and until then Run fails with
// [apply.ErrUnfinished]. Remap waits for every transaction that may have written to them before they
// were published, so that a snapshot taken after it misses nothing that is not in the stream: for as
// long as such a transaction is open.
func (l *Link) Remap(ctx context.Context, mappings []transform.Mapping, full, insertOnly []schema.Name) error {
	p, err := l.attached()
	if errors.Is(err, ErrNotPrepared) {
		l.cfg.Mappings, l.cfg.Full, l.cfg.InsertOnly = mappings, full, insertOnly
		return nil
	}
	if err != nil {
		return err
	}
	if len(l.cfg.InsertOnly) == 0 && len(insertOnly) > 0 {
		// The slot has to read WAL from before the second publication, which would then not exist.
		return hint.Wrap(fmt.Errorf("link %s: table %s cannot join it: the link has no publication for inserts alone", l.cfg.Name, insertOnly[0].Display()),
			"give the table a primary key or REPLICA IDENTITY FULL")
	}
	if err := l.require(ctx, p, mappings); err != nil {
		return err
	}
	l.cfg.Mappings, l.cfg.Full, l.cfg.InsertOnly = mappings, full, insertOnly
	if err := l.republish(ctx); err != nil {
		return fmt.Errorf("link %s: remap: %w", l.cfg.Name, err)
	}
	return l.attach(p.record)
}

// Renamed tells that tables have other names at the origin, and that what the destination remembers of
// them is under those names by now ([manifest.Rename]). Remap with such mappings follows.
func (l *Link) Renamed(names map[schema.Name]schema.Name) {
	mappings := slices.Clone(l.cfg.Mappings)
	for i := range mappings {
		if is, ok := names[mappings[i].Source.Name]; ok {
			mappings[i].Source.Name = is
		}
	}
	l.cfg.Mappings = mappings
}

// require notes at the destination which tables have to be copied before anything is applied.
func (l *Link) require(ctx context.Context, p *parts, mappings []transform.Mapping) error {
	if _, err := l.installManifest(ctx, p); err != nil {
		return err
	}
	to, err := l.connectTo(ctx, "prepare")
	if err != nil {
		return err
	}
	defer to.Close(context.WithoutCancel(ctx))
	moved := l.tables()
	for i := range mappings {
		name := mappings[i].Source.Name
		if slices.Contains(moved, name) {
			continue
		}
		if err := manifest.Require(ctx, to, l.cfg.Name, name); err != nil {
			return fmt.Errorf("link %s: %w", l.cfg.Name, err)
		}
	}
	return nil
}

// republish makes identities and publication those of the mappings, and waits until what was written
// before is over. A change is decoded by the publication of its own time, not by that of its commit.
func (l *Link) republish(ctx context.Context) error {
	from, err := l.connectFrom(ctx, "prepare")
	if err != nil {
		return err
	}
	defer from.Close(context.WithoutCancel(ctx))
	if err := l.setIdentities(ctx, from); err != nil {
		return fmt.Errorf("set replica identities: %w", err)
	}
	options := source.PublicationOptions{InsertOnly: l.cfg.InsertOnly}
	if err := source.EnsurePublication(ctx, from, l.cfg.Name, l.tables(), options); err != nil {
		return err
	}
	if err := l.awaitTransactions(ctx); err != nil {
		return fmt.Errorf("wait for transactions from before the publication: %w", err)
	}
	return nil
}
