package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

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
	"github.com/ficus-migrate/ficus/transform"
)

// blueprints is the bucket that keeps one blueprint per migration.
const blueprints = "blueprints"

// A blueprint is what a playbook comes to once the source has been read. It is made once and kept
// with the migration: later runs must use the mappings that the data was moved by, and must not
// need a source that may be gone.
type blueprint struct {
	Playbook  playbooks.Playbook  `json:"playbook"` // without connection strings
	Recipe    string              `json:"recipe"`
	Tables    []schema.Table      `json:"tables"` // all that were selected, moved or not
	Mappings  []transform.Mapping `json:"mappings"`
	Reverse   []transform.Mapping `json:"reverse"` // empty when Lossy says why
	Lossy     []string            `json:"lossy"`
	Sequences []schema.Sequence   `json:"sequences"`

	Forward, Backward identities

	// Files and Indexes are what the source had when Tables were read: the file of each relation
	// that holds rows, by OID, and the definition of each index. By them DDL that the stream does
	// not carry is noticed.
	Files   map[uint32]uint32 `json:"files"`
	Indexes map[string]bool   `json:"indexes"`
	// Told is the change of the source that the migration stopped at last, and that its operator
	// was told of: whoever runs it again has seen to it.
	Told string `json:"told,omitempty"`
	// Pending is a change of the tables that is not yet through.
	Pending *pending `json:"pending,omitempty"`

	// SourceID and TargetID tell the two databases from others; "" where the role may not know.
	SourceID string `json:"source_id"`
	TargetID string `json:"target_id"`
}

// A pending change is written down before it begins, so that a process which is killed in the middle
// is followed by one that ends it. Every part of it may be repeated.
type pending struct {
	New    []schema.Name `json:"new,omitempty"`    // tables that came to be, and whose indexes are to be built
	Since  time.Time     `json:"since,omitzero"`   // by the target's clock: what was built of New was built later
	Resync []schema.Name `json:"resync,omitempty"` // tables that are copied anew
	Why    string        `json:"why"`
}

// identities are the tables of one link that need another replica identity than they have.
type identities struct {
	Full       []schema.Name          `json:"full"`
	InsertOnly []schema.Name          `json:"insert_only"`
	Why        map[schema.Name]string `json:"-"`
}

// A job is a playbook with its two databases, before anything is opened for writing.
type job struct {
	playbook       *playbooks.Playbook
	recipe         string
	source, target pg.DSN
	plan           *blueprint
	copyOnly       bool // nothing is followed afterwards
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
	plan := &blueprint{Playbook: p, Recipe: j.recipe, SourceID: databaseID(ctx, j.source), TargetID: databaseID(ctx, j.target)}
	filter := schema.Filter{Include: p.Select.Include, Exclude: p.Select.Exclude}
	// One snapshot: a table must not be written anew between its columns and its files.
	if _, err := conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if plan.Tables, err = inspect.Tables(ctx, conn, filter); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if plan.Sequences, err = inspect.Sequences(ctx, conn, filter); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if err := plan.remember(ctx, conn); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	plan.Mappings, err = transform.Compile(plan.Tables, p.Rules(), describer(ctx, conn))
	if err != nil {
		return &statusError{exitUsage, err}
	}
	plan.invert()
	plan.Forward = needs(plan.Mappings, plan.Tables, p.Follow.NoReplicaIdentity)
	plan.Backward = needs(plan.Reverse, plan.Tables, p.Follow.NoReplicaIdentity)
	j.plan = plan
	return nil
}

// remember reads Files and Indexes.
func (b *blueprint) remember(ctx context.Context, conn *pgx.Conn) error {
	var names []schema.Name
	for i := range b.Tables {
		if b.Tables[i].Parent == nil {
			names = append(names, b.Tables[i].Name)
		}
	}
	leaves, err := inspect.Leaves(ctx, conn, names)
	if err != nil {
		return err
	}
	b.Files = map[uint32]uint32{}
	for _, list := range leaves {
		for _, l := range list {
			b.Files[l.OID] = l.File
		}
	}
	indexes, err := inspect.Indexes(ctx, conn, names)
	if err != nil {
		return err
	}
	b.Indexes = map[string]bool{}
	for _, x := range indexes {
		b.Indexes[x.SQL] = true
	}
	return nil
}

// invert derives the reverse link's mappings, or says why there are none.
func (b *blueprint) invert() {
	b.Reverse, b.Lossy = nil, nil
	for i := range b.Mappings {
		inverse, err := b.Mappings[i].Inverse()
		if lossy, ok := errors.AsType[*transform.LossyError](err); ok {
			for _, reason := range lossy.Reasons {
				b.Lossy = append(b.Lossy, lossy.Table.Display()+": "+reason)
			}
			continue
		}
		b.Reverse = append(b.Reverse, inverse)
	}
	if len(b.Lossy) > 0 {
		b.Reverse = nil
	}
}

// needs sorts out which origin tables cannot be followed with the replica identity they have. tables
// holds their partitions: what a partition logs, and whether PostgreSQL lets the application update a
// published one at all, is decided by the partition's own identity.
func needs(mappings []transform.Mapping, tables []schema.Table, insertsOnly bool) identities {
	ids := identities{Why: map[schema.Name]string{}}
	for i := range mappings {
		m := &mappings[i]
		full, why := transform.NeedsFull(m)
		keyless := len(m.Source.IdentKey) == 0 && m.Source.Identity != schema.IdentityFull
		if !full && keyless {
			full, why = true, "it has no primary key that finds a row"
		}
		if odd := oddPartition(&m.Source, tables); odd != nil && !full {
			full, why, keyless = true, "its partition "+odd.Name.Display()+" has another replica identity", len(odd.IdentKey) == 0
		}
		switch {
		case !full || m.Source.Identity == schema.IdentityFull && oddPartition(&m.Source, tables) == nil:
		case keyless && insertsOnly:
			ids.InsertOnly = append(ids.InsertOnly, m.Source.Name)
			ids.Why[m.Source.Name] = why
		default:
			ids.Full = append(ids.Full, m.Source.Name)
			ids.Why[m.Source.Name] = why
		}
	}
	return ids
}

// oddPartition returns a partition of the table that does not log what the table's own replica
// identity says, or nil.
func oddPartition(root *schema.Table, tables []schema.Table) *schema.Table {
	if root.Kind != schema.Partitioned {
		return nil
	}
	key := slices.Sorted(slices.Values(root.IdentKey))
	for i := range tables {
		t := &tables[i]
		switch {
		case t.Parent == nil || *t.Parent != root.Name || t.Identity == schema.IdentityFull:
		case t.Kind == schema.Partitioned:
			below := *root
			below.Name = t.Name
			if odd := oddPartition(&below, tables); odd != nil {
				return odd
			}
		case root.Identity == schema.IdentityFull || !slices.Equal(slices.Sorted(slices.Values(t.IdentKey)), key):
			return t
		}
	}
	return nil
}

// check runs preflight over the blueprint.
func (j *job) check(ctx context.Context) ([]migrate.Finding, error) {
	_, noTools := j.tools(ctx)
	return preflight.Run(ctx, preflight.Config{
		Migration: j.playbook.Name, Source: j.source, Target: j.target,
		Tables: j.plan.Tables, Mappings: j.plan.Mappings,
		Full: j.plan.Forward.Full, InsertOnly: j.plan.Forward.InsertOnly, Why: j.plan.Forward.Why,
		FailoverSlot: j.playbook.Follow.FailoverSlot != nil && *j.playbook.Follow.FailoverSlot,
		ForwardSlot:  j.linkName(migrate.Source), ReverseSlot: j.linkName(migrate.Target),
		CopiesSchema: j.playbook.CopiesSchema(), Follows: !j.copyOnly, Promotes: !j.copyOnly && j.playbook.Until != string(migrate.Following),
		Lossy: j.plan.Lossy, Tools: noTools,
	})
}

// tools finds a pg_dump that reads the source.
func (j *job) tools(ctx context.Context) (dump.Tools, error) {
	conn, err := j.source.Connect(ctx, "plan")
	if err != nil {
		return dump.Tools{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	info, err := inspect.Server(ctx, conn)
	if err != nil {
		return dump.Tools{}, err
	}
	return dump.FindTools(ctx, info.Major)
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
	same, err := sameData(&b.Playbook, j.playbook)
	if err != nil {
		return false, err
	}
	if !same {
		return false, hint.Wrap(fmt.Errorf("the playbook of %s says otherwise than when the migration began what is moved, or how", j.playbook.Name),
			"go on with select, schema, tables and follow as they were; or ficus cancel %s, and begin again under another --name", j.playbook.Name)
	}
	j.plan = &b
	return true, nil
}

// sameData reports whether two playbooks move the same data in the same way. All else in them may change while a
// migration is stopped.
func sameData(a, b *playbooks.Playbook) (bool, error) {
	data := func(p *playbooks.Playbook) ([]byte, error) {
		return json.Marshal([]any{p.Select, p.Schema, p.Tables, p.Follow.NoReplicaIdentity})
	}
	was, err := data(a)
	if err != nil {
		return false, err
	}
	is, err := data(b)
	return bytes.Equal(was, is), err
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
	for _, s := range b.Sequences {
		names = append(names, s.Name)
		for i := range b.Mappings {
			m := &b.Mappings[i]
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

// targets lists the moved tables by their names on each side.
func (b *blueprint) targets() (source, target []schema.Name) {
	for i := range b.Mappings {
		source = append(source, b.Mappings[i].Source.Name)
		target = append(target, b.Mappings[i].Target)
	}
	return source, target
}
