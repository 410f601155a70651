package ddl

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/transform"
)

// streamed takes a change that the stream shows: the link stands in front of it.
func (f *Follower) streamed(ctx context.Context, change *apply.SchemaChange) error {
	v, err := f.look(ctx)
	if err != nil {
		return err
	}
	known := f.cfg.Plans.Current().Mapping(change.Table)
	if known == nil {
		return change
	}
	if list := v.renamed(); len(list) > 0 {
		return f.rename(ctx, v, list)
	}
	if change.Renamed {
		return f.seen(ctx, change)
	}
	now, why := v.find(&known.Source)
	if why != "" {
		return f.lost(ctx, known, why)
	}
	shape, err := f.shape(ctx, change)
	if err != nil {
		return err
	}
	return f.turn(ctx, v, known, evolve.Compare(&known.Source, shape, now), now)
}

// shape gives the columns that the stream sends their types' names.
func (f *Follower) shape(ctx context.Context, change *apply.SchemaChange) ([]schema.Column, error) {
	conn, err := f.cfg.Origin.Connect(ctx, "ddl")
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
func (f *Follower) turn(ctx context.Context, v *view, known *transform.Mapping, e *evolve.Evolution, now *evolve.Source) error {
	s, err := f.step(ctx, v, known, e)
	if err != nil {
		return f.refuseRule(known.Source.Name, describe(e), markOfRows(known, e), err)
	}
	told := f.cfg.Plans.Current().Told == s.mark
	automatic := f.cfg.Safe && e.Safe() && len(s.loses) == 0
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
		return f.refuseRule(known.Source.Name, describe(e), mark, err)
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
	next       *Plan
	statements []evolve.Statement
	doubt      string
	loses      []string // what could not be carried back any more
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

// markOfRows tells a change of a table from others, as far as rows are concerned.
func markOfRows(known *transform.Mapping, e *evolve.Evolution) string {
	rows := slices.DeleteFunc(slices.Clone(e.Differences), func(d evolve.Difference) bool { return passive(d.Kind) })
	return known.Source.Name.Display() + ": " + words(rows)
}

// step compiles the mapping anew and asks the target's catalog what it lacks.
func (f *Follower) step(ctx context.Context, v *view, known *transform.Mapping, e *evolve.Evolution) (*step, error) {
	m, err := f.compile(ctx, &e.Table, known)
	if err != nil {
		return nil, err
	}
	if m.Target != known.Target {
		return nil, fmt.Errorf("its rule leads to %s now, and its rows are in %s", m.Target.Display(), known.Target.Display())
	}
	was := f.cfg.Plans.Current()
	next := was.replace(known.Source.Name, e.Table, *m)
	f.sort(next)
	v.remember(next, e)
	s := &step{Evolution: e, known: known, why: describe(e), mark: markOfRows(known, e), next: next, loses: f.cfg.Plans.Loses(next)}
	target, err := f.target(ctx, m.Target)
	if err != nil {
		return nil, err
	}
	s.statements, s.doubt = e.Follow(m, target)
	s.ruled(m, target)
	return s, nil
}

// ruled finds out what another rule than before takes: columns that the target lacks, and the copy of
// rows that the old rule made.
func (s *step) ruled(m *transform.Mapping, target *evolve.Target) {
	if reflect.DeepEqual(s.known.Rule, m.Rule) {
		return
	}
	was := map[string]transform.Column{}
	for _, c := range s.known.Columns {
		for _, d := range s.Differences {
			if d.Kind == evolve.Renamed && c.Source == d.Was {
				c.Source = d.Is
			}
		}
		was[c.Target] = c
	}
	same := s.known.Where == m.Where
	for _, c := range m.Columns {
		old, ok := was[c.Target]
		added := s.Find(func(d evolve.Difference) bool { return d.Kind == evolve.Added && d.Column == c.Source })
		same = same && (ok && old.Source == c.Source && old.Expr == c.Expr || added != nil)
		if target.Table.Column(c.Target) == nil && added == nil {
			sql := "ALTER TABLE " + m.Target.String() + " ADD COLUMN " + schema.QuoteIdent(c.Target) + " " + c.Type.SQL
			if !slices.ContainsFunc(s.statements, func(st evolve.Statement) bool { return strings.Contains(st.SQL, schema.QuoteIdent(c.Target)) }) {
				s.statements = append(s.statements, evolve.Statement{SQL: sql, Needed: true})
			}
		}
	}
	if !same && s.doubt == "" {
		s.doubt = "another rule makes other rows"
	}
}

// sort finds out which replica identities a new plan needs.
func (f *Follower) sort(next *Plan) {
	next.Identities = needs(next.Mappings, next.Tables, f.cfg.Choice().InsertsOnly)
}

// compile makes the mapping of one table by the playbook's rules; known is the one that it had, nil for a
// new table.
func (f *Follower) compile(ctx context.Context, t *schema.Table, known *transform.Mapping) (*transform.Mapping, error) {
	conn, err := f.cfg.Origin.Connect(ctx, "ddl")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rules := map[string]transform.Rule{}
	if rule := f.rule(t.Name, known); rule != nil {
		rules[t.Name.String()] = *rule
	}
	mappings, err := transform.Compile([]schema.Table{*t}, rules, describer(ctx, conn))
	if err != nil {
		return nil, err
	}
	if len(mappings) != 1 {
		return nil, fmt.Errorf("table %s cannot be moved any more", t.Name.Display())
	}
	if known != nil {
		mappings[0].Former = known.Former
	}
	return &mappings[0], nil
}

// rule returns what the playbook says about a table, nil for nothing. A table that was renamed keeps the
// rule that it had, under its first name or its present one; who comes to have its name has none.
func (f *Follower) rule(name schema.Name, known *transform.Mapping) *transform.Rule {
	plan := f.cfg.Plans.Current()
	names := []schema.Name{name}
	if known != nil && known.Original() != name {
		names = []schema.Name{known.Original(), name}
	}
	rules := f.cfg.Choice().Rules
	for _, n := range names {
		owner := slices.ContainsFunc(plan.Mappings, func(m transform.Mapping) bool {
			return m.Original() == n && (known == nil || m.Source.OID != known.Source.OID)
		})
		for key, rule := range rules {
			if k, err := schema.ParseName(key); err == nil && k == n && !owner {
				return &rule
			}
		}
	}
	return nil
}

// execute lets the target follow, in one transaction, and adopts the new mapping.
func (f *Follower) execute(ctx context.Context, s *step, again []schema.Name) error {
	conn, err := f.cfg.Destination.Connect(ctx, "ddl")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := runDDL(ctx, conn, s.statements); passing(err) {
		return err
	} else if err != nil {
		return f.refuse(s.known.Source.Name, s.why+": the target refused to follow: "+err.Error(), f.adviceHand(s))
	}
	for _, st := range s.statements {
		f.tell(ctx, "followed DDL: "+st.SQL)
	}
	return f.adopt(ctx, s, again)
}

// runDDL runs statements in one transaction that does not keep readers waiting for long.
func runDDL(ctx context.Context, conn *pgx.Conn, statements []evolve.Statement) error {
	return patiently(ctx, conn, func(tx pgx.Tx) error {
		for _, st := range statements {
			if _, err := tx.Exec(ctx, st.SQL); err != nil {
				return fmt.Errorf("%s: %w", st.SQL, err)
			}
		}
		return nil
	})
}

// patiently runs a transaction that gives up waiting for a lock before readers notice, and tries again.
func patiently(ctx context.Context, conn *pgx.Conn, do func(pgx.Tx) error) error {
	retry := backoff.Timer{Min: 50 * time.Millisecond, Max: 2 * time.Second}
	for {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, lockWait.Milliseconds())); err != nil {
				return err
			}
			return do(tx)
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
func (f *Follower) adopt(ctx context.Context, s *step, again []schema.Name) error {
	why := "table " + s.String()
	s.next.Told, s.next.Stopped = "", schema.Name{}
	s.next.Pending = &Pending{Resync: again, Why: why}
	if err := f.cfg.Plans.Replace(s.next); err != nil {
		return err
	}
	f.tell(ctx, "follows "+why)
	return f.finish(ctx)
}
