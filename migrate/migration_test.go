package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// bench is one engine on a world without faults.
type bench struct {
	*Migration
	w    *world
	p    *process
	stop context.CancelCauseFunc
	done chan error
}

// A bubble is a test in a time of its own.
type bubble struct {
	*testing.T

	w *world
}

// inWorld runs a test in a time of its own, on a world without faults.
func inWorld(t *testing.T, f func(t bubble)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(7)
		w.blind = false
		f(bubble{t, w})
		if w.violation != nil {
			t.Errorf("%v\n%s", w.violation, strings.Join(w.trace, "\n"))
		}
	})
}

func newBench(t testing.TB, w *world, change func(*Config)) *bench {
	t.Helper()
	return newBenchOn(t, w, 0, change)
}

func newBenchOn(t testing.TB, w *world, machine int, change func(*Config)) *bench {
	t.Helper()
	b := &bench{w: w, done: make(chan error, 1)}
	p := w.newProcess(machine, func(error) {})
	b.p = p
	cfg := Config{
		Name: "shop", Source: database{w, p, w.db[Source]}, Target: database{w, p, w.db[Target]},
		Forward: link{w, p, w.links[Source]}, Reverse: link{w, p, w.links[Target]}, Loader: loader{w, p},
		Verifier: verifier{w, p}, Router: router{w, p}, Journal: journal{w, p}, Settings: Settings{AutoApprove: true},
		Retryable: func(err error) bool { return errors.Is(err, errFault) },
	}
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Migration = m
	return b
}

// start runs the engine until the test ends.
func (b *bench) start(t testing.TB) {
	t.Helper()
	ctx, stop := context.WithCancelCause(t.Context())
	b.stop = stop
	go func() { b.done <- b.Run(ctx) }()
	synctest.Wait()
	t.Cleanup(func() { stop(errors.New("test ended")) })
}

func (b *bench) reach(t testing.TB, p Phase) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Minute, errors.New("not reached"))
	defer cancel()
	if err := b.Reached(ctx, p); err != nil {
		t.Fatalf("reach %s: %v (status %+v)", p, err, b.Status())
	}
}

func (b *bench) must(t testing.TB, v Verb) {
	t.Helper()
	if err := b.Do(t.Context(), Command{Verb: v, Actor: "anna", Wait: true}); err != nil {
		t.Fatalf("%s: %v", v, err)
	}
}

// runs reports whether the link from a side runs.
func (b *bench) runs(from Side) bool {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	return b.p.running[from]
}

// waitsFor lets time pass until the engine rests at a gate.
func (b *bench) waitsFor(t testing.TB, gate string) Status {
	t.Helper()
	for range 1000 {
		if s := b.Status(); s.WaitingFor == gate {
			return s
		}
		time.Sleep(time.Second)
	}
	t.Fatalf("never waited for %q: %+v", gate, b.Status())
	return Status{}
}

func TestThereAndBackAndThere(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, func(c *Config) { c.Settings.ReadSteps = []int{10, 100} })
		b.start(t)
		b.reach(t, Promoted)
		b.must(t, Rollback)
		if v := b.Status().Rollback; v.Safe {
			t.Errorf("rollback verdict with the source as owner: %+v", v)
		}
		b.must(t, Promote)
		time.Sleep(5 * time.Second) // for a lag sample
		s := b.Status()
		if !s.Rollback.Safe {
			t.Errorf("rollback not safe after the promotion: %v", s.Rollback.Because)
		}
		w.mu.Lock()
		for range 50 { // more than the link carries by the way
			w.write(w.db[Target], &fakeTx{passed: true, id: w.nextval(w.db[Target])})
		}
		committed := maps.Clone(w.db[Target].rows)
		w.mu.Unlock()
		b.must(t, Complete)
		if err := <-b.done; err != nil {
			t.Errorf("run: %v", err)
		}
		for id := range committed {
			if !w.db[Source].rows[id] {
				t.Errorf("row %d was committed before the end, and the old database does not have it", id)
			}
		}

		var owners []Side
		for i, p := range b.Status().Promotions {
			owners = append(owners, p.To)
			if p.Epoch != int64(i+2) || p.Blackout <= 0 || p.Stall.Clients != 1 || p.Sequences != 1 || p.Proof.Kind != "delta" {
				t.Errorf("promotion %d: %+v", i, p)
			}
		}
		if diff := cmp.Diff([]Side{Target, Source, Target}, owners); diff != "" {
			t.Errorf("owners (-want +got):\n%s", diff)
		}
		var phases []Phase
		for _, p := range b.Status().Phases {
			phases = append(phases, p.Phase)
		}
		want := []Phase{
			Preparing, Copying, CatchingUp, Following, Verifying, ReadsSwitched, Promoting, Promoted,
			RollingBack, RolledBack, Verifying, ReadsSwitched, Promoting, Promoted, Completed,
		}
		if diff := cmp.Diff(want, phases); diff != "" {
			t.Errorf("phases (-want +got):\n%s", diff)
		}
		if o := w.db[Target].row; o.Epoch != 0 {
			t.Errorf("target still installed: %+v", o)
		}
		if o := w.db[Source].row; o.GateOpen || o.Owner != Target {
			t.Errorf("source not left fenced: %+v", o)
		}
	})
}

func TestJournalIsTheStory(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		var heard []Event
		b := newBench(t, w, func(c *Config) { c.Events = func(e Event) { heard = append(heard, e) } })
		b.start(t)
		b.reach(t, Promoted)
		b.stop(errors.New("enough"))
		if err := <-b.done; err == nil || err.Error() != "enough" {
			t.Errorf("run: %v", err)
		}
		heard = slices.DeleteFunc(heard, func(e Event) bool { return e.Seq == 0 })

		again := newBench(t, w, nil)
		if diff := cmp.Diff(b.Status().Promotions, again.Status().Promotions); diff != "" {
			t.Errorf("promotions after replay (-before +after):\n%s", diff)
		}
		if again.Status().Phase != Promoted || again.Status().Owner != Target {
			t.Errorf("status after replay: %+v", again.Status())
		}
		const after = 3
		var replayed []Event
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for e, err := range again.Subscribe(ctx, after) {
			if err != nil {
				t.Fatal(err)
			}
			if replayed = append(replayed, e); len(replayed) == len(heard)-after {
				break
			}
		}
		for i, e := range replayed {
			if e.Seq != int64(i+1+after) || e.Message != heard[i+after].Message {
				t.Errorf("event %d: got %d %q, want %q", i, e.Seq, e.Message, heard[i+after].Message)
			}
		}
	})
}

// A refusing journal has no room for some records.
type refusing struct {
	Journal
	refuses func(record []byte) bool
}

func (j refusing) Append(record []byte) error {
	if j.refuses(record) {
		return errors.New("disk full")
	}
	return j.Journal.Append(record)
}

// TestJournalHasNoHoles: what the journal had no room for, and what had happened all the same, is there before what
// happens next.
//
// It fails when a record that is refused is gone: the next process then knows of no promotion, and of a rollback that is
// still wanted after it was done.
func TestJournalHasNoHoles(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{"promotion of the target", "promoted: the target owns the data", "record-owner: done"} {
		t.Run(lost, func(t *testing.T) {
			inWorld(t, func(t bubble) {
				refused := 0
				b := newBench(t, t.w, func(c *Config) {
					c.Journal = refusing{c.Journal, func(record []byte) bool {
						if refused > 0 || !strings.Contains(string(record), lost) {
							return false
						}
						refused++
						return true
					}}
				})
				b.start(t)
				b.reach(t, Promoted)
				before := b.Status()
				b.stop(errors.New("enough"))
				if err := <-b.done; err == nil || err.Error() != "enough" {
					t.Errorf("run: %v", err)
				}
				again := newBench(t, t.w, nil).Status()
				if diff := cmp.Diff(before.Promotions, again.Promotions); diff != "" || len(again.Promotions) != 1 || refused != 1 {
					t.Errorf("%d refused; promotions after replay (-before +after):\n%s", refused, diff)
				}
				var seq int64
				err := journal{t.w, &process{}}.Scan(func(data []byte) error {
					var r record
					err := json.Unmarshal(data, &r)
					if r.Seq != seq+1 {
						t.Errorf("record %d comes after record %d", r.Seq, seq)
					}
					seq = r.Seq
					return err
				})
				if err != nil || seq == 0 {
					t.Errorf("%d records, %v", seq, err)
				}
			})
		})
	}
}

func TestSubscribeLive(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := make(chan string)
		go func() {
			defer close(got)
			for e, err := range b.Subscribe(ctx, 0) {
				if err != nil {
					t.Errorf("subscribe: %v", err)
				}
				if e.Type == eventPhase || e.Type == eventProgress {
					got <- e.Type
				}
			}
		}()
		b.start(t)
		types := map[string]int{}
		for typ := range got {
			if types[typ]++; types[eventProgress] > 0 && types[eventPhase] >= 8 {
				cancel()
				break
			}
		}
		for range got { // until the subscriber has noticed
		}
	})
}

func TestApproval(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, func(c *Config) { c.Settings.AutoApprove = false })
		b.start(t)
		s := b.waitsFor(t, GateApproval)
		if s.Phase != ReadsSwitched {
			t.Errorf("waits in phase %s", s.Phase)
		}
		err := b.Do(t.Context(), Command{Verb: Promote})
		if !errors.Is(err, ErrNotNow) || !strings.Contains(hint.Of(err), "approve") {
			t.Errorf("promote while waiting for an approval: %v, hint %q", err, hint.Of(err))
		}
		b.must(t, Approve)
		b.reach(t, Promoted)
		b.must(t, Rollback)
		if err := b.Do(t.Context(), Command{Verb: Promote}); err != nil {
			t.Fatal(err)
		}
		s = b.waitsFor(t, GateApproval) // one approval is for one promotion
		i := slices.IndexFunc(s.Gates, func(g GateState) bool { return g.Name == GateApproval })
		if g := s.Gates[i]; !g.Manual || g.Open || g.Wanted != "ficus approve shop" {
			t.Errorf("gate: %+v", g)
		}
	})
}

func TestUntilAndPause(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, func(c *Config) { c.Settings.Until = Following })
		b.start(t)
		b.reach(t, Following)
		if s := b.waitsFor(t, string(Promote)); s.Phase != Following {
			t.Errorf("rests in %s", s.Phase)
		}
		b.must(t, Pause)
		if s := b.Status(); !s.Paused || b.runs(Source) {
			t.Errorf("paused, and the link runs: %+v", s)
		}
		if err := b.Do(t.Context(), Command{Verb: Promote}); !errors.Is(err, ErrNotNow) {
			t.Errorf("promote while paused: %v", err)
		}
		b.must(t, Resume)
		b.waitsFor(t, string(Promote))
		if !b.runs(Source) {
			t.Error("resumed, and the link does not run")
		}
		b.must(t, Promote)
		if s := b.Status(); s.Phase != Promoted {
			t.Errorf("phase %s after promote", s.Phase)
		}
	})
}

func TestBudgetUndoes(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		stuck := &fakeTx{passed: true, id: 4711, stuck: time.Now().Add(time.Hour)}
		b := newBench(t, w, func(c *Config) { c.Settings.Until = ReadsSwitched })
		b.start(t)
		b.reach(t, ReadsSwitched)
		row(b.Migration, "arm").run = func(*Migration, context.Context, *attempt) error {
			if !w.db[Source].armed {
				w.db[Source].armed, w.db[Source].txs = true, []*fakeTx{stuck}
			}
			return nil
		}
		err := b.Do(t.Context(), Command{Verb: Promote, Wait: true})
		if err == nil || !strings.Contains(err.Error(), "wait-writers: budget of 5s for wait-writers is used up") {
			t.Fatalf("promote: %v", err)
		}
		s := b.waitsFor(t, string(Promote))
		if !w.db[Source].row.GateOpen || w.held || s.Owner != Source || !strings.Contains(s.Hint, "nobody was harmed") {
			t.Errorf("not taken back: %+v", s)
		}
		if w.undone != 0 || s.Phase != ReadsSwitched {
			t.Errorf("phase %s", s.Phase)
		}
		stuck.stuck = time.Time{}
		b.must(t, Promote)
	})
}

func TestLossyRules(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, func(c *Config) { c.Reverse, c.Lossy = nil, []string{"users.name is computed without inverse"} })
		b.start(t)
		b.reach(t, Promoted)
		v := b.Status().Rollback
		if v.Safe || !slices.Contains(v.Because, "users.name is computed without inverse") {
			t.Errorf("verdict: %+v", v)
		}
		if err := b.Do(t.Context(), Command{Verb: Rollback}); !errors.Is(err, ErrNotNow) {
			t.Errorf("rollback: %v", err)
		}
		b.must(t, Complete)
	})
}

func TestFailsAndGoesOnWhereItFailed(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		bad := true
		b := newBench(t, w, func(c *Config) {
			c.Preflight = func(context.Context) ([]Finding, error) {
				if bad {
					return []Finding{{Severity: SeverityError, Check: "wal-level", Object: "source", Message: "wal_level is replica", Fix: "ALTER SYSTEM SET wal_level = logical"}}, nil
				}
				return nil, nil
			}
		})
		err := b.Run(t.Context())
		if err == nil || hint.Of(err) != "ALTER SYSTEM SET wal_level = logical" {
			t.Fatalf("run: %v, hint %q", err, hint.Of(err))
		}
		if s := b.Status(); s.Phase != Failed || s.Hint == "" || w.db[Source].row.Epoch != 0 {
			t.Errorf("status: %+v", s)
		}
		bad = false
		b.start(t)
		b.reach(t, Following)
	})
}

// shaky is a loader, and a database, that meets a server which is away so many times.
type shaky struct {
	loader
	Database

	away *int
}

func (s shaky) meet() error {
	if *s.away > 0 {
		*s.away--
		return errFault
	}
	return nil
}

func (s shaky) CreateTables(ctx context.Context) error {
	if err := s.meet(); err != nil {
		return err
	}
	return s.loader.CreateTables(ctx)
}

func (s shaky) Claim(ctx context.Context) (<-chan struct{}, error) {
	if err := s.meet(); err != nil {
		return nil, err
	}
	return s.Database.Claim(ctx)
}

// TestPreparingGoesOn: a server that goes away while a migration is prepared is waited for, also by the process that is
// started after a kill; one that was never there is told at once.
//
// Break that it catches: steps of phase preparing that are tried once.
func TestPreparingGoesOn(t *testing.T) {
	inWorld(t, func(t bubble) {
		looks, tables, claims := 0, 2, 1
		var b *bench
		b = newBench(t, t.w, func(c *Config) {
			load, ok := c.Loader.(loader)
			if !ok {
				t.Fatalf("the world's loader is a %T", c.Loader)
			}
			c.Loader = shaky{loader: load, away: &tables}
			c.Source = shaky{Database: c.Source, away: &claims}
			c.Preflight = func(context.Context) ([]Finding, error) {
				switch looks++; looks {
				case 1:
					return nil, errFault
				case 2: // the process ends, and the next one does not find the source
					claims = 2
					b.stop(errors.New("killed"))
				}
				return nil, nil
			}
		})
		if err := b.Run(t.Context()); !errors.Is(err, errFault) || b.Status().Phase != Failed {
			t.Fatalf("a source that was never there: %v, %+v", err, b.Status())
		}
		b.start(t)
		if err, s := <-b.done, b.Status(); err == nil || s.Phase != Preparing {
			t.Fatalf("stopped in phase %s, %s: %v", s.Phase, s.Error, err)
		}
		b.start(t)
		b.reach(t, Following)
		if claims != 0 || tables != 0 {
			t.Errorf("still away %d and %d times", claims, tables)
		}
	})
}

func TestLinkDies(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		forward, reverse := make(chan error), make(chan error)
		b := newBench(t, w, func(c *Config) {
			c.Settings.Until = Following
			c.Forward, c.Reverse = mortal{c.Forward, forward}, mortal{c.Reverse, reverse}
		})
		b.start(t)
		b.waitsFor(t, string(Promote))
		forward <- errLink
		if err := <-b.done; !errors.Is(err, errLink) {
			t.Fatalf("run after the link died: %v", err)
		}
		if s := b.Status(); s.Phase != Failed {
			t.Errorf("phase %s", s.Phase)
		}

		b.start(t)
		b.waitsFor(t, string(Promote))
		b.must(t, Promote)
		reverse <- errLink
		synctest.Wait()
		s := b.Status()
		if s.Phase != Promoted || s.Rollback.Safe || !strings.Contains(s.Error, "row cannot be applied") {
			t.Errorf("after the reverse link died: %+v", s)
		}
		if err := b.Do(t.Context(), Command{Verb: Rollback}); !errors.Is(err, ErrNotNow) {
			t.Errorf("rollback without a link: %v", err)
		}
		b.must(t, Resume)
		time.Sleep(5 * time.Second) // for a lag sample
		if s := b.Status(); !s.Rollback.Safe {
			t.Errorf("verdict after resume: %+v", s.Rollback)
		}
		b.must(t, Rollback)
	})
}

// mortal is a link that dies of what is sent to it.
type mortal struct {
	Link
	dies chan error
}

func (l mortal) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case err := <-l.dies:
			cancel(err)
		case <-ctx.Done():
		}
	}()
	return l.Link.Run(ctx)
}

// TestForwardOnly: a router that refuses behind the point of no return is asked until it obeys.
func TestForwardOnly(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, nil)
		var refusals atomic.Int64
		release := row(b.Migration, "release").run
		row(b.Migration, "release").run = func(m *Migration, ctx context.Context, a *attempt) error {
			if refusals.Add(1) < 20 {
				return errors.New("gateway is gone")
			}
			return release(m, ctx, a)
		}
		b.start(t)
		b.reach(t, Promoting)
		for refusals.Load() < 10 {
			time.Sleep(time.Second)
		}
		if s := b.Status(); s.Phase != Promoting || !strings.Contains(s.Error, "gateway is gone") || s.Owner != Target {
			t.Errorf("while the router refuses: %+v", s)
		}
		if err := b.Do(t.Context(), Command{Verb: Cancel}); !errors.Is(err, ErrNotNow) {
			t.Errorf("cancel behind the point of no return: %v", err)
		}
		b.reach(t, Promoted)
	})
}

// TestStopsGracefully: a process told to stop under the fence opens it before it goes.
func TestStopsGracefully(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, nil)
		row(b.Migration, "drain").run = func(_ *Migration, ctx context.Context, _ *attempt) error {
			b.stop(errors.New("shutting down"))
			<-ctx.Done()
			return context.Cause(ctx)
		}
		b.start(t)
		if err := <-b.done; err == nil || err.Error() != "shutting down" {
			t.Errorf("run: %v", err)
		}
		if s := b.Status(); s.Phase != ReadsSwitched || !w.db[Source].row.GateOpen || w.held {
			t.Errorf("left half done: %+v", s)
		}
	})
}

func TestCancelInThePromotion(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, nil)
		row(b.Migration, "drain").run = func(_ *Migration, ctx context.Context, _ *attempt) error {
			if err := b.Do(ctx, Command{Verb: Cancel, Actor: "anna"}); err != nil {
				t.Errorf("cancel: %v", err)
			}
			<-ctx.Done()
			return context.Cause(ctx)
		}
		b.start(t)
		if err := <-b.done; err != nil {
			t.Errorf("run: %v", err)
		}
		if s := b.Status(); s.Phase != Cancelled || s.Owner != Source || w.held || w.db[Source].row.Epoch != 0 || w.db[Target].row.Epoch != 0 {
			t.Errorf("after cancel: %+v", s)
		}
	})
}

func TestDifferencesWaitForAPerson(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, nil)
		b.start(t)
		b.reach(t, CatchingUp)
		w.mu.Lock()
		w.db[Target].rows[1<<40] = true // written by a stranger
		w.mu.Unlock()
		s := b.waitsFor(t, GateProof)
		if s.Phase != Verifying || !strings.Contains(s.Error, "1 differences") || !strings.Contains(s.Hint, "ficus promote shop") {
			t.Errorf("status: %+v", s)
		}
		w.mu.Lock()
		delete(w.db[Target].rows, 1<<40)
		w.mu.Unlock()
		b.must(t, Promote)
	})
}

func TestStaleProofIsMadeAgain(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, func(c *Config) { c.Settings.AutoApprove, c.Settings.Sample = false, time.Minute })
		b.start(t)
		first := b.waitsFor(t, GateApproval).Proof
		time.Sleep(25 * time.Hour)
		b.must(t, Approve)
		b.reach(t, Promoted)
		if second := b.Status().Proof; !second.Time.After(first.Time) {
			t.Errorf("promoted on the proof of %s", second.Time)
		}
	})
}

func TestForeignDatabaseIsRefused(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		w.db[Target].row = Ownership{Migration: "blog", Epoch: 1, Owner: Source}
		b := newBench(t, w, nil)
		if err := b.Run(t.Context()); !errors.Is(err, ErrForeign) {
			t.Errorf("run: %v", err)
		}
	})
}

func TestRollbackWindow(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, func(c *Config) { c.Settings.RollbackWindow, c.Settings.Sample = 72*time.Hour, time.Minute })
		b.start(t)
		b.reach(t, Promoted)
		began := time.Now()
		if err := <-b.done; err != nil {
			t.Errorf("run: %v", err)
		}
		if took := time.Since(began).Round(time.Minute); b.Status().Phase != Completed || took != 72*time.Hour {
			t.Errorf("phase %s after %s", b.Status().Phase, took)
		}
	})
}

// lowDisk is a gate as a playbook may add.
type lowDisk struct{ open *bool }

func (lowDisk) Name() string  { return "disk" }
func (lowDisk) Before() Phase { return Verifying }
func (g lowDisk) Measure(context.Context, Status) (Reading, error) {
	return Reading{Open: *g.open, Measured: "3 GiB free", Wanted: "10 GiB"}, nil
}

func TestGatesOfThePlaybook(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		open := false
		b := newBench(t, w, func(c *Config) { c.Gates = []Gate{lowDisk{&open}} })
		b.start(t)
		if s := b.waitsFor(t, "disk"); s.Phase != Following {
			t.Errorf("waits in %s", s.Phase)
		}
		open = true
		b.reach(t, Promoted)
	})
}

func TestCommandsAreRefusedWithAHint(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, func(c *Config) { c.Settings.Until = Following })
		b.start(t)
		b.waitsFor(t, string(Promote))
		for _, v := range []Verb{Resume, Rollback, Complete, Verb("dance")} {
			err := b.Do(t.Context(), Command{Verb: v})
			if !errors.Is(err, ErrNotNow) || hint.Of(err) != "in phase following these are possible: approve, pause, promote, cancel, throttle" {
				t.Errorf("%s: %v, hint %q", v, err, hint.Of(err))
			}
		}
		b.must(t, Promote)
		for _, v := range []Verb{Resume, Promote, Cancel, Approve} {
			err := b.Do(t.Context(), Command{Verb: v})
			if !errors.Is(err, ErrNotNow) || hint.Of(err) != "in phase promoted these are possible: pause, rollback, complete, throttle" {
				t.Errorf("%s: %v, hint %q", v, err, hint.Of(err))
			}
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Name: "x"}); err == nil || !strings.Contains(err.Error(), "without Source, Target, Forward, Loader, Verifier, Journal") {
		t.Errorf("empty config: %v", err)
	}
	if err := (Settings{Until: Copying}).Validate(); err == nil {
		t.Error("until copying passes")
	}
	if err := (Settings{ReadSteps: []int{10, 200}}).Validate(); err == nil {
		t.Error("200 percent passes")
	}
}

// laggy is a link whose lag is what a test says.
type laggy struct {
	Link

	bytes func() int64
}

func (l *laggy) Lag(context.Context) (Lag, error) { return Lag{Bytes: l.bytes()}, nil }

// TestReadsGoBackWhenTheTargetLags: one look into a burst of WAL puts no reads back; a target that
// stays behind does.
func TestReadsGoBackWhenTheTargetLags(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		burst int // samples beyond the gate, from the moment at which reads move
		fails bool
	}{{"a burst", 2, false}, {"behind for good", 1000, true}} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(t bubble) {
				var b *bench
				left := tt.burst
				b = newBench(t, t.w, func(c *Config) {
					c.Settings.Until, c.Settings.ReadSteps = ReadsSwitched, []int{50}
					c.Settings.ReadWatch, c.Settings.LagSamples = time.Second, 3
					c.Forward = &laggy{c.Forward, func() int64 {
						if b.Status().ReadsOn == 0 || left == 0 {
							return 0
						}
						left--
						return 1 << 30
					}}
				})
				b.start(t)
				if tt.fails {
					if err := <-b.done; err == nil || hint.Of(err) == "" || b.Status().ReadsOn != 0 || b.Status().Phase != Failed {
						t.Errorf("run: %v, status %+v", err, b.Status())
					}
					return
				}
				b.reach(t, ReadsSwitched)
				if s := b.Status(); s.ReadsOn != 50 {
					t.Errorf("reads on the target: %d percent, want 50", s.ReadsOn)
				}
			})
		})
	}
}
