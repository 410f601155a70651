package migrate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ficus-migrate/ficus/internal/backoff"
)

// A world is what survives the death of an engine: two databases, two links, a router and a
// journal, with clients that write all the time. Every call of the engine takes some virtual time,
// lets clients and links go on, and may fail in every way that a network and a kill -9 know.
// Times are drawn in nanoseconds, so that no two goroutines act at one instant and a seed replays.
type world struct {
	mu sync.Mutex

	rng    *rand.Rand
	faults float64 // probability that a call fails
	blind  bool    // the verifier sees nothing, so that every other safeguard must hold alone
	procs  []*process
	// unclaimed takes the protection against a second engine away.
	unclaimed bool

	db     map[Side]*fakeDB
	links  map[Side]*linkState // by origin
	route  Side
	held   bool
	routed int64 // epoch of the last Release
	// journals are those of two machines; on the second one an engine knows less, or nothing.
	journals [2][][]byte
	used     [2]bool // an engine ran there

	acked      map[int64]bool // ids of writes that a client was told are committed
	late       []lateEffect
	lateClosed bool // a late CloseGate took effect since the last look
	violation  error
	trace      []string

	promotions, undone, kills, rivals int
}

// A process is one life of an engine.
type process struct {
	dead    bool
	kill    context.CancelCauseFunc
	running map[Side]bool // links
	machine int
	claimed map[Side]int64 // its token in each database
	stands  time.Time      // it does nothing before: stopped, or its machine is
}

// newProcess begins a life on a machine.
func (w *world) newProcess(machine int, kill context.CancelCauseFunc) *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &process{kill: kill, running: map[Side]bool{}, machine: machine, claimed: map[Side]int64{}}
	w.procs = slices.DeleteFunc(w.procs, func(p *process) bool { return p.dead })
	w.procs = append(w.procs, p)
	return p
}

// A seat is what a database knows of the process that drives it.
type seat struct {
	holder *process      // has the session lock
	lost   chan struct{} // of the holder's session
	token  int64         // of the last claim
}

type lateEffect struct {
	at  time.Time
	run func()
}

type logEntry struct {
	id      int64 // of a row
	nonce   string
	epoch   int64
	viaLink bool
}

type fakeTx struct {
	router bool
	passed bool // the gate; holds its lock either way
	id     int64
	stuck  time.Time // does not move before
}

// fakeDB is one database: what PostgreSQL would keep.
type fakeDB struct {
	side   Side
	row    Ownership // zero: not installed
	armed  bool
	closes int // CloseGates that took effect: a late OpenGate from before does nothing
	seq    int64
	rows   map[int64]bool
	log    []logEntry
	txs    []*fakeTx
	seat   seat
}

type linkState struct {
	from, to   Side
	prepared   bool
	afterEpoch int64
	seen       bool
	pos        int
	nonces     map[string]bool
}

var (
	errFault = errors.New("connection lost")
	errDead  = errors.New("killed")
	errLink  = errors.New("row cannot be applied")
)

func newWorld(seed uint64) *world {
	w := &world{
		rng: rand.New(rand.NewPCG(seed, 0x51c0)), db: map[Side]*fakeDB{}, links: map[Side]*linkState{},
		route: Source, acked: map[int64]bool{},
	}
	for _, s := range []Side{Source, Target} {
		w.db[s] = &fakeDB{side: s, rows: map[int64]bool{}}
		w.links[s] = &linkState{from: s, to: s.Other()}
	}
	w.blind = w.rng.IntN(2) == 0
	for range 5 {
		w.write(w.db[Source], &fakeTx{passed: true, id: w.nextval(w.db[Source])})
	}
	return w
}

func (w *world) fail(format string, args ...any) {
	if w.violation == nil {
		w.violation = fmt.Errorf(format, args...)
	}
}

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

func (w *world) nextval(d *fakeDB) int64 {
	d.seq++
	return d.seq
}

// step lets clients, links and lost messages go on a little.
func (w *world) step(n int) {
	now := time.Now()
	w.late = slices.DeleteFunc(w.late, func(l lateEffect) bool {
		if l.at.After(now) {
			return false
		}
		l.run()
		w.check()
		return true
	})
	for range n {
		switch w.rng.IntN(5) {
		case 0:
			w.beginTx()
		case 1, 2:
			w.moveTx(now)
		default:
			w.applySome()
		}
	}
}

// beginTx starts a writer, through the router or past it.
func (w *world) beginTx() {
	side, router := w.route, true
	if w.rng.IntN(3) == 0 {
		side, router = []Side{Source, Target}[w.rng.IntN(2)], false
	} else if w.held {
		return
	}
	d := w.db[side]
	if d.row.Epoch == 0 && side != w.freeSide() || d.row.Epoch > 0 && !d.armed && side == Target {
		return // not part of a migration now, or not filled yet
	}
	if len(d.txs) > 4 {
		return
	}
	tx := &fakeTx{router: router}
	if w.faults > 0 && w.rng.IntN(40) == 0 {
		tx.stuck = time.Now().Add(time.Duration(w.rng.IntN(20_000)) * time.Millisecond)
	}
	d.txs = append(d.txs, tx)
}

// freeSide is where clients write when that side has no schema ficus.
func (w *world) freeSide() Side {
	if o := w.db[Source].row; o.Epoch > 0 && o.Owner == Target {
		return Target
	}
	return Source
}

// moveTx lets one writer take its next step: read the gate, or end.
func (w *world) moveTx(now time.Time) {
	d := w.db[[]Side{Source, Target}[w.rng.IntN(2)]]
	if len(d.txs) == 0 {
		return
	}
	i := w.rng.IntN(len(d.txs))
	tx := d.txs[i]
	switch {
	case tx.stuck.After(now):
	case !tx.passed:
		if d.armed && !d.row.GateOpen {
			d.txs = slices.Delete(d.txs, i, i+1) // refused with 25006
			return
		}
		tx.passed, tx.id = true, w.nextval(d)
	default:
		d.txs = slices.Delete(d.txs, i, i+1)
		if w.rng.IntN(10) > 0 {
			w.write(d, tx)
		}
	}
}

// write commits and acknowledges.
func (w *world) write(d *fakeDB, tx *fakeTx) {
	if w.acked[tx.id] {
		w.fail("%s handed out sequence value %d again", d.side, tx.id)
	}
	d.rows[tx.id], w.acked[tx.id] = true, true
	d.log = append(d.log, logEntry{id: tx.id})
}

// applySome lets the running links apply a few entries.
func (w *world) applySome() {
	runs := map[Side]bool{}
	for _, p := range w.procs {
		for side := range p.running {
			runs[side] = runs[side] || p.running[side] && !p.dead && !p.stands.After(time.Now())
		}
		if p.running[Source] && p.running[Target] {
			w.fail("both links run at once")
		}
	}
	for _, side := range []Side{Source, Target} {
		l := w.links[side]
		if !runs[side] || !l.prepared {
			continue
		}
		from, to := w.db[l.from], w.db[l.to]
		for n := w.rng.IntN(6); n > 0 && l.pos < len(from.log); n-- {
			e := from.log[l.pos]
			l.pos++
			switch {
			case e.epoch > 0:
				l.seen = l.seen || e.epoch >= l.afterEpoch
			case !l.seen:
			case e.nonce != "":
				l.nonces[e.nonce] = true
			case to.rows[e.id]:
				w.fail("link from the %s applies row %d, which is there already", l.from, e.id)
			default:
				to.rows[e.id] = true
				to.log = append(to.log, logEntry{id: e.id, viaLink: true})
			}
		}
	}
}

// check asserts what must hold at every moment.
func (w *world) check() {
	s, t := w.db[Source].row, w.db[Target].row
	if s.Epoch > 0 && t.Epoch > 0 && s.GateOpen && t.GateOpen {
		w.fail("two owners are open")
	}
}

// owner is who the databases say owns the data.
func (w *world) owner() Side {
	return owners{Source: w.db[Source].row, Target: w.db[Target].row}.newest().Owner
}

// nothingLost asserts that a side holds every acknowledged write.
func (w *world) nothingLost(side Side, when string) {
	for id := range w.acked {
		if !w.db[side].rows[id] {
			w.fail("%s: acknowledged write %d is not on the %s", when, id, side)
			return
		}
	}
}

// call is how every fake does its work.
func (w *world) call(ctx context.Context, p *process, name string, lateable bool, effect func() error) error {
	w.mu.Lock()
	latency := time.Duration(1 + w.rng.IntN(2_000_000))
	w.mu.Unlock()
	if err := backoff.Sleep(ctx, latency); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.faults > 0 && !p.dead && w.rng.Float64() < w.faults/4 {
		p.stands = time.Now().Add(time.Duration(w.rng.Int64N(int64(2 * time.Minute))))
		w.note("engine %d stands still at %s", p.machine, name)
		if w.rng.IntN(3) > 0 { // its sessions do not survive that
			w.cutOff(p)
		}
	}
	for !p.dead && p.stands.After(time.Now()) { // it does not see its context end either
		d := time.Until(p.stands)
		w.mu.Unlock()
		time.Sleep(d)
		w.mu.Lock()
	}
	if p.dead {
		return errDead
	}
	w.step(1 + w.rng.IntN(4))
	if w.rng.Float64() >= w.faults {
		err := effect()
		w.check()
		return err
	}
	kind := w.rng.IntN(9)
	w.note("fault %d at %s", kind, name)
	switch kind {
	case 8: // its session locks go with their connections
		w.cutOff(p)
	case 0, 1: // request lost
	case 2: // reply lost
		_ = effect()
		w.check()
	case 3: // request delayed in the network
		w.delay(lateable, effect)
	case 4, 5: // killed before
		w.die(p)
		return errDead
	case 6: // killed after
		_ = effect()
		w.check()
		w.die(p)
		return errDead
	case 7: // killed, and the request still travels
		w.delay(lateable, effect)
		w.die(p)
		return errDead
	}
	return fmt.Errorf("%s: %w", name, errFault)
}

func (w *world) delay(lateable bool, effect func() error) {
	if lateable {
		at := time.Now().Add(time.Duration(w.rng.Int64N(int64(20 * time.Second))))
		w.late = append(w.late, lateEffect{at, func() { _ = effect() }})
	}
}

func (w *world) die(p *process) {
	if !p.dead {
		w.kills++
		p.dead = true
		p.running = map[Side]bool{}
		p.stands = time.Time{}
		p.kill(errDead)
		w.cutOff(p)
	}
}

// cutOff ends the sessions that hold a process's claims.
func (w *world) cutOff(p *process) {
	for _, d := range w.db {
		if d.seat.holder == p {
			close(d.seat.lost)
			d.seat.holder, d.seat.lost = nil, nil
		}
	}
}

// drives reports whether nobody has replaced a process.
func (w *world) drives(p *process) bool {
	return w.unclaimed || w.db[Source].seat.token == p.claimed[Source] && w.db[Target].seat.token == p.claimed[Target]
}

// poll repeats cond, letting the world go on, until it holds or ctx ends.
func (w *world) poll(ctx context.Context, p *process, cond func() bool) error {
	for {
		w.mu.Lock()
		if p.dead {
			w.mu.Unlock()
			return errDead
		}
		stands := time.Until(p.stands)
		w.step(3)
		ok := cond()
		d := time.Duration(1 + w.rng.IntN(200_000_000))
		if w.faults == 0 {
			d /= 100
		}
		w.mu.Unlock()
		if stands > 0 {
			time.Sleep(stands)
			continue
		}
		if ok {
			return nil
		}
		if err := backoff.Sleep(ctx, d); err != nil {
			return err
		}
	}
}

// database is one engine's hold on a fakeDB.
type database struct {
	w *world
	p *process
	d *fakeDB
}

// Claim is two round trips to the database in the session that holds the lock.
func (h database) Claim(ctx context.Context) (lost <-chan struct{}, err error) {
	err = h.w.call(ctx, h.p, "claim", false, func() error {
		at := &h.d.seat
		if h.w.unclaimed {
			return nil
		}
		switch {
		case at.holder != nil && at.holder != h.p:
			return ErrDriven
		case at.holder == h.p:
		case h.p.claimed[h.d.side] == at.token && at.token != 0: // nobody came between
			at.holder, at.lost = h.p, make(chan struct{})
		case h.p.claimed[h.d.side] != 0:
			return ErrDeposed
		default:
			at.holder, at.lost, at.token = h.p, make(chan struct{}), at.token+1
			h.p.claimed[h.d.side] = at.token
		}
		lost = at.lost
		return nil
	})
	return lost, err
}

func (h database) Disclaim() {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if at := &h.d.seat; at.holder == h.p {
		close(at.lost)
		at.holder, at.lost = nil, nil
	}
	delete(h.p.claimed, h.d.side)
}

// ifDriven is an effect that a database refuses to a process that was replaced.
func (h database) ifDriven(effect func() error) func() error {
	h.w.mu.Lock()
	mine := h.p.claimed[h.d.side]
	h.w.mu.Unlock()
	return func() error {
		if h.d.seat.token != mine && !h.w.unclaimed {
			return ErrDeposed
		}
		return effect()
	}
}

func (h database) Install(ctx context.Context, name string, owner Side) error {
	return h.w.call(ctx, h.p, "install", false, h.ifDriven(func() error {
		if h.d.row.Epoch == 0 {
			h.d.row = Ownership{Migration: name, Epoch: 1, Owner: owner, GateOpen: owner == h.d.side}
		}
		return nil
	}))
}

func (h database) Ownership(ctx context.Context) (o Ownership, err error) {
	err = h.w.call(ctx, h.p, "ownership", false, func() error { o = h.d.row; return nil })
	return o, err
}

func (h database) Arm(ctx context.Context) error {
	return h.w.call(ctx, h.p, "arm", false, func() error {
		if !h.d.armed { // CREATE TRIGGER waits for writers and goes between two of them
			h.d.txs = nil
		}
		h.d.armed = true
		return nil
	})
}

func (h database) CloseGate(ctx context.Context) error {
	var returned atomic.Bool
	err := h.w.call(ctx, h.p, "close gate", true, h.ifDriven(func() error {
		if h.d.row.Epoch == 0 {
			return errors.New("not installed")
		}
		h.d.closes++
		h.d.row.GateOpen = false
		h.w.lateClosed = h.w.lateClosed || returned.Load()
		return nil
	}))
	returned.Store(true)
	return err
}

func (h database) OpenGate(ctx context.Context) error {
	h.w.mu.Lock()
	closes := h.d.closes
	h.w.mu.Unlock()
	return h.w.call(ctx, h.p, "open gate", true, h.ifDriven(func() error {
		switch {
		case h.d.row.Epoch == 0:
			return errors.New("not installed")
		case h.d.row.Owner != h.d.side:
			return errors.New("not the owner")
		case closes != h.d.closes:
			return errors.New("closed meanwhile")
		}
		if !h.d.row.GateOpen {
			h.w.nothingLost(h.d.side, "opening the gate")
			if h.w.owner() != h.d.side {
				h.w.fail("gate opened on the %s, which does not own", h.d.side)
			}
		}
		h.d.row.GateOpen = true
		return nil
	}))
}

func (h database) WaitWriters(ctx context.Context, _ func([]Blocker)) error {
	var held []*fakeTx
	if err := h.w.call(ctx, h.p, "wait writers", false, func() error { held = slices.Clone(h.d.txs); return nil }); err != nil {
		return err
	}
	return h.w.poll(ctx, h.p, func() bool {
		return !slices.ContainsFunc(held, func(tx *fakeTx) bool { return slices.Contains(h.d.txs, tx) })
	})
}

func (h database) Signal(ctx context.Context, nonce string) error {
	return h.w.call(ctx, h.p, "signal", true, h.ifDriven(func() error {
		h.d.log = append(h.d.log, logEntry{nonce: nonce})
		return nil
	}))
}

func (h database) Own(ctx context.Context, epoch int64, owner Side) error {
	return h.w.call(ctx, h.p, "own", true, h.ifDriven(func() error {
		row := &h.d.row
		switch {
		case row.Epoch == 0:
			return errors.New("not installed")
		case row.Epoch == epoch && row.Owner == owner:
			return nil
		case row.Epoch >= epoch:
			return errors.New("epoch was decided already")
		}
		if owner == h.d.side && row.Owner != owner {
			h.w.promotions++
			h.w.note("point of no return: epoch %d %s", epoch, owner)
			h.w.nothingLost(owner, "point of no return")
			if h.w.db[owner.Other()].row.GateOpen {
				h.w.fail("point of no return with the old owner open")
			}
		}
		row.Epoch, row.Owner = epoch, owner
		h.d.log = append(h.d.log, logEntry{epoch: epoch})
		return nil
	}))
}

func (h database) Sequences(ctx context.Context) (seqs []Sequence, err error) {
	err = h.w.call(ctx, h.p, "sequences", false, func() error {
		seqs = []Sequence{{Name: "s", Next: h.d.seq + 1}}
		return nil
	})
	return seqs, err
}

func (h database) SetSequences(ctx context.Context, seqs []Sequence, headroom int64) error {
	return h.w.call(ctx, h.p, "set sequences", true, func() error {
		h.d.seq = max(h.d.seq, seqs[0].Next-1+headroom)
		return nil
	})
}

func (h database) Uninstall(ctx context.Context) error {
	return h.w.call(ctx, h.p, "uninstall", false, h.ifDriven(func() error {
		if h.w.owner() != h.d.side { // writers who wait there are no part of the migration any more
			h.d.txs = nil
		}
		h.d.row, h.d.armed = Ownership{}, false
		return nil
	}))
}

// link is one engine's hold on a linkState.
type link struct {
	w *world
	p *process
	l *linkState
}

func (h link) Prepare(ctx context.Context, epoch int64) error {
	return h.w.call(ctx, h.p, "prepare", false, func() error {
		if !h.w.drives(h.p) {
			return ErrDeposed
		}
		if h.l.prepared && h.l.afterEpoch == epoch {
			return nil
		}
		h.w.start(h.l, epoch)
		return nil
	})
}

func (w *world) start(l *linkState, epoch int64) {
	*l = linkState{from: l.from, to: l.to, prepared: true, afterEpoch: epoch, seen: epoch == 0, pos: len(w.db[l.from].log), nonces: map[string]bool{}}
}

func (h link) Run(ctx context.Context) error {
	h.w.mu.Lock()
	if h.p.dead {
		h.w.mu.Unlock()
		return errDead
	}
	if !h.l.prepared {
		h.w.mu.Unlock()
		return errors.New("link is not prepared")
	}
	for h.w.busy(h.l.from, h.p) { // the server lets one session use a slot
		h.w.mu.Unlock()
		if err := backoff.Sleep(ctx, time.Second); err != nil {
			return err
		}
		h.w.mu.Lock()
	}
	if h.p.dead {
		h.w.mu.Unlock()
		return errDead
	}
	h.p.running[h.l.from] = true
	dies := h.w.faults > 0 && h.w.rng.IntN(20) == 0
	after := time.Duration(h.w.rng.Int64N(int64(20 * time.Second)))
	h.w.mu.Unlock()
	defer func() {
		h.w.mu.Lock()
		defer h.w.mu.Unlock()
		h.p.running[h.l.from] = false
	}()
	if dies {
		if err := backoff.Sleep(ctx, after); err != nil {
			return err
		}
		return errLink
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// busy reports whether another live process runs the link from a side.
func (w *world) busy(from Side, but *process) bool {
	return slices.ContainsFunc(w.procs, func(p *process) bool { return p != but && !p.dead && p.running[from] && !p.stands.After(time.Now()) })
}

func (h link) Lag(ctx context.Context) (lag Lag, err error) {
	err = h.w.call(ctx, h.p, "lag", false, func() error {
		if !h.l.prepared {
			return errors.New("link is not prepared")
		}
		lag.Bytes = int64(len(h.w.db[h.l.from].log) - h.l.pos)
		return nil
	})
	return lag, err
}

func (h link) WaitSignal(ctx context.Context, nonce string) error {
	return h.w.poll(ctx, h.p, func() bool { return h.l.nonces[nonce] })
}

func (h link) Drop(ctx context.Context) error {
	return h.w.call(ctx, h.p, "drop", false, func() error {
		if !h.w.drives(h.p) {
			return ErrDeposed
		}
		if h.p.running[h.l.from] {
			h.w.fail("link from the %s dropped while it runs", h.l.from)
		}
		if h.w.busy(h.l.from, h.p) {
			return errors.New("slot is active")
		}
		h.l.prepared = false
		return nil
	})
}

// loader copies by snapshot.
type loader struct {
	w *world
	p *process
}

func (h loader) CreateTables(ctx context.Context) error {
	return h.w.call(ctx, h.p, "create tables", false, func() error { return nil })
}

func (h loader) Load(ctx context.Context, _ func(TableProgress), _ func(string, int, int)) (c Copied, err error) {
	err = h.w.call(ctx, h.p, "load", false, func() error {
		if !h.w.drives(h.p) {
			return ErrDeposed // asked right before; see the ADR on one driver for what that leaves open
		}
		if h.w.owner() == Target {
			h.w.fail("load over the owner's data")
			return nil
		}
		h.w.start(h.w.links[Source], 0)
		h.w.db[Target].rows = maps.Clone(h.w.db[Source].rows)
		c.Rows = int64(len(h.w.db[Target].rows))
		return nil
	})
	return c, err
}

func (h loader) Finish(ctx context.Context, _ func(string, int, int)) error {
	return h.w.call(ctx, h.p, "finish", false, func() error { return nil })
}

// verifier compares, unless the world is blind.
type verifier struct {
	w *world
	p *process
}

func (h verifier) Exact(ctx context.Context, owner Side, _ func(int64, int64)) (Proof, error) {
	return h.compare(ctx, "exact", owner, false)
}

func (h verifier) Delta(ctx context.Context, owner Side, fenced bool) (Proof, error) {
	return h.compare(ctx, "delta", owner, fenced)
}

func (h verifier) compare(ctx context.Context, kind string, owner Side, fenced bool) (p Proof, err error) {
	err = h.w.call(ctx, h.p, kind, false, func() error {
		p = Proof{Kind: kind, Time: time.Now(), Rows: int64(len(h.w.db[owner].rows))}
		from, to, l := h.w.db[owner], h.w.db[owner.Other()], h.w.links[owner]
		if h.w.blind {
			return nil
		}
		want := maps.Clone(from.rows)
		if !fenced && l.prepared {
			seen := l.seen
			for _, e := range from.log[l.pos:] {
				seen = seen || e.epoch > 0 && e.epoch >= l.afterEpoch
				if e.id != 0 && !e.viaLink && seen {
					delete(want, e.id)
				}
			}
		}
		if !maps.Equal(want, to.rows) {
			p.Differences = 1
		}
		if h.w.faults > 0 && h.w.rng.IntN(30) == 0 {
			p.Differences++ // somebody wrote there, and mends it later
		}
		return nil
	})
	return p, err
}

// router is a gateway that outlives the engine. One on another machine leads other clients: what a process
// that was replaced tells its own does nothing here, and the fence refuses whom it leads astray.
type router struct {
	w *world
	p *process
}

func (h router) Reads(ctx context.Context, _ int) error {
	return h.w.call(ctx, h.p, "reads", false, func() error { return nil })
}

func (h router) Expect(ctx context.Context, _ Side) error {
	return h.w.call(ctx, h.p, "expect", false, func() error { return nil })
}

func (h router) Hold(ctx context.Context, epoch int64) error {
	err := h.w.call(ctx, h.p, "hold", false, func() error {
		if !h.w.drives(h.p) {
			return nil
		}
		if epoch <= h.w.routed {
			return errors.New("epoch is out of date")
		}
		h.w.held = true
		return nil
	})
	if err != nil {
		return err
	}
	return h.w.poll(ctx, h.p, func() bool {
		return !slices.ContainsFunc(h.w.db[h.w.route].txs, func(tx *fakeTx) bool { return tx.router })
	})
}

func (h router) Release(ctx context.Context, owner Side, epoch int64) error {
	return h.w.call(ctx, h.p, "release", false, func() error {
		if !h.w.drives(h.p) {
			return nil
		}
		if o := h.w.owner(); o != "" && o != owner {
			h.w.fail("clients are led to the %s while the %s owns", owner, o)
		}
		if epoch < h.w.routed {
			return errors.New("epoch is out of date")
		}
		h.w.held, h.w.route, h.w.routed = false, owner, epoch
		return nil
	})
}

func (h router) Stalls() StallStats { return StallStats{Clients: 1, Max: time.Second} }

// journal may lose its tail with the machine, never anything before.
type journal struct {
	w *world
	p *process
}

func (h journal) Append(b []byte) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.p.dead {
		return errDead
	}
	if f := h.w.rng.Float64(); f < h.w.faults/8 {
		h.w.die(h.p)
		return errDead
	} else if f < h.w.faults/4 {
		return errors.New("disk full")
	}
	h.w.journals[h.p.machine] = append(h.w.journals[h.p.machine], slices.Clone(b))
	return nil
}

func (h journal) Scan(fn func([]byte) error) error {
	h.w.mu.Lock()
	records := slices.Clone(h.w.journals[h.p.machine])
	h.w.mu.Unlock()
	for _, r := range records {
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}
