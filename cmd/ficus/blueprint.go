package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/fence"
	"github.com/ficus-migrate/ficus/migrate/preflight"
	"github.com/ficus-migrate/ficus/playbooks"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/dump"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/sync/ddl"
	"github.com/ficus-migrate/ficus/transform"
)

// blueprints is the bucket that keeps one blueprint per migration.
const blueprints = "blueprints"

// A blueprint is what a playbook comes to once the source has been read. It is made once and kept
// with the migration: later runs must use the mappings that the data was moved by, and must not
// need a source that may be gone.
type blueprint struct {
	Playbook playbooks.Playbook `json:"playbook"` // without connection strings
	Recipe   string             `json:"recipe"`
	Forward  ddl.Plan           `json:"forward"`
	Backward ddl.Plan           `json:"backward"` // the way back: mappings and identities; none when Lossy says why
	Lossy    []string           `json:"lossy"`

	// SourceID and TargetID tell the two databases from others; "" where the role may not know.
	SourceID string `json:"source_id"`
	TargetID string `json:"target_id"`
}

// A job is a playbook with its two databases, before anything is opened for writing.
type job struct {
	playbook       *playbooks.Playbook
	recipe         string
	source, target pg.DSN
	params         map[string]string // that the playbook was filled in with
	plan           *blueprint
	amended        bool // rules are others than in the last run
	copyOnly       bool // nothing is followed afterwards
	rehearse       bool // the promotion turns back

	found struct { // by tools
		sync.Mutex
		dump.Tools
	}
}

// newJob checks the connection strings. It connects to nothing.
func newJob(p *playbooks.Playbook, recipe string) (*job, error) {
	j := &job{playbook: p, recipe: recipe}
	var err error
	if j.source, err = pg.Parse(p.Source); err != nil {
		return nil, &statusError{exitUsage, fmt.Errorf("source: %w", err)}
	}
	if j.target, err = pg.Parse(p.Target); err != nil {
		return nil, &statusError{exitUsage, fmt.Errorf("target: %w", err)}
	}
	if p.Router.Type == "gateway" {
		if _, err := nextPort(p.Router.Listen); err != nil {
			return nil, &statusError{exitUsage, hint.Wrap(err, "give --gateway-listen as host:port, for example 127.0.0.1:7432")}
		}
	}
	return j, nil
}

// read makes the blueprint from the source as it is now.
func (j *job) read(ctx context.Context) error {
	conn, err := j.source.Connect(ctx, "plan")
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))

	p := *j.playbook
	p.Source, p.Target = "", ""
	plan := &blueprint{Playbook: p, Recipe: j.recipe}
	if !j.copyOnly {
		plan.SourceID, plan.TargetID = databaseID(ctx, j.source), databaseID(ctx, j.target)
	}
	if _, err := conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	choice := j.choice()
	forward, err := ddl.Read(ctx, conn, choice.Filter)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if err := forward.Compile(ctx, conn, choice); err != nil {
		return &statusError{exitUsage, err}
	}
	plan.Forward = *forward
	plan.invert()
	j.plan = plan
	return nil
}

// invert derives the way back, or says why there is none.
func (b *blueprint) invert() {
	b.Backward, b.Lossy = b.Forward.Inverse(b.Playbook.Follow.NoReplicaIdentity)
}

// check runs preflight over the blueprint.
func (j *job) check(ctx context.Context) ([]migrate.Finding, error) {
	_, noTools := j.tools(ctx)
	led, err := j.checkRouter(ctx)
	if err != nil {
		return nil, err
	}
	findings, err := preflight.Run(ctx, preflight.Config{
		Migration: j.playbook.Name, Source: j.source, Target: j.target,
		Tables: j.plan.Forward.Tables, Mappings: j.plan.Forward.Mappings,
		Full: j.plan.Forward.Full, InsertOnly: j.plan.Forward.InsertOnly, Why: j.plan.Forward.Why,
		FailoverSlot: j.playbook.Follow.FailoverSlot != nil && *j.playbook.Follow.FailoverSlot,
		ForwardSlot:  j.linkName(migrate.Source), ReverseSlot: j.linkName(migrate.Target),
		CopiesSchema: j.playbook.CopiesSchema(), Follows: !j.copyOnly, Promotes: !j.copyOnly && j.playbook.Until != string(migrate.Following),
		EndsSessions: j.playbook.Promote.Blockers != "wait",
		Lossy:        j.plan.Lossy, Tools: noTools,
	})
	return append(findings, led...), err
}

// tools finds a pg_dump that reads the source, and looks no more once it has one.
func (j *job) tools(ctx context.Context) (dump.Tools, error) {
	j.found.Lock()
	defer j.found.Unlock()
	if j.found.Major > 0 {
		return j.found.Tools, nil
	}
	conn, err := j.source.Connect(ctx, "plan")
	if err != nil {
		return dump.Tools{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	info, err := inspect.Server(ctx, conn)
	if err != nil {
		return dump.Tools{}, err
	}
	j.found.Tools, err = dump.FindTools(ctx, info.Major)
	return j.found.Tools, err
}

// recall takes the blueprint of an earlier run from the store; ok is false when there is none.
func (j *job) recall(store *eventstore.Store) (ok bool, err error) {
	data, ok, err := store.Bucket(blueprints).Get(j.playbook.Name)
	if err != nil || !ok {
		return false, err
	}
	var b blueprint
	if err := json.Unmarshal(data, &b); err != nil {
		return false, fmt.Errorf("read the blueprint of %s: %w", j.playbook.Name, err)
	}
	next, err := b.amended(j.playbook)
	if err != nil {
		return false, err
	}
	j.plan, j.amended = &b, next != nil
	if next == nil {
		return true, nil
	}
	j.plan = next
	return true, j.keep(store)
}

// amended returns the blueprint with the rules of a changed playbook, nil when they are the same. What is
// moved, and how, stands once a migration has begun, but for the rules of the table whose DDL the link
// stands in front of. All else in a playbook may change while a migration is stopped.
func (b *blueprint) amended(p *playbooks.Playbook) (*blueprint, error) {
	same, err := sameData(&b.Playbook, p, nil)
	if err != nil || same {
		return nil, err
	}
	stopped := b.Forward.StoppedAt()
	if same, err = sameData(&b.Playbook, p, stopped); err != nil {
		return nil, err
	}
	if len(stopped) == 0 || !same {
		advice := "go on with select, schema, tables and follow as they were; or ficus cancel %s, and begin again under another --name"
		if len(stopped) > 0 {
			advice += "; only the rules of " + stopped[0].Display() + ", which the source's DDL concerns, may be others now"
		}
		return nil, hint.Wrap(fmt.Errorf("the playbook of %s says otherwise than when the migration began what is moved, or how", p.Name), advice, p.Name)
	}
	next := *b
	next.Playbook.Tables = p.Tables
	return &next, nil
}

// sameData reports whether two playbooks move the same data in the same way, rules for some tables aside.
func sameData(a, b *playbooks.Playbook, aside []schema.Name) (bool, error) {
	data := func(p *playbooks.Playbook) ([]byte, error) {
		tables := maps.Clone(p.Tables)
		maps.DeleteFunc(tables, func(key string, _ playbooks.Table) bool {
			name, err := schema.ParseName(key)
			return err == nil && slices.Contains(aside, name)
		})
		return json.Marshal([]any{p.Select, p.Schema, tables, p.Follow.NoReplicaIdentity})
	}
	was, err := data(a)
	if err != nil {
		return false, err
	}
	is, err := data(b)
	return bytes.Equal(was, is), err
}

// amend takes the rules of a playbook that was changed while the link stands, durably. It reports whether
// they are others.
func (e *engine) amend(store *eventstore.Store, text string, params map[string]string, actor string) (bool, error) {
	all := maps.Clone(e.job.params)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, params)
	p, err := playbooks.Parse("playbook", []byte(text), all)
	if err != nil {
		return false, err
	}
	name := e.job.playbook.Name
	if p.Name != name {
		return false, fmt.Errorf("it is the playbook of %s, not of %s", p.Name, name)
	}
	if s := e.migration.Status(); s.Phase != migrate.Failed {
		return false, hint.Wrap(fmt.Errorf("change the playbook of %s in phase %s: %w", name, s.Phase, migrate.ErrNotNow), "rules may change while the migration stands in front of DDL")
	}
	next, err := e.current().amended(p)
	if err != nil || next == nil {
		return false, err
	}
	if err := e.replace(store, next); err != nil {
		return false, err
	}
	e.migration.Tell(amendedText(next, actor))
	return true, nil
}

// amendedText tells that rules are others.
func amendedText(b *blueprint, actor string) string {
	text := "takes the rules of table " + b.Forward.StoppedAt()[0].Display() + " from the changed playbook"
	if actor != "" {
		text += " (" + actor + ")"
	}
	return text
}

// recognise refuses databases other than those that the migration began with. One that does not
// answer now is let pass: it is asked again by whoever needs it.
func (j *job) recognise(ctx context.Context) error {
	for _, side := range []struct {
		name string
		dsn  pg.DSN
		want string
	}{{"source", j.source, j.plan.SourceID}, {"target", j.target, j.plan.TargetID}} {
		if have := databaseID(ctx, side.dsn); have != "" && side.want != "" && have != side.want {
			return hint.Wrap(fmt.Errorf("the %s %s is not the database that migration %s began with", side.name, side.dsn, j.playbook.Name),
				"give its own connection string, or another --name for another migration")
		}
	}
	return nil
}

// databaseID returns what tells a database from every other, "" when that cannot be learned.
func databaseID(ctx context.Context, dsn pg.DSN) string {
	conn, err := dsn.Connect(ctx, "plan")
	if err != nil {
		return ""
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var id string
	err = conn.QueryRow(ctx, `SELECT (SELECT system_identifier FROM pg_control_system())::text || '/' || oid FROM pg_database WHERE datname = current_database()`).Scan(&id)
	if err != nil {
		return ""
	}
	return id
}

// keep stores the blueprint for later runs.
func (j *job) keep(store *eventstore.Store) error {
	data, err := json.Marshal(j.plan)
	if err != nil {
		return fmt.Errorf("keep the blueprint of %s: %w", j.playbook.Name, err)
	}
	return store.Bucket(blueprints).Put(j.playbook.Name, data)
}

// sequences lists the moved sequences by their names on the source, and where the rules give their
// columns another place the columns on the target that they feed.
func (b *blueprint) sequences() (names []schema.Name, serials map[schema.Name]fence.Serial) {
	serials = map[schema.Name]fence.Serial{}
	for _, s := range b.Forward.Sequences {
		names = append(names, s.Name)
		for i := range b.Forward.Mappings {
			m := &b.Forward.Mappings[i]
			if s.OwnerTable == nil || *s.OwnerTable != m.Source.Name || !m.Reshaped() {
				continue
			}
			if c := slices.IndexFunc(m.Columns, func(c transform.Column) bool { return c.Source == s.OwnerColumn }); c >= 0 {
				serials[s.Name] = fence.Serial{Table: m.Target, Column: m.Columns[c].Target}
			}
		}
	}
	return names, serials
}
