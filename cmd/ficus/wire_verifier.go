package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/ddl"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/transform"
	"github.com/ficus-migrate/ficus/verify"
)

// proofs is the bucket that keeps, for each migration and owner, where the last proof stands.
const proofs = "proofs"

// A base is a proven instant of an owner: everything was equal at LSN, so a delta needs only the
// keys touched since. 0 is the moment at which it became the owner, when the stream of its link
// begins.
type base struct {
	LSN change.LSN `json:"lsn"`
}

// A verifier is package verify over the links of one migration. It is migrate.Verifier.
type verifier struct {
	engine *engine
	store  *eventstore.Store
	log    *slog.Logger

	evidence *eventstore.Bucket // every report, sealed, in order
	turn     chan struct{}      // held by who holds the link
	closing  sync.WaitGroup     // sessions that say goodbye
	mu       struct {
		sync.Mutex
		// ready is a session for the comparison under the fence, warm from a live one.
		ready map[migrate.Side]*verify.Session
		// digest is that of the newest report, once known.
		digest *string
		// ddl counts the changes of tables that were followed.
		ddl int
	}
}

// errDDLMeanwhile says that a comparison counts for nothing, because tables changed under it.
var errDDLMeanwhile = errors.New("DDL was followed during the comparison")

// changes returns how many changes of tables were followed.
func (v *verifier) changes() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.ddl
}

// unprove forgets what was proved of an owner, and sessions that compare tables as they were.
func (v *verifier) unprove(owner migrate.Side) error {
	v.mu.Lock()
	v.mu.ddl++
	if s := v.mu.ready[owner]; s != nil {
		v.closing.Go(s.Close)
		delete(v.mu.ready, owner)
	}
	v.mu.Unlock()
	return v.forget(owner)
}

func newVerifier(e *engine, cfg engineConfig) *verifier {
	v := &verifier{engine: e, store: cfg.Store, log: cfg.Log.With(slog.String("part", "verify")), turn: make(chan struct{}, 1)}
	v.evidence = cfg.Store.Bucket("evidence-" + e.job.playbook.Name)
	v.mu.ready = map[migrate.Side]*verify.Session{}
	return v
}

// Close ends the sessions that are kept ready.
func (v *verifier) Close() {
	v.closing.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	for side, s := range v.mu.ready {
		s.Close()
		delete(v.mu.ready, side)
	}
}

// config describes the comparison over the link that leaves owner.
func (v *verifier) config(owner migrate.Side) (verify.Config, *link.Link) {
	e, plan := v.engine, v.engine.current()
	if owner == migrate.Source {
		return v.pair(e.job.source, e.job.target, plan.Forward.Mappings), e.forward
	}
	return v.pair(e.job.target, e.job.source, plan.Backward.Mappings), e.reverse
}

func (v *verifier) pair(from, to pg.DSN, mappings []transform.Mapping) verify.Config {
	return verify.Config{
		Source: from, Target: to, Mappings: mappings, Log: v.log, Name: v.engine.job.playbook.Name, Program: "ficus " + versionText(),
	}
}

// Exact implements [migrate.Verifier].
func (v *verifier) Exact(ctx context.Context, owner migrate.Side, progress func(done, total int64)) (migrate.Proof, error) {
	c, err := v.compare(ctx, owner, api.VerifyRequest{RowsOnly: true}, progress)
	return c.Proof, err
}

// compare compares everything at one instant, and mends when it is asked to. A comparison that the
// following of DDL interrupts, or makes worthless, begins again for as long as the migration goes on;
// only the forward link follows DDL.
func (v *verifier) compare(ctx context.Context, owner migrate.Side, r api.VerifyRequest, progress func(done, total int64)) (api.Comparison, error) {
	for {
		c, err := v.compareOnce(ctx, owner, r, progress)
		s := v.engine.migration.Status()
		if owner != migrate.Source || !interruptedByDDL(err) || !s.Running || s.Paused || s.Error != "" {
			return c, err
		}
		if err := backoff.Sleep(ctx, 200*time.Millisecond); err != nil {
			return api.Comparison{}, err
		}
	}
}

// interruptedByDDL reports whether an error means that the link stood still, or stands, for DDL.
func interruptedByDDL(err error) bool {
	return ddl.Interrupted(err) || errors.Is(err, errDDLMeanwhile)
}

func (v *verifier) compareOnce(ctx context.Context, owner migrate.Side, r api.VerifyRequest, progress func(done, total int64)) (api.Comparison, error) {
	began, epoch := v.changes(), v.engine.migration.Status().Epoch
	cfg, l := v.config(owner)
	if l == nil {
		return api.Comparison{}, hint.Wrap(fmt.Errorf("nothing follows the %s, since the rules cannot be turned round: %w", owner, migrate.ErrNotNow),
			"give --source and --target to compare the databases as they stand")
	}
	cfg.Follower, cfg.Progress, cfg.Held = turns{l, v.turn}, progress, v.engine.migration.ComparisonHeld
	if !r.RowsOnly {
		cfg.Definitions = true
		if owner == migrate.Source { // the way back knows them by other names
			cfg.Sequences = v.engine.current().Forward.Sequences
		}
	}
	if r.Repair || r.Apply {
		cfg.Repairs, cfg.Mark = maxLiveRepairs, markSQL
	}
	s, err := verify.Open(ctx, cfg)
	if err != nil {
		return api.Comparison{}, err
	}
	defer s.Close()
	report, err := s.Exact(ctx)
	if v.changes() != began {
		return api.Comparison{}, errors.Join(errDDLMeanwhile, err)
	}
	if err != nil {
		return api.Comparison{}, err
	}
	if v.engine.migration.Status().Epoch != epoch { // it was paused for that long
		return api.Comparison{}, fmt.Errorf("the owner changed during the comparison: %w", migrate.ErrNotNow)
	}
	if report.Differences == 0 {
		if err := v.prove(owner, report.Earliest().LSN, l); err != nil {
			return api.Comparison{}, err
		}
	}
	p, err := v.proof(report, false)
	if err != nil {
		return api.Comparison{}, err
	}
	c := api.Comparison{Proof: p, Verdict: string(report.Verdict()), Definitions: report.Matters(), SequencesBehind: report.Behind()}
	return c, v.repair(ctx, s, report, r, &c)
}

// Delta implements [migrate.Verifier].
func (v *verifier) Delta(ctx context.Context, owner migrate.Side, fenced bool) (migrate.Proof, error) {
	from, ok, err := v.base(owner)
	if err != nil {
		return migrate.Proof{}, err
	}
	if !ok {
		return migrate.Proof{}, fmt.Errorf("delta on the %s: %w", owner, migrate.ErrNoProof)
	}
	cfg, l := v.config(owner)
	keys := touchedKeys(l.Stream(), from.LSN)
	if fenced {
		return v.fencedDelta(ctx, owner, cfg, keys)
	}
	cfg.Follower = turns{l, v.turn}
	s, err := verify.Open(ctx, cfg)
	if err != nil {
		return migrate.Proof{}, err
	}
	report, err := s.Delta(ctx, keys)
	if err != nil {
		s.Close()
		return migrate.Proof{}, err
	}
	v.keepReady(owner, s)
	// A table that was not covered keeps its touched keys, and with them everybody's.
	if report.Differences == 0 && len(report.Uncovered) == 0 {
		if err := v.prove(owner, report.LSN, l); err != nil {
			return migrate.Proof{}, err
		}
	}
	return v.proof(report, false)
}

// keepReady keeps a session for the comparison under the fence: its connections are open and its
// queries planned.
func (v *verifier) keepReady(owner migrate.Side, s *verify.Session) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := v.mu.ready[owner]; old != nil {
		v.closing.Go(old.Close)
	}
	v.mu.ready[owner] = s
}

// fencedDelta compares while nobody writes. Equal sides are a proof for the next owner, too.
func (v *verifier) fencedDelta(ctx context.Context, owner migrate.Side, cfg verify.Config, keys verify.Keys) (migrate.Proof, error) {
	v.mu.Lock()
	s := v.mu.ready[owner]
	delete(v.mu.ready, owner)
	v.mu.Unlock()
	if s == nil {
		var err error
		if s, err = verify.Open(ctx, cfg); err != nil {
			return migrate.Proof{}, err
		}
	}
	defer v.closing.Go(s.Close) // clients need not wait for our goodbye to the servers
	report, err := s.DeltaAtRest(ctx, keys)
	if err != nil {
		return migrate.Proof{}, err
	}
	switch {
	case report.Differences > 0:
	case len(report.Uncovered) > 0:
		err = v.forget(owner.Other())
	default:
		err = v.setBase(owner.Other(), base{})
	}
	if err != nil {
		return migrate.Proof{}, err
	}
	return v.proof(report, true)
}

// prove records that both sides were equal at lsn, and forgets what was touched before.
func (v *verifier) prove(owner migrate.Side, lsn change.LSN, l *link.Link) error {
	// One that was paused may end after one that began later.
	if b, ok, err := v.base(owner); err != nil || ok && b.LSN > lsn {
		return err
	}
	if err := v.setBase(owner, base{lsn}); err != nil {
		return err
	}
	return l.Stream().Touches().Forget(lsn)
}

func (v *verifier) key(owner migrate.Side) string {
	return v.engine.job.playbook.Name + "/" + string(owner)
}

func (v *verifier) setBase(owner migrate.Side, b base) error {
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return v.store.Bucket(proofs).Put(v.key(owner), data)
}

func (v *verifier) forget(owner migrate.Side) error {
	return v.store.Bucket(proofs).Delete(v.key(owner))
}

func (v *verifier) base(owner migrate.Side) (b base, ok bool, err error) {
	data, ok, err := v.store.Bucket(proofs).Get(v.key(owner))
	if err != nil || !ok {
		return base{}, false, err
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return base{}, false, fmt.Errorf("read where the proof of %s stands: %w", v.key(owner), err)
	}
	return b, true, nil
}

// touchedKeys reads the keys that the applier recorded after a position.
func touchedKeys(stream *eventstore.Stream, after change.LSN) verify.Keys {
	return func(table schema.Name, yield func(key []string) error) error {
		return stream.Touches().ScanTable(apply.TouchedTable(table), after, func(raw []byte) error {
			key, err := apply.TouchedKey(raw)
			if err != nil {
				return fmt.Errorf("touched keys of %s: %w", table.Display(), err)
			}
			return yield(key)
		})
	}
}

// proof seals and keeps a report, and turns it into the workflow's terms. Under the fence, where clients
// wait, it is kept afterwards.
func (v *verifier) proof(r *verify.Report, fenced bool) (migrate.Proof, error) {
	data, err := v.seal(r)
	if err != nil {
		return migrate.Proof{}, err
	}
	p := proof(r)
	if !fenced {
		return p, v.evidence.Append(data)
	}
	v.closing.Go(func() {
		if err := v.evidence.Append(data); err != nil {
			v.log.LogAttrs(context.Background(), slog.LevelError, "evidence not kept", slog.Any("err", err))
		}
	})
	return p, nil
}

// seal ends a report with its digest and returns it in JSON.
func (v *verifier) seal(r *verify.Report) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.digest == nil {
		newest, err := v.newest()
		if err != nil {
			return nil, err
		}
		digest := ""
		if newest != nil {
			if digest, _, err = verify.CheckSeal(newest); err != nil {
				return nil, fmt.Errorf("the evidence so far: %w", err)
			}
		}
		v.mu.digest = &digest
	}
	if err := r.Seal(*v.mu.digest); err != nil {
		return nil, err
	}
	v.mu.digest = &r.Digest
	return json.Marshal(r)
}

// newest returns the newest report in JSON, nil where there is none.
func (v *verifier) newest() (data []byte, err error) {
	err = v.evidence.Scan(func(value []byte) error {
		data = append(data[:0], value...)
		return nil
	})
	return data, err
}

// proof turns a report into the workflow's terms.
func proof(r *verify.Report) migrate.Proof {
	p := migrate.Proof{
		Kind: string(r.Kind), LSN: r.LSN, Time: r.At, Tables: len(r.Tables), Rows: r.Rows, Keys: r.Keys,
		Differences: r.Differences, Elapsed: r.Elapsed, Paused: r.Paused, Uncovered: r.Uncovered, Digest: r.Digest,
	}
	if first := r.Earliest(); first.LSN != r.LSN {
		p.Since, p.Time = first.LSN, first.At
	}
	const samples = 10
	for _, t := range r.Tables {
		for _, d := range t.Samples {
			if len(p.Samples) < samples {
				p.Samples = append(p.Samples, fmt.Sprintf("%s %s: %s", t.Table, d.Key, d.Kind))
			}
		}
	}
	return p
}
