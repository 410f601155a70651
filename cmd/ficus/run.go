package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

// stopPhases are the phases that --until takes.
func stopPhases() []string { return []string{"following", "verifying", "reads-switched", "promoted"} }

func (a *app) runCommand() *cobra.Command {
	var f playbookFlags
	var server serverFlags
	var yes, rehearse bool
	cmd := &cobra.Command{
		Use:   "run PLAYBOOK",
		Short: "Run a migration in the foreground",
		Long: `Run a migration: copy, catch up, verify, switch reads, promote. The application connects to the
gateway (--gateway-listen), which leads it to the database that owns the data at any moment.

The command stays after the promotion: it keeps the old database in step, so that "ficus rollback"
can go back, until "ficus complete", "ficus cancel" or an interrupt. Interrupted, at whatever
moment, the same command goes on where it was.

With --rehearse the promotion turns back right before the point of no return: clients wait as they would,
everything is taken back, and what it cost is printed. It then waits: "ficus promote" is the real thing.`,
		Example: `  ficus run upgrade --source postgresql://app@old/shop --target postgresql://app@new/shop
  ficus run schema-change -f shop.yaml
  ficus run cluster-move --source ... --target ... --until following`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			j, err := f.load(cmd, args)
			if err != nil {
				return err
			}
			if j.rehearse = rehearse; rehearse {
				j.playbook.Until = string(migrate.Promoted) // it goes no further by itself than the rehearsal
			}
			return a.runJob(cmd.Context(), j, yes, &server)
		},
	}
	f.register(cmd)
	server.register(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "take every manual gate as approved")
	cmd.Flags().BoolVar(&rehearse, "rehearse", false, "turn back right before the point of no return, and tell the stall")
	return cmd
}

// runJob drives one migration, and serves the API beside it unless flags are nil.
func (a *app) runJob(ctx context.Context, j *job, yes bool, flags *serverFlags) (err error) {
	log, err := a.log()
	if err != nil {
		return err
	}
	store, err := a.openStore(log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	var e *engine
	screen := a.newConsole(func() migrate.Status { return e.migration.Status() })
	defer screen.close()
	m := newManager(ctx, store, dumpDir(a.dataDir), log)
	m.fixed = true
	// Whoever starts again what was killed wants the end of that migration, not another one.
	if _, _, phase, err := m.present(j.playbook.Name); err != nil {
		return err
	} else if phase.Final() {
		return a.already(m, j.playbook.Name, phase)
	}
	if e, err = m.add(ctx, j, yes, screen.event); err != nil {
		return err
	}
	defer e.Close()
	var server *api.Server
	if flags != nil {
		if server, err = a.newServer(m, *flags, log); err != nil {
			return err
		}
	}

	began := e.migration.Status().Phase
	g, gctx := errgroup.WithContext(ctx)
	stop, cancel := context.WithCancel(gctx)
	defer cancel()
	if server != nil {
		g.Go(func() error { return ignoreEnd(stop, server.Run(stop)) })
		g.Go(func() error { return a.announce(stop, screen, e, server) })
	}
	g.Go(func() error {
		defer cancel() // the API ends with the migration
		if server != nil {
			select { // nothing is changed in a database before it is certain that people can watch
			case <-server.Listening():
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		}
		if goesOn(began) && began != migrate.Following {
			screen.goesOn(began)
		}
		return e.Run(gctx, false, func(err error) {
			screen.event(migrate.Event{Time: time.Now(), Type: "error", Phase: migrate.Failed, Message: err.Error() + "; clients go on, and the migration waits for: ficus resume " + j.playbook.Name})
		})
	})
	g.Go(func() error {
		if j.rehearse {
			r, err := e.migration.Rehearsed(stop)
			switch {
			case errors.Is(err, migrate.ErrNotNow):
				return err
			case err == nil:
				a.rehearsal(screen, e.migration.Status(), r)
			}
			return nil // what else went wrong is Run's to say
		}
		if err := e.migration.Reached(stop, migrate.Phase(j.playbook.Until)); err != nil {
			return nil //nolint:nilerr // what went wrong is Run's to say
		}
		s := e.settled(stop)
		if s.Phase == began && began == migrate.Following { // it has caught up with what happened meanwhile
			screen.goesOn(began)
		}
		a.result(screen, s)
		return nil
	})
	err = g.Wait()
	screen.close()
	s := e.migration.Status()
	err = a.ended(ctx, screen, s, j, err)
	if s.Phase.Final() {
		err = errors.Join(err, m.next(j.playbook.Name))
	}
	return err
}

// already tells of a migration that had ended when the process that drove it was killed.
func (a *app) already(m *manager, name string, end migrate.Phase) error {
	a.line("result", map[string]any{"name": name, "phase": end},
		fmt.Sprintf("%s: %s already, by a process that did not live to say so; the same command begins a new migration now", name, end))
	return m.next(name)
}

// goesOn reports whether a process finds a migration in the middle of a phase, which it then does not enter.
func goesOn(p migrate.Phase) bool { return p != migrate.Pending && p != migrate.Failed && !p.Final() }

// settled returns the status once its link has been measured: on the source, when it has caught up with
// what happened while nobody followed; on the target, when it can say whether a rollback is safe.
func (e *engine) settled(ctx context.Context) migrate.Status {
	const patience, every = 5 * time.Second, 50 * time.Millisecond
	began := time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	limits := e.job.playbook.Gates
	for {
		s := e.migration.Status()
		switch {
		case s.Error != "" || s.Paused || ctx.Err() != nil:
			return s
		case s.Owner == migrate.Source:
			if s.Lag != nil && s.Lag.Bytes <= int64(limits.MaxLag) && s.Lag.Time <= time.Duration(limits.MaxLagTime) {
				return s
			}
		case s.Rollback.Safe || e.reverse == nil || time.Since(began) > patience:
			return s
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// announce says where the doors are once they are open.
func (a *app) announce(ctx context.Context, screen *console, e *engine, server *api.Server) error {
	select {
	case <-server.Listening():
	case <-ctx.Done():
		return nil
	}
	doors := map[string]any{"api": server.URL()}
	text := []string{"dashboard and API " + server.URL()}
	if e.gateway != nil {
		select {
		case <-e.gateway.Listening():
			doors["gateway"], doors["gateway_read_only"] = e.gateway.Addr().String(), e.gateway.ReadAddr().String()
			text = append(text, fmt.Sprintf("application connects to %s (reads only: %s)", e.gateway.Addr(), e.gateway.ReadAddr()))
		case <-ctx.Done():
			return nil
		}
	}
	if e.door != nil {
		select {
		case <-e.door.Listening():
			doors["http"] = e.door.Addr().String()
			text = append(text, fmt.Sprintf("application sends HTTP to %s", e.door.Addr()))
		case <-ctx.Done():
			return nil
		}
	}
	if a.json {
		a.line("listening", doors, "")
		return nil
	}
	for _, t := range text {
		screen.say(t)
	}
	return nil
}

// result prints the line that scripts wait for.
func (a *app) result(screen *console, s migrate.Status) {
	r, text := outcome(s)
	if a.json {
		a.line("result", r, "")
		return
	}
	for _, t := range text {
		screen.say(t)
	}
}

// outcome is what there is to say of a migration that has come to where it was wanted, for scripts
// and for people.
func outcome(s migrate.Status) (r map[string]any, text []string) {
	r = map[string]any{"name": s.Name, "phase": s.Phase, "owner": s.Owner, "epoch": s.Epoch, "rollback_safe": s.Rollback.Safe}
	text = []string{fmt.Sprintf("%s: %s, the %s owns the data", s.Name, s.Phase, s.Owner)}
	if c := s.Copied; c != nil {
		r["rows_copied"], r["bytes_copied"], r["copy_seconds"] = c.Rows, c.Bytes, c.Elapsed.Seconds()
		text = append(text, fmt.Sprintf("  copied    %s rows, %s, in %s", units.Count(c.Rows), units.Bytes(c.Bytes), units.Duration(c.Elapsed)))
	}
	if p := s.Proof; p != nil {
		r["verify"] = map[string]any{"rows": p.Rows, "differences": p.Differences, "lsn": p.LSN}
		text = append(text, fmt.Sprintf("  verified  %s rows at %s: %d differences", units.Count(p.Rows), p.LSN, p.Differences))
	}
	if n := len(s.Promotions); n > 0 {
		p := s.Promotions[n-1]
		r["blackout_ms"] = milliseconds(p.Blackout)
		r["stall_ms"] = map[string]any{"p50": milliseconds(p.Stall.P50), "p99": milliseconds(p.Stall.P99), "max": milliseconds(p.Stall.Max), "clients": p.Stall.Clients}
		text = append(text,
			fmt.Sprintf("  promoted  epoch %d, no writes for %s; %d clients waited, p99 %s, longest %s", p.Epoch, units.Duration(p.Blackout), p.Stall.Clients, units.Duration(p.Stall.P99), units.Duration(p.Stall.Max)),
			fmt.Sprintf("  proved    %s touched keys compared under the fence: %d differences", units.Count(p.Proof.Keys), p.Proof.Differences))
	}
	if s.Owner == migrate.Target {
		if s.Rollback.Safe {
			text = append(text, "  rollback  safe: ficus rollback "+s.Name)
		} else {
			r["rollback_because"] = s.Rollback.Because
			text = append(text, "  rollback  not safe, because "+strings.Join(s.Rollback.Because, "; "))
		}
	}
	return r, text
}

// ended turns how a run ended into an exit status. With --json the last line is a result.
func (a *app) ended(ctx context.Context, screen *console, s migrate.Status, j *job, err error) error {
	waiting := waitsForApproval(s)
	a.facts, _ = outcome(s)
	if waiting {
		a.facts["waiting_for"] = migrate.GateApproval
	}
	resting := j.rehearse && s.Rehearsal != nil || slices.Contains([]migrate.Phase{migrate.Promoted, migrate.RolledBack, migrate.Phase(j.playbook.Until)}, s.Phase)
	switch interrupted := ctx.Err() != nil && errors.Is(err, context.Cause(ctx)); {
	case err == nil, interrupted && resting: // stopped by a signal where it may rest
		if a.json && !a.out.result {
			a.line("result", a.facts, "")
		} else if !a.json && s.Phase.Final() {
			a.result(screen, s)
		}
		return nil
	case !interrupted && s.Phase == migrate.Failed:
		return hint.Wrap(err, "mend the cause and run the same command again: it goes on where it was; to give up: ficus cleanup --source ... --target ...")
	case !interrupted:
		return err
	case waiting:
		return &statusError{exitWaiting, hint.Wrap(fmt.Errorf("%s: stopped while waiting for an approval", s.Name),
			"run the same command again, then: ficus approve %s", s.Name)}
	}
	return hint.Wrap(fmt.Errorf("%s: stopped in phase %s", s.Name, s.Phase),
		"run the same command again: it goes on where it was; to give up, run it again and then: ficus cancel %s", s.Name)
}

// waitsForApproval reports whether a migration that runs or was stopped needs a person to go on.
func waitsForApproval(s migrate.Status) bool {
	return s.Phase == migrate.ReadsSwitched && slices.ContainsFunc(s.Gates, func(g migrate.GateState) bool {
		return g.Name == migrate.GateApproval && !g.Open
	})
}

// ignoreEnd drops an error that only says that ctx ended.
func ignoreEnd(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return nil
	}
	return err
}
