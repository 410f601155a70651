package main

import (
	"context"
	_ "embed" // for the playbook
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/examples/shop"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/playbooks"
)

//go:embed demo.yaml
var demoPlaybook []byte

// demoFlags are the flags of ficus demo.
type demoFlags struct {
	rows, writers, readers, rate int
	seconds                      int // how long to stay on each side
	sourceVersion, targetVersion int // majors; 0: the oldest, the newest
	keep                         bool
	listen, gatewayListen        string
}

func (f *demoFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.IntVar(&f.rows, "rows", 300_000, "rows that the shop starts with, all tables together")
	fs.IntVar(&f.writers, "writers", 8, "sessions that write")
	fs.IntVar(&f.readers, "readers", 4, "sessions that read, through the read-only door")
	fs.IntVar(&f.rate, "rate", 300, "transactions per second that the writers together try to make")
	fs.IntVar(&f.seconds, "seconds", 5, "how long to stay on each side before the next change of owner")
	fs.IntVar(&f.sourceVersion, "source-version", 0, "major version of the old cluster (default: the oldest that is found)")
	fs.IntVar(&f.targetVersion, "target-version", 0, "major version of the new cluster (default: the newest that is found)")
	fs.BoolVar(&f.keep, "keep", false, "leave everything running at the end, to play with, until Ctrl-C")
	fs.StringVar(&f.listen, "listen", "127.0.0.1:0", "address of API and dashboard; port 0 takes a free one")
	fs.StringVar(&f.gatewayListen, "gateway-listen", "127.0.0.1:0", "address of the gateway's read-write door; port 0 takes a free one")
}

// validate refuses what cannot work before anything is started.
func (f *demoFlags) validate() error {
	for _, n := range []struct {
		flag         string
		value, least int
	}{
		{"--rows", f.rows, 1000},
		{"--writers", f.writers, 1},
		{"--readers", f.readers, 1},
		{"--rate", f.rate, 1},
		{"--seconds", f.seconds, 0},
	} {
		if n.value < n.least {
			return fmt.Errorf("%s %d: want %d or more", n.flag, n.value, n.least)
		}
	}
	return nil
}

func (a *app) demoCommand() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch a live database move, come back and move again, on this machine",
		Long: `Start two PostgreSQL clusters on this machine, fill a shop, let clients work in it through the
gateway, and take it the whole way: copy, catch up, verify, switch reads, promote, roll back, promote
again. The clients write down every transaction that was acknowledged to them; at the end all of
them must be found, once, and both databases must be equal.

It uses the PostgreSQL programs that it finds (FICUS_PG_BIN, PATH, the distribution's folders), changes
nothing else on the machine, and removes everything at the end, also when it is interrupted.`,
		Example: `  ficus demo
  ficus demo --keep
  ficus demo --rows 2000000 --rate 1000 --source-version 15`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.validate(); err != nil {
				return usageError(cmd, err)
			}
			return a.demo(cmd.Context(), f)
		},
	}
	f.register(cmd)
	return cmd
}

// A demo is one run of the command.
type demo struct {
	app    *app
	flags  demoFlags
	log    *slog.Logger
	story  *story
	ground *demoGround
	ledger *shop.Ledger
	engine *engine
	server *api.Server
	began  time.Time
	held   bool  // the report was good
	left   error // what could not be stopped or removed
}

// warmUp is how long the clients work before the migration begins.
const warmUp = 2 * time.Second

// errDemoOver ends what runs beside the script.
var errDemoOver = errors.New("the demo is over")

func (a *app) demo(ctx context.Context, f demoFlags) (err error) {
	log, err := a.log()
	if err != nil {
		return err
	}
	d := &demo{app: a, flags: f, log: log, ledger: &shop.Ledger{}, began: time.Now()}
	d.story = newStory(a, d.live)
	defer d.story.close()
	d.story.title("Ficus demo: a live PostgreSQL database moves, comes back, and moves again")

	err = d.run(ctx)
	d.story.close()
	switch {
	case d.left != nil:
		return errors.Join(err, d.left)
	case ctx.Err() == nil:
		return err
	}
	if d.held {
		d.story.say("everything was stopped and removed")
		return ignoreEnd(ctx, err)
	}
	// Whatever went wrong after the interrupt did so because of it.
	d.story.say("interrupted: everything was stopped and removed")
	return &statusError{status: exitFailed}
}

// run makes the ground, and runs the script on it. Nothing is left when it returns.
func (d *demo) run(ctx context.Context) (err error) {
	d.ground = &demoGround{}
	defer func() { d.left = d.ground.close(context.WithoutCancel(ctx)) }()
	if err := d.prepare(ctx); err != nil {
		return err
	}
	d.app.dataDir = d.ground.dir
	store, err := d.app.openStore(d.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := d.open(ctx, store); err != nil {
		return err
	}
	defer d.engine.Close()

	// What runs beside the script ends after the script, so that clients can be sent home first.
	g, beside := errgroup.WithContext(context.WithoutCancel(ctx))
	beside, over := context.WithCancelCause(beside)
	g.Go(func() error { return ignoreEnd(beside, d.server.Run(beside)) })
	g.Go(func() error { return ignoreEnd(beside, d.engine.gateway.Run(beside)) })
	g.Go(func() error {
		defer over(errDemoOver)
		script, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		stop := context.AfterFunc(beside, func() { cancel(context.Cause(beside)) })
		defer stop()
		return d.script(script, beside, g)
	})
	return g.Wait()
}

// open wires the migration, as "ficus run" does.
func (d *demo) open(ctx context.Context, store *eventstore.Store) error {
	p, err := playbooks.Parse("demo.yaml", demoPlaybook, map[string]string{
		"source": d.ground.source.URL(demoDatabase), "target": d.ground.target.URL(demoDatabase), "listen": d.flags.gatewayListen,
	})
	if err != nil {
		return err
	}
	j, err := newJob(p, "demo")
	if err != nil {
		return err
	}
	m := newManager(ctx, store, dumpDir(d.ground.dir), d.log)
	m.fixed = true
	if d.engine, err = m.add(ctx, j, true, d.story.event); err != nil {
		return err
	}
	if d.server, err = d.app.newServer(m, serverFlags{listen: d.flags.listen}, d.log); err != nil {
		d.engine.Close()
		return err
	}
	return nil
}

// script is the story from the open doors to the report. What it starts in g ends with beside.
func (d *demo) script(ctx, beside context.Context, g *errgroup.Group) error {
	if err := d.doors(ctx); err != nil {
		return err
	}
	sendHome := d.work(ctx, beside, g)
	defer func() { sendHome() }()
	if err := backoff.Sleep(ctx, warmUp); err != nil {
		return err
	}
	g.Go(func() error { return ignoreEnd(beside, d.engine.migration.Run(beside)) })

	if err := d.travel(ctx); err != nil {
		return err
	}
	if err := backoff.Sleep(ctx, d.stay()); err != nil {
		return err
	}
	sendHome()
	report, err := d.prove(ctx)
	if err != nil {
		return err
	}
	d.story.report(report)
	if err := report.verdict(); err != nil || !d.flags.keep {
		return err
	}

	d.held = true
	sendHome = d.work(ctx, beside, g)
	d.invite()
	<-ctx.Done()
	sendHome()
	if err := d.farewell(context.WithoutCancel(ctx), report); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// doors waits until API and gateway take connections.
func (d *demo) doors(ctx context.Context) error {
	for _, open := range []<-chan struct{}{d.server.Listening(), d.engine.gateway.Listening()} {
		select {
		case <-open:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	d.story.fact("listening", map[string]any{
		"api": d.server.URL(), "gateway": d.engine.gateway.Addr().String(), "gateway_read_only": d.engine.gateway.ReadAddr().String(),
	}, "dashboard "+d.server.URL())
	return nil
}

// work lets clients in. The function that it returns sends them home and waits until they are gone.
func (d *demo) work(ctx, beside context.Context, g *errgroup.Group) (sendHome func()) {
	d.story.step("%d clients write and %d read, through the gateway, about %d transactions a second", d.flags.writers, d.flags.readers, d.flags.rate)
	load := shop.Load{
		Write: gatewayURL(d.engine.gateway.Addr()), Read: gatewayURL(d.engine.gateway.ReadAddr()),
		Writers: d.flags.writers, Readers: d.flags.readers, Rate: d.flags.rate, Ledger: d.ledger,
	}
	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan struct{})
	g.Go(func() error {
		defer close(gone)
		return load.Run(ctx)
	})
	d.story.working(true)
	return func() {
		cancel()
		select {
		case <-gone:
		case <-beside.Done():
		}
		d.story.working(false)
	}
}

// travel takes the shop there, back, and there again.
func (d *demo) travel(ctx context.Context) error {
	m := d.engine.migration
	if err := d.follow(ctx, migrate.Preparing, migrate.Copying, migrate.CatchingUp, migrate.Following, migrate.Verifying,
		migrate.ReadsSwitched, migrate.Promoting, migrate.Promoted); err != nil {
		return err
	}
	if err := backoff.Sleep(ctx, d.stay()); err != nil {
		return err
	}
	d.story.step("roll back: the same in the other direction, over the reverse link")
	if err := d.ask(ctx, migrate.Rollback); err != nil {
		return err
	}
	if err := m.Reached(ctx, migrate.RolledBack); err != nil {
		return err
	}
	d.changed()
	if err := backoff.Sleep(ctx, d.stay()); err != nil {
		return err
	}
	if err := d.ask(ctx, migrate.Promote); err != nil {
		return err
	}
	return d.follow(ctx, migrate.Verifying, migrate.ReadsSwitched, migrate.Promoting, migrate.Promoted)
}

// ask gives the migration a command.
func (d *demo) ask(ctx context.Context, v migrate.Verb) error {
	return d.engine.migration.Do(ctx, migrate.Command{Verb: v, Actor: "the demo"})
}

// follow says what each phase does, when it begins, and what came of the one before.
func (d *demo) follow(ctx context.Context, phases ...migrate.Phase) error {
	var before migrate.Phase
	for _, p := range phases {
		if err := d.engine.migration.Reached(ctx, p); err != nil {
			return err
		}
		if before != "" {
			d.cameOf(before)
		}
		before = p
		if does := d.does(p); does != "" {
			d.story.step("%s", does)
		}
	}
	d.changed()
	return nil
}

func (d *demo) stay() time.Duration { return time.Duration(d.flags.seconds) * time.Second }

// invite says what there is to play with.
func (d *demo) invite() {
	d.story.step("everything keeps running, the clients too. Ctrl-C stops and removes it all. Until then:")
	api := d.server.URL()
	for _, line := range []struct{ what, how string }{
		{"the dashboard", api},
		{"the shop, through the gateway", psql(gatewayURL(d.engine.gateway.Addr()))},
		{"reads only", psql(gatewayURL(d.engine.gateway.ReadAddr()))},
		{"the old cluster", psql(d.ground.source.URL(demoDatabase))},
		{"the new cluster", psql(d.ground.target.URL(demoDatabase))},
		{"go back, under load", "ficus rollback demo --wait --api " + api},
		{"go there again", "ficus promote demo --wait --api " + api},
		{"prove both equal", "ficus verify demo --api " + api},
		{"watch", "ficus watch demo --api " + api},
	} {
		d.story.fact("invitation", map[string]any{"what": line.what, "how": line.how}, fmt.Sprintf("%-30s %s", line.what, line.how))
	}
}

// psql is the command to type; the shell would take the parameters' question mark for a pattern.
func psql(url string) string {
	url, _, _ = strings.Cut(url, "?")
	return "psql " + url
}

// farewellTimeout bounds how long the last check keeps a person who pressed Ctrl-C.
const farewellTimeout = 10 * time.Second

// farewell looks for what was acknowledged since the report, whatever was done to the migration meanwhile.
func (d *demo) farewell(ctx context.Context, before *demoReport) error {
	ctx, cancel := context.WithTimeoutCause(ctx, farewellTimeout, errors.New("took too long"))
	defer cancel()
	owner := d.ground.source
	if d.engine.migration.Status().Owner == migrate.Target {
		owner = d.ground.target
	}
	r, err := d.ledger.Check(ctx, owner.URL(demoDatabase))
	if err != nil {
		return err
	}
	d.story.say(fmt.Sprintf("since the report: %s more transactions acknowledged; of all %s, %s are found",
		units.Count(r.Acknowledged-before.Transactions.Acknowledged), units.Count(r.Acknowledged), units.Count(r.Found)))
	if !r.OK() {
		return &statusError{exitFailed, fmt.Errorf("the ledger and the database differ: %+v", *r)}
	}
	return nil
}

// verdict is nil when everything holds that the demo is there to show.
func (r *demoReport) verdict() error {
	if len(r.Problems) == 0 {
		return nil
	}
	return &statusError{exitFailed, hint.Wrap(fmt.Errorf("the demo's proof does not hold: %s", joinWords(r.Problems)),
		"this must not happen: please report it with the output of ficus demo --json --log-level debug")}
}
