package main

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/playbooks"
)

// requests is the bucket in which serve keeps how each of its migrations was started, connection
// strings included, so that a restart goes on with them. The data directory is private to its user.
const requests = "requests"

// A manager holds the migrations of one process. It is api.Service.
type manager struct {
	store *eventstore.Store
	dir   string
	log   *slog.Logger
	fixed bool // no migration can be added over the API

	run sync.WaitGroup // one per migration that runs
	ctx func() context.Context

	mu struct {
		sync.Mutex
		engines map[string]*engine
	}
}

// newManager returns a manager whose migrations run until ctx ends; wait for them with Wait.
func newManager(ctx context.Context, store *eventstore.Store, dir string, log *slog.Logger) *manager {
	m := &manager{store: store, dir: dir, log: log, ctx: func() context.Context { return ctx }}
	m.mu.engines = map[string]*engine{}
	return m
}

// generations is the bucket that counts, for each name, the migrations that are over.
const generations = "generations"

// present returns the journal of the newest migration of that name, how many there were before it,
// and where it stands.
func (m *manager) present(name string) (journal *eventstore.Bucket, before int, phase migrate.Phase, err error) {
	data, ok, err := m.store.Bucket(generations).Get(name)
	if err == nil && ok {
		before, err = strconv.Atoi(string(data))
	}
	if err != nil {
		return nil, 0, "", fmt.Errorf("read how many migrations were called %s: %w", name, err)
	}
	journal = m.store.Bucket(journalName(name, before))
	phase, err = migrate.PhaseOf(journal)
	return journal, before, phase, err
}

func journalName(name string, before int) string { return fmt.Sprintf("journal/%s/%d", name, before) }

// journal returns the bucket for the records of a migration of that name: of the one that is under
// way, or a new one when the last was completed or cancelled.
func (m *manager) journal(name string) (*eventstore.Bucket, error) {
	journal, before, phase, err := m.present(name)
	if err != nil || !phase.Final() {
		return journal, err
	}
	return m.store.Bucket(journalName(name, before+1)), m.next(name)
}

// next makes the next migration of that name begin with a journal of its own; the old one stays.
func (m *manager) next(name string) error {
	_, before, _, err := m.present(name)
	if err != nil {
		return err
	}
	// The blueprint first: without it the new migration reads the source again, with it and the old
	// journal nothing has happened yet.
	if err := m.store.Bucket(blueprints).Delete(name); err != nil {
		return err
	}
	return m.store.Bucket(generations).Put(name, []byte(strconv.Itoa(before+1)))
}

// add wires a migration's engine. events may be nil.
func (m *manager) add(ctx context.Context, j *job, yes bool, events func(migrate.Event)) (*engine, error) {
	name := j.playbook.Name
	m.mu.Lock()
	taken := m.mu.engines[name] != nil
	m.mu.Unlock()
	if taken {
		return nil, hint.Wrap(fmt.Errorf("%s: %w", name, api.ErrExists), "choose another --name, or drive the one that is there")
	}
	open := func() (*engine, error) {
		journal, err := m.journal(name)
		if err != nil {
			return nil, err
		}
		return newEngine(ctx, j, engineConfig{
			Store: m.store, Dir: m.dir, Yes: yes, Log: m.log.With(slog.String("migration", name)), Events: events, Journal: journal,
		})
	}
	e, err := open()
	if err != nil {
		return nil, err
	}
	if m.fixed && e.cleaned(ctx) { // what the journal tells is no longer in the databases
		m.log.LogAttrs(ctx, slog.LevelWarn, "the databases were cleaned up: the migration begins anew", slog.String("migration", name))
		e.Close()
		if err := m.next(name); err != nil {
			return nil, err
		}
		if e, err = open(); err != nil {
			return nil, err
		}
	}
	if err := e.adopt(ctx, m.store, m.log); err != nil {
		e.Close()
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.engines[name] = e
	return e, nil
}

func (m *manager) engine(name string) (*engine, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.mu.engines[name]; e != nil {
		return e, nil
	}
	names := make([]string, 0, len(m.mu.engines))
	for n := range m.mu.engines {
		names = append(names, n)
	}
	slices.Sort(names)
	return nil, hint.Suggest(fmt.Errorf("%s: %w", name, api.ErrNotFound), name, names)
}

// all returns the engines of every migration.
func (m *manager) all() []*engine {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.mu.engines))
}

// List implements [api.Service].
func (m *manager) List() []migrate.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]migrate.Status, 0, len(m.mu.engines))
	for _, e := range m.mu.engines {
		out = append(out, e.migration.Status())
	}
	slices.SortFunc(out, func(a, b migrate.Status) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Get implements [api.Service].
func (m *manager) Get(name string) (migrate.Status, error) {
	e, err := m.engine(name)
	if err != nil {
		return migrate.Status{}, err
	}
	return e.migration.Status(), nil
}

// Steps implements [api.Service].
func (m *manager) Steps(name string) ([]migrate.Step, error) {
	e, err := m.engine(name)
	if err != nil {
		return nil, err
	}
	return e.migration.Steps(), nil
}

// Events implements [api.Service].
func (m *manager) Events(ctx context.Context, name string, after int64) (iter.Seq2[migrate.Event, error], error) {
	e, err := m.engine(name)
	if err != nil {
		return nil, err
	}
	return e.migration.Subscribe(ctx, after), nil
}

// Do implements [api.Service].
func (m *manager) Do(ctx context.Context, name string, c migrate.Command) error {
	e, err := m.engine(name)
	if err != nil {
		return err
	}
	return e.migration.Do(ctx, c)
}

// Verify implements [api.Service].
func (m *manager) Verify(ctx context.Context, name string, r api.VerifyRequest) (c api.Comparison, err error) {
	e, err := m.engine(name)
	if err != nil {
		return api.Comparison{}, err
	}
	s := e.migration.Status()
	switch s.Phase {
	case migrate.Following, migrate.Verifying, migrate.ReadsSwitched, migrate.Promoted, migrate.RolledBack:
		if s.Running && !s.Paused {
			err = e.migration.Compare(func(progress func(done, total int64)) (err error) {
				c, err = e.verifier.compare(ctx, s.Owner, r, progress)
				return err
			})
			return c, err
		}
	case migrate.Pending, migrate.Preparing, migrate.Copying, migrate.CatchingUp, migrate.Promoting, migrate.RollingBack,
		migrate.Completed, migrate.Cancelled, migrate.Failed:
	}
	return api.Comparison{}, hint.Wrap(fmt.Errorf("verify %s in phase %s: %w", name, s.Phase, migrate.ErrNotNow),
		"it needs a running link: wait until %s follows, or give --source and --target to compare the databases as they stand", name)
}

// Evidence implements [api.Service].
func (m *manager) Evidence(_ context.Context, name string) ([]byte, error) {
	e, err := m.engine(name)
	if err != nil {
		return nil, err
	}
	report, err := e.verifier.newest()
	if err == nil && report == nil {
		err = hint.Wrap(fmt.Errorf("evidence of %s: nothing was compared yet: %w", name, api.ErrNotFound), "ficus verify %s", name)
	}
	return report, err
}

// Amend implements [api.Service].
func (m *manager) Amend(_ context.Context, name string, r api.AmendRequest) error {
	e, err := m.engine(name)
	if err != nil {
		return err
	}
	changed, err := e.amend(m.store, r.YAML, r.Params, r.Actor)
	if err != nil || !changed || m.fixed {
		return err
	}
	started, err := m.started(name) // which the next process begins with
	if err != nil {
		return err
	}
	started.Playbook, started.YAML = "", r.YAML
	maps.Copy(started.Params, r.Params)
	return m.keep(name, started)
}

// Start implements [api.Service].
func (m *manager) Start(ctx context.Context, r api.StartRequest) (migrate.Status, error) {
	if m.fixed {
		return migrate.Status{}, hint.Wrap(api.ErrFixed, "start ficus serve for many migrations")
	}
	e, err := m.begin(ctx, r)
	if err != nil {
		return migrate.Status{}, err
	}
	if err := m.keep(e.job.playbook.Name, r); err != nil {
		return migrate.Status{}, err
	}
	m.drive(e)
	return e.migration.Status(), nil
}

// begin reads a request and wires its migration.
func (m *manager) begin(ctx context.Context, r api.StartRequest) (*engine, error) {
	data, name := []byte(r.YAML), "playbook"
	if r.YAML == "" {
		var err error
		if data, err = playbooks.Recipe(r.Playbook); err != nil {
			return nil, err
		}
		name = r.Playbook
	}
	p, err := playbooks.Parse(name, data, r.Params)
	if err != nil {
		return nil, err
	}
	j, err := newJob(p, name)
	if err != nil {
		return nil, err
	}
	j.params = r.Params
	return m.add(ctx, j, r.Yes, nil)
}

// drive runs a migration beside the others until it is over or the process ends. A failed one waits
// for "resume".
func (m *manager) drive(e *engine) {
	m.run.Go(func() {
		defer e.Close()
		ctx, name := m.ctx(), e.job.playbook.Name
		failed := func(err error) {
			m.log.LogAttrs(ctx, slog.LevelError, "migration failed", slog.String("migration", name), slog.Any("err", err), slog.String("hint", hint.Of(err)))
		}
		for {
			err := e.Run(ctx, true, failed)
			if ctx.Err() != nil || err == nil {
				return
			}
			failed(err)
			if !resumed(ctx, e.migration) {
				return
			}
		}
	})
}

// resumed waits until somebody wants a failed migration to go on, or to end; false when ctx ends
// first. A command that came since the failure counts, however soon it came.
func resumed(ctx context.Context, m *migrate.Migration) bool {
	now, asked := m.Status().Seq, false
	for e, err := range m.Subscribe(ctx, 0) {
		if err != nil {
			return false
		}
		switch e.Type {
		case "phase":
			asked = false // what was asked before was answered by this
		case "command":
			asked = asked || slices.Contains([]migrate.Verb{migrate.Resume, migrate.Resync, migrate.Cancel, migrate.Complete}, migrate.Verb(e.Message))
		}
		if asked && e.Seq >= now {
			return true
		}
	}
	return false
}

// Wait returns when every migration has stopped.
func (m *manager) Wait() { m.run.Wait() }

// dumpDir is where a running load keeps the schema.
func dumpDir(dataDir string) string { return filepath.Join(dataDir, "tmp") }

var _ api.Service = (*manager)(nil)
