package migrate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	seedFlag      = flag.Uint64("seed", 0, "replay this history of the model and print it")
	historiesFlag = flag.Int("histories", 2_000, "how many histories of the model to try; each is about ten lives of an engine")
)

// TestModel runs random histories of a migration against a world of fakes (world_test.go): calls
// that are lost on the way there or back, or arrive late; kills at every call and every journal
// record; journals that lost their tail; budgets that run out; operators at bad moments; writers
// through the router and past it at every step of the fence. At every moment: never two owners
// open, never an acknowledged write missing from who owns, no sequence value twice, no row applied
// twice. At the end, once faults stop: a next step exists, and leads through a promotion and a
// rollback.
//
// TestModelCatches breaks the algorithm and expects the model to notice.
func TestModel(t *testing.T) {
	t.Parallel()
	if *seedFlag != 0 {
		h := play(t, *seedFlag, nil)
		t.Log(strings.Join(h.trace, "\n"))
		if h.violation != nil {
			t.Fatal(h.violation)
		}
		return
	}
	n := *historiesFlag
	if testing.Short() {
		n /= 10
	}
	var total struct{ promotions, undone, kills, rivals atomic.Int64 }
	var next atomic.Uint64
	var g errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			for {
				seed := next.Add(1)
				if seed > uint64(n) {
					return nil
				}
				h := play(t, seed, nil)
				if h.violation != nil {
					return fmt.Errorf("history %d: %w\nreplay: go test ./migrate -run 'TestModel$' -v -args -seed %d\n%s",
						seed, h.violation, seed, strings.Join(h.trace[max(0, len(h.trace)-60):], "\n"))
				}
				total.promotions.Add(int64(h.promotions))
				total.undone.Add(int64(h.undone))
				total.kills.Add(int64(h.kills))
				total.rivals.Add(int64(h.rivals))
			}
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	promotions, undone, kills := total.promotions.Load(), total.undone.Load(), total.kills.Load()
	t.Logf("%d histories: %d changes of owner, %d attempts undone, %d kills, %d second engines", n, promotions, undone, kills, total.rivals.Load())
	if promotions < int64(n) || undone < int64(n/10) || kills < int64(n/2) {
		t.Errorf("the histories are too tame to mean anything")
	}
}

// mutations break the algorithm on purpose, each in one place.
var mutations = map[string]func(*Migration){
	"the gate is never closed":               func(m *Migration) { noop(m, "close-gate") },
	"writers in flight are not waited for":   func(m *Migration) { noop(m, "wait-writers") },
	"writers are waited for before the gate": func(m *Migration) { swap(m, "close-gate", "wait-writers") },
	"the drain is not waited for":            func(m *Migration) { noop(m, "drain") },
	"the nonce is written before the fence":  func(m *Migration) { moveBefore(m, "signal", "close-gate") },
	"the gate opens before the epoch":        func(m *Migration) { moveBefore(m, "open-gate", "own") },
	"an ambiguous commit is taken as failed": func(m *Migration) { row(m, "own").undo = nil },
	"the undo leaves the fence closed":       func(m *Migration) { row(m, "close-gate").undo = nil },
	"the undo leaves clients held":           func(m *Migration) { row(m, "hold").undo = nil },
	"sequences stay behind":                  func(m *Migration) { noop(m, "sequences-ahead"); noop(m, "sequences") },
	"the reverse link starts too late":       func(m *Migration) { late(m, "prepare-reverse") },
	"the new gate stays closed":              func(m *Migration) { noop(m, "open-gate") },
	"the fence is not armed":                 func(m *Migration) { noop(m, "arm") },
	"the old link is left running":           func(m *Migration) { noop(m, "switch-link") },
	"two engines do not know of each other":  unclaimed,
}

func TestModelCatches(t *testing.T) {
	t.Parallel()
	for name, mutate := range mutations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const most = 3000
			for seed := uint64(1); seed <= most; seed++ {
				if h := play(t, seed, mutate); h.violation != nil {
					t.Logf("caught by history %d: %v", seed, h.violation)
					return
				}
			}
			t.Errorf("%d histories did not notice", most)
		})
	}
}

// unclaimed lets any number of engines drive one migration.
func unclaimed(m *Migration) {
	if db, ok := m.cfg.Source.(database); ok {
		db.w.unclaimed = true
	}
}

func row(m *Migration, name string) *step {
	return &m.steps[slices.IndexFunc(m.steps, func(s step) bool { return s.Name == name })]
}

func noop(m *Migration, name string) {
	row(m, name).run = func(*Migration, context.Context, *attempt) error { return nil }
}

func swap(m *Migration, a, b string) {
	x, y := row(m, a), row(m, b)
	*x, *y = *y, *x
}

func moveBefore(m *Migration, name, other string) {
	st := *row(m, name)
	m.steps = slices.DeleteFunc(m.steps, func(s step) bool { return s.Name == name })
	i := slices.IndexFunc(m.steps, func(s step) bool { return s.Name == other })
	m.steps = slices.Insert(m.steps, i, st)
}

// late moves a step behind the release of clients.
func late(m *Migration, name string) {
	st := *row(m, name)
	st.undo = nil
	m.steps = slices.DeleteFunc(m.steps, func(s step) bool { return s.Name == name })
	i := slices.IndexFunc(m.steps, func(s step) bool { return s.Name == "record-owner" })
	m.steps = slices.Insert(m.steps, i, st)
}

// play runs one history in a time of its own.
func play(t *testing.T, seed uint64, mutate func(*Migration)) *world {
	t.Helper()
	w := newWorld(seed)
	synctest.Test(t, func(t *testing.T) {
		h := &history{w: w, mutate: mutate}
		for range 1 + w.rng.IntN(5) {
			h.life(t)
		}
		if w.violation == nil {
			h.settle(t)
		}
	})
	return w
}

type history struct {
	w      *world
	mutate func(*Migration)
}

// newEngine is a fresh process on what survived.
func (h *history) newEngine(t *testing.T, machine int, kill context.CancelCauseFunc) (*Migration, *process) {
	t.Helper()
	w := h.w
	p := w.newProcess(machine, kill)
	phase, err := PhaseOf(journal{w, p})
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.used[machine] = true
	if w.used[1-machine] && phase.Final() && (w.db[Source].row.Epoch > 0 || w.db[Target].row.Epoch > 0) {
		w.journals[machine] = nil // that one is over, and somebody else began another of the same name
		w.note("machine %d begins a new journal", machine)
	}
	seen := &witness{w: w, p: p}
	set := Settings{
		Rehearse: w.rng.IntN(4) == 0, AutoApprove: w.rng.IntN(3) > 0, LagBytes: 50, LagSamples: 1 + w.rng.IntN(3), Headroom: int64(1 + w.rng.IntN(5)),
		Attempts: 1 + w.rng.IntN(3), Sample: 700 * time.Millisecond, Sequences: 2 * time.Second, ReadSteps: []int{10, 100}, ReadWatch: 300 * time.Millisecond,
		ProofAge: time.Duration(1+w.rng.IntN(100)) * time.Second, ClaimWait: time.Duration(1+w.rng.IntN(200)) * time.Second,
	}
	w.mu.Unlock()
	m, err := New(Config{
		Name: "model", Source: database{w, p, w.db[Source]}, Target: database{w, p, w.db[Target]},
		Forward: link{w, p, w.links[Source]}, Reverse: link{w, p, w.links[Target]}, Loader: loader{w, p},
		Verifier: verifier{w, p}, Router: router{w, p}, Journal: journal{w, p}, Settings: set,
		Retryable: func(err error) bool { return errors.Is(err, errFault) },
		Events:    seen.observe,
	})
	w.mu.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if h.mutate != nil {
		h.mutate(m)
	}
	seen.phase = m.Status().Phase
	return m, p
}

// A witness holds what an engine says against what is true.
type witness struct {
	w     *world
	p     *process
	phase Phase
}

// observe asserts what an event promises.
func (h *witness) observe(e Event) {
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.Type != eventProgress {
		w.note("engine %d: %s %s", h.p.machine, e.Phase, e.Message)
	}
	if e.Type == eventPhase {
		recovered := e.Phase == Promoted || e.Phase == RolledBack || e.Phase.Final() // the databases knew more than the journal
		if !recovered && !slices.ContainsFunc(Transitions(), func(t Transition) bool { return t.From == h.phase && t.To == e.Phase }) {
			w.fail("phase %s follows %s, which Transitions does not know", e.Phase, h.phase)
		}
		h.phase = e.Phase
	}
	if e.Type == eventPhase && e.Data["undone"] == true {
		w.undone++
		if !w.drives(h.p) {
			return // what it took back is not what is there now
		}
		o := w.owner()
		if o != "" && w.db[o].row.Epoch > 0 && !w.db[o].row.GateOpen && !w.lateClosed {
			w.fail("undone, and the %s is still fenced", o)
		}
		if o != "" && w.held && w.db[o].row.Epoch > 0 {
			w.fail("undone, and clients are still held")
		}
	}
}

// life is one process from its start to its death, with an operator who disturbs it, and sometimes
// with a second one on another machine that somebody started meanwhile.
func (h *history) life(t *testing.T) {
	t.Helper()
	w := h.w
	w.faults = []float64{0.005, 0.02, 0.08}[w.rng.IntN(3)]
	machine := 0
	if w.rng.IntN(5) == 0 {
		machine = 1
	}
	if w.rng.IntN(4) == 0 { // the disk lost what was written last
		j := &w.journals[machine]
		*j = (*j)[:len(*j)-min(len(*j), w.rng.IntN(30))]
		w.note("journal %d cut to %d", machine, len(*j))
	}
	var both sync.WaitGroup
	if w.rng.IntN(3) == 0 {
		w.rivals++
		after := time.Duration(w.rng.Int64N(int64(30 * time.Second)))
		both.Go(func() {
			time.Sleep(after)
			h.engine(t, 1-machine)
		})
	}
	h.engine(t, machine)
	both.Wait()
	synctest.Wait()
}

// engine runs a process until its operator or a fault ends it.
func (h *history) engine(t *testing.T, machine int) {
	t.Helper()
	w := h.w
	ctx, kill := context.WithCancelCause(t.Context())
	defer kill(nil)
	m, p := h.newEngine(t, machine, kill)
	w.mu.Lock()
	verbs := []Verb{Approve, Promote, Promote, Rollback, Rollback, Pause, Resume, Resume, Approve, Complete, Cancel}
	if w.rng.IntN(4) > 0 {
		verbs = verbs[:len(verbs)-2] // the end comes too early otherwise
	}
	commands := w.rng.IntN(12)
	w.mu.Unlock()
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = m.Run(ctx) // its error is the history's
	}()

	for n := commands; n >= 0 && ctx.Err() == nil; n-- {
		w.mu.Lock()
		d := time.Duration(w.rng.Int64N(int64(8 * time.Second)))
		v := verbs[w.rng.IntN(len(verbs))]
		w.mu.Unlock()
		if endsWithin(over, d) {
			break
		}
		w.mu.Lock()
		w.note("operator %d: %s", machine, v)
		w.mu.Unlock()
		_ = m.Do(ctx, Command{Verb: v, Actor: "model", Force: true})
	}
	w.mu.Lock()
	if w.rng.IntN(3) > 0 {
		w.die(p)
	}
	w.mu.Unlock()
	kill(errors.New("stop")) // otherwise a graceful one
	<-over
	w.mu.Lock()
	p.dead = true
	w.mu.Unlock()
}

// endsWithin waits for d and reports whether over closed first.
func endsWithin(over <-chan struct{}, d time.Duration) bool {
	select {
	case <-over:
		return true
	case <-time.After(d):
		return false
	}
}

// settle stops all faults and wants every migration to have a way on.
func (h *history) settle(t *testing.T) {
	t.Helper()
	w := h.w
	w.faults = 0
	for _, d := range w.db {
		for _, tx := range d.txs {
			tx.stuck = time.Time{}
		}
	}
	ctx, kill := context.WithTimeoutCause(t.Context(), 20*time.Minute, errors.New("stuck"))
	defer kill()
	machine := 0
	if w.rng.IntN(4) == 0 {
		machine = 1
	}
	m, _ := h.newEngine(t, machine, func(error) {})
	w.note("settle on machine %d in phase %s", machine, m.Status().Phase)

	before := w.changes()
	for round := 0; w.changes() < before+3; round++ {
		if round == 25 || ctx.Err() != nil {
			w.fail("stuck in phase %s, step %q, waiting for %q: %s", m.Status().Phase, m.Status().Step, m.Status().WaitingFor, m.Status().Error)
			return
		}
		st := h.untilRest(ctx, t, m)
		w.mu.Lock()
		w.settled(st, w.promotions > before)
		if st.Phase.Final() && w.held && !m.snapshot().bare {
			w.fail("%s, and clients are held", st.Phase)
		}
		bad := w.violation != nil
		w.mu.Unlock()
		if bad || st.Phase.Final() {
			return
		}
		verb := nextVerb(st)
		w.mu.Lock()
		w.note("settle: %s in %s, waiting for %q", verb, st.Phase, st.WaitingFor)
		w.mu.Unlock()
		if err := m.Do(ctx, Command{Verb: verb, Actor: "model", Force: true}); err != nil {
			w.fail("stuck in phase %s: %v", st.Phase, err)
			return
		}
	}
}

// changes counts how often the owner changed.
func (w *world) changes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.promotions
}

// nextVerb is what a person does who wants the migration to go to and fro.
func nextVerb(st Status) Verb {
	switch {
	case st.Phase == Failed && strings.Contains(st.Error, "somebody removed it"):
		return Cancel
	case st.Phase == Failed && strings.Contains(st.Error, "not prepared"):
		return Cancel // it was being cancelled when the journal lost that
	case st.Phase == Failed, st.Paused:
		return Resume
	case st.WaitingFor == GateApproval:
		return Approve
	case st.Phase == Promoted && strings.Contains(st.Error, "not prepared"):
		return Complete // it was being completed when the journal lost that
	case st.Phase == Promoted:
		return Rollback
	}
	return Promote
}

// untilRest runs the engine until it waits for a person.
func (h *history) untilRest(ctx context.Context, t *testing.T, m *Migration) Status {
	t.Helper()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = m.Run(ctx) // the status tells
	}()
	quiet := 0
	for quiet < 3 && ctx.Err() == nil {
		select {
		case <-over:
			return m.Status()
		case <-time.After(4 * time.Second):
		}
		h.w.mu.Lock()
		travelling := len(h.w.late) > 0 // the engine gets time to mend what a late message does
		h.w.step(50)
		h.w.mu.Unlock()
		m.mu.Lock()
		rests := !travelling && m.mu.live.resting && m.mu.live.waitingFor != GateLag && (m.mu.state.wish == "" || m.mu.state.paused)
		m.mu.Unlock()
		if rests {
			quiet++
		} else {
			quiet = 0
		}
	}
	st := m.Status()
	stop(errors.New("settled"))
	<-over
	return st
}

// settled asserts what holds while an engine rests and no faults happen.
// changed says that the owner changed since they stopped.
func (w *world) settled(st Status, changed bool) {
	if len(w.late) > 0 {
		return
	}
	side := st.Owner
	if w.db[Source].row.Epoch == 0 && w.db[Target].row.Epoch == 0 {
		return // over, and free
	}
	if st.Phase == Completed {
		side = Target
	}
	w.nothingLost(side, "at rest in "+string(st.Phase))
	d := w.db[side]
	if d.row.Epoch > 0 && !d.row.GateOpen && st.Phase != Failed {
		w.fail("at rest in %s, and the %s is fenced", st.Phase, side)
	}
	if w.held && st.Phase != Failed {
		w.fail("at rest in %s, and clients are held", st.Phase)
	}
	if changed && (st.Phase == Promoted && w.links[Source].prepared || st.Phase == RolledBack && w.links[Target].prepared) {
		w.fail("at rest in %s, and the old link still keeps WAL", st.Phase)
	}
	if o := w.owner(); o != "" && o != side {
		w.fail("at rest in %s: status says %s owns, the databases say %s", st.Phase, side, o)
	}
}
