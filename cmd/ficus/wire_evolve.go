package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/transform"
)

// lockWait bounds how long readers of the target may wait behind a statement that follows DDL.
const lockWait = 500 * time.Millisecond

// A follower is the forward link as the workflow wants it (migrate.Link). It runs the link until the
// source's DDL stands in its way, follows what may be followed, and stops with what an operator can
// do about the rest.
//
// Where the stream shows a change, the link stands exactly in front of the first row of the new
// shape. What the stream does not show, a watcher finds in the catalog; it acts once everything that
// was committed before it looked is applied. In both cases no row of an older shape can come after.
type follower struct {
	linkAdapter

	engine *engine
	store  *eventstore.Store
	dir    string // for the schema of new tables
	log    *slog.Logger
	watch  watcher
}

// Run implements [migrate.Link].
func (f *follower) Run(ctx context.Context) error {
	for {
		err := f.finish(ctx)
		if err == nil {
			err = f.react(ctx, f.round(ctx))
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !errors.Is(err, errReshaped):
			return err
		}
	}
}

// round follows until the link stops, or the watcher has found something for which it must.
func (f *follower) round(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.linkAdapter.Run(ctx) })
	g.Go(func() error { return f.watch.run(ctx, f) })
	return g.Wait()
}

// react deals with why a round ended; nil means that the next one may begin.
func (f *follower) react(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d, ok := errors.AsType[*drift](err); ok {
		return f.drifted(ctx, d)
	}
	if change, ok := errors.AsType[*apply.SchemaChange](err); ok {
		return f.streamed(ctx, change)
	}
	if made, lookErr := f.madePartitions(ctx, err); made || lookErr != nil {
		return lookErr
	}
	return err
}

// streamed takes a change that the stream shows: the link stands in front of it.
func (f *follower) streamed(ctx context.Context, change *apply.SchemaChange) error {
	v, err := f.look(ctx)
	if err != nil {
		return err
	}
	known := f.engine.current().mapping(change.Table)
	if known == nil {
		return change
	}
	now, why := v.find(&known.Source)
	if why != "" {
		return f.refuse(change.Table, why, "rename it back at the source, or "+f.giveUp())
	}
	shape, err := f.shape(ctx, change)
	if err != nil {
		return err
	}
	return f.turn(ctx, v, known, evolve.Compare(&known.Source, shape, now), now)
}

// shape gives the columns that the stream sends their types' names.
func (f *follower) shape(ctx context.Context, change *apply.SchemaChange) ([]schema.Column, error) {
	conn, err := f.engine.job.source.Connect(ctx, "ddl")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	shape := make([]schema.Column, len(change.Relation.Columns))
	for i, c := range change.Relation.Columns {
		var kind *string
		shape[i] = schema.Column{Name: c.Name, Type: schema.Type{OID: c.TypeOID, Mod: c.TypeMod}, Toastable: true}
		err := conn.QueryRow(ctx, `SELECT pg_catalog.format_type($1, $2), (SELECT typtype::text FROM pg_catalog.pg_type WHERE oid = $1)`,
			c.TypeOID, c.TypeMod).Scan(&shape[i].Type.SQL, &kind)
		if err != nil {
			return nil, fmt.Errorf("read the types of table %s: %w", change.Table.Display(), err)
		}
		if kind != nil {
			shape[i].Type.Kind = (*kind)[0]
		}
	}
	return shape, nil
}

// turn makes one table follow what became of it at the source.
func (f *follower) turn(ctx context.Context, v *view, known *transform.Mapping, e *evolve.Evolution, now *evolve.Source) error {
	s, err := f.step(ctx, v, known, e)
	if err != nil {
		return f.refuse(known.Source.Name, describe(e)+": "+err.Error(), f.adviceRules())
	}
	told := f.engine.current().Told == s.mark
	automatic := f.safe() && e.Safe() && !s.lossy
	switch {
	case !automatic && !told:
		return f.stop(s)
	case !automatic && s.needs() == nil && e.Certain() && s.doubt == "" && !e.Ahead:
		return f.adopt(ctx, s, nil)
	case automatic && e.Certain() && s.doubt == "":
		return f.execute(ctx, s, nil)
	}
	first, mark := s.why, s.mark
	// The table is copied anew, as it is now: everything of an older shape will be passed over.
	if e = evolve.Compare(&known.Source, nil, now); e.Ahead {
		return fmt.Errorf("table %s: the catalog is ahead of itself", known.Source.Name.Display())
	}
	if s, err = f.step(ctx, v, known, e); err != nil {
		return f.refuse(known.Source.Name, describe(e)+": "+err.Error(), f.adviceRules())
	}
	again := []schema.Name{known.Source.Name}
	s.mark = mark
	if s.why == "" {
		s.why = first + ", and back again"
	}
	switch {
	case automatic && e.Safe():
		return f.execute(ctx, s, again)
	case !told, s.needs() != nil:
		return f.stop(s)
	}
	return f.adopt(ctx, s, again)
}

// A step is one evolution with what it takes.
type step struct {
	*evolve.Evolution

	known      *transform.Mapping
	why        string // the differences in words
	mark       string // tells the change from others: an operator was told of it
	next       *blueprint
	statements []evolve.Statement
	doubt      string
	lossy      bool // the way back would be lost
}

// needs returns the statements without which rows could not be written.
func (s *step) needs() []string {
	var sql []string
	for _, st := range s.statements {
		if st.Needed {
			sql = append(sql, st.SQL)
		}
	}
	return sql
}

// String names the table and what became of it.
func (s *step) String() string { return s.known.Source.Name.Display() + ": " + s.why }

func describe(e *evolve.Evolution) string { return words(e.Differences) }

func words(differences []evolve.Difference) string {
	var what []string
	for _, d := range differences {
		what = append(what, d.String())
	}
	return strings.Join(what, ", ")
}

// step compiles the mapping anew and asks the target's catalog what it lacks.
func (f *follower) step(ctx context.Context, v *view, known *transform.Mapping, e *evolve.Evolution) (*step, error) {
	m, err := f.compile(ctx, &e.Table)
	if err != nil {
		return nil, err
	}
	was := f.engine.current()
	next := was.replace(known.Source.Name, e.Table, *m)
	next.invert()
	next.measure(f.engine.job.playbook.Follow.NoReplicaIdentity)
	v.remember(next, e)
	rows := slices.DeleteFunc(slices.Clone(e.Differences), func(d evolve.Difference) bool { return passive(d.Kind) })
	s := &step{Evolution: e, known: known, why: describe(e), mark: known.Source.Name.Display() + ": " + words(rows), next: next, lossy: f.engine.reverse != nil && len(next.Lossy) > 0}
	target, err := f.target(ctx, m.Target)
	if err != nil {
		return nil, err
	}
	s.statements, s.doubt = e.Follow(m, target)
	return s, nil
}

// compile makes the mapping of one table by the playbook's rules.
func (f *follower) compile(ctx context.Context, t *schema.Table) (*transform.Mapping, error) {
	conn, err := f.engine.job.source.Connect(ctx, "ddl")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rules := map[string]transform.Rule{}
	for key, rule := range f.engine.job.playbook.Rules() {
		if name, err := schema.ParseName(key); err == nil && name == t.Name {
			rules[key] = rule
		}
	}
	mappings, err := transform.Compile([]schema.Table{*t}, rules, describer(ctx, conn))
	if err != nil {
		return nil, err
	}
	if len(mappings) != 1 {
		return nil, fmt.Errorf("table %s cannot be moved any more", t.Name.Display())
	}
	return &mappings[0], nil
}

// execute lets the target follow, in one transaction, and adopts the new mapping.
func (f *follower) execute(ctx context.Context, s *step, again []schema.Name) error {
	conn, err := f.engine.job.target.Connect(ctx, "ddl")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := runDDL(ctx, conn, s.statements); err != nil {
		return f.refuse(s.known.Source.Name, s.why+": the target refused to follow: "+err.Error(), f.adviceHand(s))
	}
	for _, st := range s.statements {
		f.tell("followed DDL: " + st.SQL)
	}
	return f.adopt(ctx, s, again)
}

// runDDL runs statements in one transaction that does not keep readers waiting for long.
func runDDL(ctx context.Context, conn *pgx.Conn, statements []evolve.Statement) error {
	retry := backoff.Timer{Min: 50 * time.Millisecond, Max: 2 * time.Second}
	for {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, lockWait.Milliseconds())); err != nil {
				return err
			}
			for _, st := range statements {
				if _, err := tx.Exec(ctx, st.SQL); err != nil {
					return fmt.Errorf("%s: %w", st.SQL, err)
				}
			}
			return nil
		})
		if pg.Code(err) != pg.CodeLockNotAvailable {
			return err
		}
		if err := retry.Wait(ctx); err != nil {
			return err
		}
	}
}

// adopt makes the new mapping the migration's.
func (f *follower) adopt(ctx context.Context, s *step, again []schema.Name) error {
	why := "table " + s.String()
	s.next.Told = ""
	s.next.Pending = &pending{Resync: again, Why: why}
	if err := f.engine.replace(f.store, s.next); err != nil {
		return err
	}
	f.tell("follows " + why)
	return f.finish(ctx)
}

// finish brings a change through that was written down, by this process or one that was killed.
func (f *follower) finish(ctx context.Context) error {
	plan := f.engine.current()
	p := plan.Pending
	if p == nil {
		return nil
	}
	// From here on nothing that was proved holds: rows may have changed without a trace in the stream.
	if err := f.engine.verifier.unprove(); err != nil {
		return err
	}
	f.engine.migration.Unprove(p.Why)
	f.engine.scope()
	if err := f.makeTables(ctx, p.New); err != nil {
		return err
	}
	if err := f.Remap(ctx, plan.Mappings, plan.Forward.Full, plan.Forward.InsertOnly); err != nil {
		return err
	}
	if f.engine.reverse != nil {
		if err := f.engine.reverse.Remap(ctx, plan.Reverse, plan.Backward.Full, plan.Backward.InsertOnly); err != nil {
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
	if err := f.engine.sides[migrate.Target].Arm(ctx); err != nil {
		return err
	}
	done := *plan
	done.Pending = nil
	// Once more, for comparisons that began while tables were being copied.
	return errors.Join(f.engine.verifier.unprove(), f.engine.replace(f.store, &done))
}

// copyAgain copies tables anew.
func (f *follower) copyAgain(ctx context.Context, p *pending) error {
	for _, t := range p.Resync {
		f.tell("copies table " + t.Display() + " anew: " + p.Why)
	}
	c := f.engine.job.playbook.Copy
	_, err := f.Resync(ctx, p.Resync, link.LoadConfig{
		Workers: c.Workers, ChunkBytes: int64(c.Chunk), Progress: func(snapshot.Table) {},
		Locked: func(ctx context.Context) error { return f.unchanged(ctx, p.Resync, f.safe()) },
	})
	return err
}

// asPlanned is unchanged for all tables, ahead of the first copy.
func (f *follower) asPlanned(ctx context.Context) error {
	source, _ := f.engine.current().targets()
	return f.unchanged(ctx, source, f.engine.job.playbook.CopiesSchema())
}

// unchanged makes sure, while nobody can change tables, that they have the shape that their mappings
// were made from: a column that came between the plan and the copy would be taken for one that came
// after the copy. Otherwise it adopts their shape and returns errReshaped: the copy is to begin again.
// ours says that the target's tables are Ficus's to alter.
func (f *follower) unchanged(ctx context.Context, tables []schema.Name, ours bool) error {
	v, err := f.look(ctx)
	if err != nil {
		return err
	}
	for _, t := range tables {
		known := f.engine.current().mapping(t)
		now, why := v.find(&known.Source)
		if why != "" {
			return f.refuse(t, why, "rename it back at the source, or "+f.giveUp())
		}
		if e := evolve.Compare(&known.Source, nil, now); shapeChanged(e) {
			return f.reshape(ctx, v, known, e, ours)
		}
	}
	return nil
}

// reshape adopts what became of a table ahead of its copy.
func (f *follower) reshape(ctx context.Context, v *view, known *transform.Mapping, e *evolve.Evolution, ours bool) error {
	s, err := f.step(ctx, v, known, e)
	switch {
	case err != nil:
		return f.refuse(known.Source.Name, describe(e)+": "+err.Error(), f.adviceRules())
	case s.needs() != nil && !ours:
		return f.stop(s)
	}
	conn, err := f.engine.job.target.Connect(ctx, "ddl")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := runDDL(ctx, conn, s.statements); err != nil {
		return f.refuse(known.Source.Name, describe(e)+": the target refused to follow: "+err.Error(), f.adviceHand(s))
	}
	if err := f.engine.replace(f.store, s.next); err != nil {
		return err
	}
	f.tell("takes table " + s.String() + ", ahead of its copy")
	return errReshaped
}

// errReshaped says that a table changed between the plan and the copy, and that the plan now knows.
var errReshaped = errors.New("a table changed at the source just before its copy")

// shapeChanged reports whether a difference concerns the values of rows.
func shapeChanged(e *evolve.Evolution) bool {
	return e.Find(func(d evolve.Difference) bool { return !passive(d.Kind) }) != nil
}

// passive reports whether a difference is one of definition alone.
func passive(k evolve.Kind) bool {
	return slices.Contains([]evolve.Kind{evolve.DefaultChanged, evolve.NullChanged, evolve.GeneratedNew}, k)
}

func (f *follower) safe() bool { return f.engine.job.playbook.Follow.DDL == "safe" }

// tell journals an event.
func (f *follower) tell(message string) {
	f.log.LogAttrs(context.Background(), slog.LevelInfo, "ddl", slog.String("what", message))
	f.engine.migration.Tell(message)
}

// stop refuses a step, and writes down that its operator was told: whoever runs the migration again
// has seen to it.
func (f *follower) stop(s *step) error {
	told := *f.engine.current()
	told.Told = s.mark
	if err := f.engine.replace(f.store, &told); err != nil {
		return err
	}
	what := s.why
	if s.lossy {
		what += ": " + strings.Join(s.next.Lossy, "; ")
	} else if d := s.Find(func(d evolve.Difference) bool { return !d.Safe }); d != nil {
		what += ": " + d.Why
	}
	return f.refuse(s.known.Source.Name, what, f.adviceHand(s))
}

// refuse is the error with which the link stops.
func (f *follower) refuse(table schema.Name, what, advice string) error {
	return hint.Wrap(fmt.Errorf("table %s: %w at the source: %s", table.Display(), apply.ErrSchemaChanged, what), "%s", advice)
}

// adviceHand says how an operator goes on after a change that Ficus does not follow.
func (f *follower) adviceHand(s *step) string {
	name := f.engine.job.playbook.Name
	again := "resume: ficus resume " + name + " (or the same command again)"
	var b strings.Builder
	if needs := s.needs(); needs != nil {
		b.WriteString("run on the target: " + strings.Join(needs, "; ") + "; then " + again)
	} else {
		b.WriteString("the target's table fits as it is, or alter it as you like, and " + again)
	}
	if !s.Certain() || s.Ahead {
		b.WriteString("; it copies the table anew")
	} else {
		b.WriteString("; it goes straight on, and copies the table anew only where rows may differ")
	}
	if s.Safe() && !f.safe() && !s.lossy {
		b.WriteString("; with follow.ddl: safe (--ddl safe) Ficus does this by itself")
	}
	return b.String()
}

func (f *follower) adviceRules() string {
	return "undo the change at the source, and resume; or " + f.giveUp()
}

func (f *follower) giveUp() string {
	return "give the migration up: ficus cancel " + f.engine.job.playbook.Name
}
