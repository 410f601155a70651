package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	rnd "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// A Share is what a percentage of reads counts.
type Share string

// The shares.
const (
	BySession     Share = "session"     // a session keeps its backend while the percentage stands
	ByTransaction Share = "transaction" // each transaction is led anew
)

// A Causality is what becomes of a read whose user has written when the other backend has not applied that yet.
type Causality string

// The causalities.
const (
	SeeLater Causality = "no"    // it is read without the write
	SeeOwner Causality = "owner" // it is read on the owner
	SeeWait  Causality = "wait"  // it waits for the write, and after MaxWait is read on the owner
)

// Reads tunes the read-only door.
type Reads struct {
	// By is what Gateway.Reads counts (default BySession).
	By Share
	// Users and Applications are those whose sessions go through the read-only door whichever they come
	// to; a name may end in * (default: none).
	Users, Applications []string
	// YourWrites is for users that read what they have just written (default SeeLater).
	YourWrites Causality
	// MaxWait is how long a read waits for it (default 500 ms).
	MaxWait time.Duration
	// Passed says how far the backend that does not own has applied what that owner has written. YourWrites
	// and Shadow need it.
	Passed func(owner Backend) change.LSN

	// MaxErrors, MaxSlower and MinReads say when reads step back to the percentage before: when the share of
	// those that fail is higher than on the owner by MaxErrors (default 0.01), or their 95th percentile
	// MaxSlower times the owner's (default 5), both over MinReads reads at least (default 100). Negative: that
	// is not looked at.
	MaxErrors, MaxSlower float64
	MinReads             int
	// MaxMismatches is which share of shadow reads may be answered otherwise before reads step back (default
	// 0.001; negative: that is not looked at).
	MaxMismatches float64
	// Look is how often that is looked at (default 1 s).
	Look time.Duration
}

func (c Reads) withDefaults() Reads {
	c.By = cmp.Or(c.By, BySession)
	c.YourWrites = cmp.Or(c.YourWrites, SeeLater)
	c.MaxWait = cmp.Or(c.MaxWait, 500*time.Millisecond)
	c.MaxErrors = cmp.Or(c.MaxErrors, 0.01)
	c.MaxSlower = cmp.Or(c.MaxSlower, 5)
	c.MinReads = cmp.Or(c.MinReads, 100)
	c.MaxMismatches = cmp.Or(c.MaxMismatches, 0.001)
	c.Look = cmp.Or(c.Look, time.Second)
	return c
}

func (c Reads) validate() error {
	switch {
	case !slices.Contains([]Share{"", BySession, ByTransaction}, c.By):
		return fmt.Errorf("gateway: reads by %q: want %s or %s", c.By, BySession, ByTransaction)
	case !slices.Contains([]Causality{"", SeeLater, SeeOwner, SeeWait}, c.YourWrites):
		return fmt.Errorf("gateway: your writes %q: want %s, %s or %s", c.YourWrites, SeeLater, SeeOwner, SeeWait)
	case c.Passed == nil && c.YourWrites != "" && c.YourWrites != SeeLater:
		return errors.New("gateway: nobody says how far the other backend has come, which reads after writes need")
	}
	return nil
}

// validateReads checks what is said of reads and shadow reads.
func (c Config) validateReads() error {
	kept := c.Reads.By == ByTransaction || c.Shadow.Share > 0 || c.Reads.YourWrites != "" && c.Reads.YourWrites != SeeLater
	if kept && c.Pooling == TransactionPooling {
		return errors.New("gateway: reads by transaction, after writes, and shadow reads need a server session per client: they do not go with pooled transactions")
	}
	return errors.Join(c.Reads.validate(), c.Shadow.validate(c.Reads))
}

// door returns the door that a session goes through, having come to d.
func (c Reads) door(d door, who *identity) door {
	if named(c.Users, who.user) || named(c.Applications, who.params["application_name"]) {
		return readOnly
	}
	return d
}

// named reports whether one of the patterns is name, or its beginning.
func named(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if head, ok := strings.CutSuffix(p, "*"); ok {
			return strings.HasPrefix(name, head)
		}
		return p == name
	})
}

// reads is what the gateway keeps for the read-only door.
type reads struct {
	marks  sync.Map // user -> *atomic.Int64, the units on the read-write door
	pos    positions
	meters map[Backend]*meter // of the read-only door
	count  struct{ waited, owner, back atomic.Int64 }

	mu struct {
		sync.Mutex
		steps []int // percentages below the present one, to step back to
		fault error // why the gateway stepped back since the last Reads
	}
}

func newReads(cfg *Config) *reads {
	r := &reads{meters: map[Backend]*meter{}}
	for b := range cfg.Backends {
		r.meters[b] = &meter{}
	}
	r.pos = positions{cfg: cfg, turn: make(chan struct{}, 1)}
	return r
}

// mark returns the counter of a user's units on the read-write door.
func (r *reads) mark(user string) *atomic.Int64 {
	m, _ := r.marks.LoadOrStore(user, new(atomic.Int64))
	return m.(*atomic.Int64) //nolint:errcheck // nothing else is stored
}

// A choice is what a session of the read-only door decides about its next transaction. It is upstream's.
type choice struct {
	each   bool          // transaction is led anew, so that the server session on the other side is kept
	mark   *atomic.Int64 // of the user; nil when nobody asks whether it has written
	seen   int64         // what mark was when the other backend had caught up last
	behind bool          // the other backend has not: the owner is read
}

func (g *Gateway) newChoice(who *identity) choice {
	c := choice{seen: -1}
	if g.cfg.Reads.YourWrites != SeeLater {
		c.mark = g.reads.mark(who.user)
	}
	c.each = who.door == readOnly && (c.mark != nil || g.cfg.Reads.By == ByTransaction)
	return c
}

// chooses reports whether the transaction that begins now must be led. Call it with mu held.
func (s *session) choosesLocked(r *route) bool {
	return s.choice.each && r.percent > 0 && s.mu.track.border()
}

// choose decides where the next transaction of a read-only session belongs.
func (s *session) choose(ctx context.Context, r *route) {
	if !s.choice.each {
		return
	}
	if s.g.cfg.Reads.By == ByTransaction {
		s.number = rnd.Float64() * 100
	}
	s.choice.behind = false
	if s.choice.mark != nil && s.home(r) != r.owner {
		s.choice.behind = !s.caughtUp(ctx, r.owner)
		if s.choice.behind {
			s.g.reads.count.owner.Add(1)
		}
	}
}

// caughtUp reports whether the other backend shows everything that the user has written, and waits for it
// when it is told to.
func (s *session) caughtUp(ctx context.Context, owner Backend) bool {
	n := s.choice.mark.Load() // before the position: what ended by now stands before it
	if n == s.choice.seen {
		return true
	}
	cfg := &s.g.cfg.Reads
	ctx, cancel := context.WithTimeout(ctx, cfg.MaxWait)
	defer cancel()
	at, err := s.g.reads.pos.ask(ctx, owner)
	if err != nil {
		return false
	}
	if cfg.Passed(owner) < at && (cfg.YourWrites != SeeWait || !s.g.awaitPassed(ctx, owner, at)) {
		return false
	}
	s.choice.seen = n
	return true
}

// awaitPassed waits until the other backend has applied the owner's WAL up to a position.
func (g *Gateway) awaitPassed(ctx context.Context, owner Backend, at change.LSN) bool {
	g.reads.count.waited.Add(1)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for g.cfg.Reads.Passed(owner) < at {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// recall brings a session to the server session that it has on a backend already, from a time when it was there or
// was to go there, if it finds there the state that it has now.
func (s *session) recall(to Backend) (done bool, err error) {
	if s.spare == nil || s.spare.srv.backend != to {
		return false, nil
	}
	st, err := s.capture()
	if err != nil {
		return false, nil //nolint:nilerr // prepare meets it again, and decides
	}
	if !st.equal(s.spare.state) {
		s.discardSpare()
		return false, nil
	}
	_, err = s.spare.srv.exchange(appendMessage(nil, &pgproto3.Sync{}), s.g.cfg.MoveTimeout, func([][]byte) {})
	if err != nil { // it ended meanwhile, by a time-out of its own perhaps
		s.discardSpare()
		return false, nil //nolint:nilerr // prepare makes another one
	}
	s.discardReady()
	s.ready, s.spare = &prepared{s.spare.srv, st}, nil
	return true, s.swap()
}

// keep makes a server session, which has the state st, the one to come back to.
func (s *session) keep(srv *server, st *state) {
	s.discardSpare()
	maps.DeleteFunc(srv.params, func(name, _ string) bool { return !slices.Contains(fixedParams(), name) })
	s.spare = &prepared{srv, st}
}

func (s *session) discardSpare() {
	if s.spare != nil {
		s.spare.srv.bye()
		s.spare = nil
	}
}

// fixedParams are reported parameters that no SET changes: those that a client must be told on coming back.
func fixedParams() []string {
	return []string{"server_version", "server_encoding", "in_hot_standby", "integer_datetimes"}
}

// equal reports whether two states are the same, in whatever order they were read.
func (s *state) equal(o *state) bool {
	bySetting := func(a, b [2]string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) }
	byName := func(a, b statement) int { return cmp.Compare(a.name, b.name) }
	return slices.Equal(slices.SortedFunc(slices.Values(s.settings), bySetting), slices.SortedFunc(slices.Values(o.settings), bySetting)) &&
		slices.EqualFunc(slices.SortedFunc(slices.Values(s.statements), byName), slices.SortedFunc(slices.Values(o.statements), byName), statement.same)
}

// same compares two statements; OIDs of types that a database made itself differ between servers.
func (a statement) same(b statement) bool {
	if a.name != b.name || a.text != b.text || a.fromSQL != b.fromSQL || !slices.Equal(a.types, b.types) {
		return false
	}
	return slices.EqualFunc(a.oids, b.oids, func(x, y uint32) bool { return x == y || x >= firstUserOID && y >= firstUserOID })
}

// positions tells where the owner's WAL ends. Whoever asks gets an answer to a question that was put after
// they had asked; those who ask at the same time share one.
type positions struct {
	cfg  *Config
	turn chan struct{} // held by who puts a question; it has the connection then

	conn    *pgx.Conn
	backend Backend

	mu struct {
		sync.Mutex
		next *round // not put yet
	}
}

// A round is one question.
type round struct {
	done chan struct{}
	at   change.LSN
	err  error
}

func (p *positions) ask(ctx context.Context, owner Backend) (change.LSN, error) {
	p.mu.Lock()
	r := p.mu.next
	first := r == nil
	if first {
		r = &round{done: make(chan struct{})}
		p.mu.next = r
	}
	p.mu.Unlock()
	if first {
		p.put(ctx, owner, r)
	}
	select {
	case <-r.done:
		return r.at, r.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// put asks for all who share the round.
func (p *positions) put(ctx context.Context, owner Backend, r *round) {
	defer close(r.done)
	var late error
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		late = context.Cause(ctx)
	}
	p.mu.Lock()
	p.mu.next = nil // who comes now needs a later answer
	p.mu.Unlock()
	if late != nil {
		r.err = late
		return
	}
	r.at, r.err = p.query(ctx, owner)
}

func (p *positions) query(ctx context.Context, owner Backend) (at change.LSN, err error) {
	if p.conn != nil && (p.backend != owner || p.conn.IsClosed()) {
		p.closeConn(ctx)
	}
	if p.conn == nil {
		dsn := p.cfg.Backends[owner]
		conn, err := dsn.Connect(ctx, "reads")
		if err != nil {
			return 0, err
		}
		p.conn, p.backend = conn, owner
	}
	var text string
	if err := p.conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&text); err != nil {
		if pg.Code(err) == "" {
			p.closeConn(ctx)
		}
		return 0, err
	}
	return change.ParseLSN(text)
}

// close ends the connection. Nobody may ask any more.
func (p *positions) close(ctx context.Context) {
	p.turn <- struct{}{}
	p.closeConn(ctx)
}

func (p *positions) closeConn(ctx context.Context) {
	if p.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = p.conn.Close(ctx)
	p.conn = nil
}
