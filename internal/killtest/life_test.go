package killtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/examples/shop"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

// stuck is how long anything may take before it counts as stuck, on a machine that does much else.
const stuck = 3 * time.Minute

// rows is how large the shop is.
const rows = 2000

// A life is one migration from its beginning to its end.
type life struct {
	*campaign
	name           string
	source, target *pgtest.Database
	book, dir      string
	args           []string
	gateway        string // connection string of the front door
	client         *api.Client

	door    []string // arguments of the gateway, where it is a process of its own
	doorman *process // that process
	process *process
	ledger  shop.Ledger
	watch   *watcher
}

// live lives one life.
func (c *campaign) live(t *testing.T, seed uint64, kills int) {
	t.Helper()
	c.lives++
	p := newPlan(seed, kills)
	l := c.born(t, seed)
	stopWatch := l.watch.start(t)
	l.open(t)
	l.begin(t)
	stop := l.work(t, l.gateway, l.source.URL)
	for _, k := range p.begin {
		l.reach(t, k, 0)
		l.strike(t, k, false)
	}
	l.settle(t)
	stopTarget := l.work(t, "", l.target.URL)
	for _, k := range p.switches {
		l.turn(t, k)
	}
	stop()
	stopTarget()
	l.compare(t)
	if p.end != nil {
		l.end(t, *p.end, p.complete)
	}
	stopWatch()
	l.looks += l.watch.looked.Load()
	if found := l.watch.found(); found != "" {
		t.Errorf("two owners: %s", found)
	}
	totals := l.ledger.Totals()
	l.acknowledged += totals.Acknowledged
	l.inDoubt += totals.InDoubt
	if totals.Torn > 0 {
		t.Errorf("readers saw %d orders in part", totals.Torn)
	}
}

// born makes the databases, the playbook and the addresses.
func (c *campaign) born(t *testing.T, seed uint64) *life {
	t.Helper()
	l := &life{campaign: c, name: fmt.Sprintf("life-%d", seed), source: c.source.DB(t), target: c.target.DB(t), dir: t.TempDir()}
	if _, err := shop.Fill(t.Context(), l.source.Conn(t), rows); err != nil {
		t.Fatal(err)
	}
	l.source.Exec(t, `CREATE TABLE public.probe (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz DEFAULT now())`)
	door, reads, address := free(t), free(t), free(t)
	l.book = filepath.Join(t.TempDir(), "book.yaml")
	// The limits are for a machine that has much else to do: what they stop is tested elsewhere.
	router := fmt.Sprintf("listen: %q, read_listen: %q", door, reads)
	if apart(seed) {
		socket := filepath.Join(t.TempDir(), "gw.sock")
		router = fmt.Sprintf("control: [%q]", socket)
		l.door = []string{"gateway", "--json", "--log-level", "info", "--gateway-listen", door, "--gateway-read-listen", reads, "--control", socket, "--source", l.source.URL, "--target", l.target.URL}
	}
	text := fmt.Sprintf("name: %s\nfollow: {ack: applied}\ngates: {lag_window: 1s, max_lag: 100MB, max_lag_time: 1m}\npromote: {reads: [50], reads_watch: 200ms}\nuntil: following\nrouter: {type: gateway, %s}\n", l.name, router)
	if err := os.WriteFile(l.book, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l.gateway = "postgresql://postgres@" + door + "/" + l.source.Name + "?sslmode=disable"
	l.args = []string{"--source", l.source.URL, "--target", l.target.URL}
	l.watch = &watcher{source: l.source, target: l.target}
	var err error
	if l.client, err = api.NewClient("http://"+address, ""); err != nil {
		t.Fatal(err)
	}
	l.args = append([]string{"run", "-f", l.book, "--yes", "--json", "--log-level", "info", "--listen", address}, l.args...)
	t.Cleanup(func() {
		l.client.Close()
		for name, p := range map[string]*process{"ficus": l.process, "the gateway": l.doorman} {
			if p == nil {
				continue
			}
			p.kill()
			if t.Failed() {
				t.Logf("%s said:\n%s", name, p.tail(120))
			}
		}
		c.source.start(t) // the databases are dropped now
		c.target.start(t)
	})
	return l
}

// free returns a loopback address where nobody listens, below the ports that the system gives to outgoing
// connections: one that is taken while ficus is away would keep it from coming back.
func free(t *testing.T) string {
	t.Helper()
	const low, high = 10_000, 32_000
	var config net.ListenConfig
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", low+rand.IntN(high-low))
		if listener, err := config.Listen(t.Context(), "tcp", address); err == nil {
			_ = listener.Close()
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

// begin starts ficus and waits until its doors are open, unless it ends before.
func (l *life) begin(t *testing.T) {
	t.Helper()
	l.process = l.listening(t, append(l.args, "--data-dir", l.dir))
}

// open starts the gateway, where it is a process of its own.
func (l *life) open(t *testing.T) {
	t.Helper()
	if l.door == nil {
		return
	}
	l.doorman = l.listening(t, l.door)
	if l.doorman.ended() {
		t.Fatalf("the gateway does not start:\n%s", l.doorman.tail(40))
	}
}

// listening starts the program and waits until it listens, or has ended.
func (l *life) listening(t *testing.T, args []string) *process {
	t.Helper()
	p, err := start(t.Context(), l.program, args...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), stuck)
	defer cancel()
	if !p.next(ctx, 0, func(e line) bool { return e.Type == "listening" }) && !p.ended() {
		p.kill()
		t.Fatalf("the doors do not open:\n%s", p.tail(40))
	}
	return p
}

// work lets customers in, through the gateway unless that is "", and past it.
func (l *life) work(t *testing.T, gateway, direct string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var ended []chan error
	for _, load := range []shop.Load{
		{Write: gateway, Read: gateway, Writers: 4, Readers: 2, Rate: 80, Ledger: &l.ledger},
		{Write: direct, Writers: 2, Rate: 10, Ledger: &l.ledger},
	} {
		if load.Write == "" {
			continue
		}
		done := make(chan error, 1)
		ended = append(ended, done)
		go func() { done <- load.Run(ctx) }() // stop waits for it
	}
	stopped := false
	stop = func() {
		cancel()
		for _, done := range ended {
			if stopped {
				return
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		stopped = true
	}
	t.Cleanup(stop)
	enough := l.ledger.Acknowledged() + 3
	if gateway != "" {
		pgtest.Eventually(t, "customers to work", func() bool { return l.ledger.Acknowledged() > enough })
	}
	return stop
}

// turn asks for the other owner and kills on the way there.
func (l *life) turn(t *testing.T, k kill) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stuck)
	defer cancel()
	s, err := l.client.Get(ctx, l.name)
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	verb := migrate.Promote
	if s.Phase == migrate.Promoted {
		verb = migrate.Rollback
	}
	mark := l.process.at()
	if err := l.client.Do(ctx, l.name, migrate.Command{Verb: verb, Actor: "test"}); err != nil && !errors.Is(err, migrate.ErrNotNow) {
		t.Fatalf("%s: %v", verb, err)
	}
	// What was undone may have gone on by itself, or the switch may go the other way than was planned.
	k.at.Back = verb == migrate.Rollback
	l.reach(t, k, mark)
	l.strike(t, k, true)
	l.settle(t)
}

// reach waits for the moment of a kill, in what ficus prints from line number mark on; what rests before ends the wait.
func (l *life) reach(t *testing.T, k kill, mark int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stuck)
	defer cancel()
	hit := k.any
	if !hit {
		came := l.process.next(ctx, mark, func(e line) bool {
			hit = e.Type == "step" && e.Message == k.at.message()
			return hit || rests(e) || e.Type == "result" && mark == 0
		})
		if !came && ctx.Err() != nil {
			t.Fatalf("neither %s nor an end of it came within %s:\n%s", k.at, stuck, l.process.tail(60))
		}
	}
	switch {
	case k.any:
		l.anyMoment++
	case hit:
		l.hit[k.at]++
	default:
		l.missed++
	}
	pause(t.Context(), k.after)
}

// rests reports whether a migration that prints this goes no further by itself.
func rests(e line) bool {
	if e.Type == "step" {
		return e.Message == "stand-by: started" || e.Message == "follow-again: started"
	}
	if e.Type != "phase" {
		return false
	}
	switch e.Phase {
	case migrate.Completed, migrate.Cancelled, migrate.Failed:
		return true
	case migrate.ReadsSwitched, migrate.Promoted, migrate.Verifying:
		return strings.Contains(e.Message, "undone")
	case migrate.Pending, migrate.Preparing, migrate.Copying, migrate.CatchingUp, migrate.Following, migrate.Promoting, migrate.RollingBack, migrate.RolledBack:
	}
	return false
}

// strike kills and brings back what was killed. switching: the databases alone must be able to tell the state.
func (l *life) strike(t *testing.T, k kill, switching bool) {
	t.Helper()
	l.kills++
	l.by[k.victim.String()]++
	t.Logf("kill %d: %s", l.kills, k)
	if k.victim.ficus {
		l.process.kill()
	}
	if k.victim.gateway {
		l.doorman.kill()
	}
	if k.victim.source {
		l.campaign.source.kill9(t)
	}
	if k.victim.target {
		l.campaign.target.kill9(t)
	}
	pause(t.Context(), k.down)
	l.campaign.source.start(t)
	l.campaign.target.start(t)
	if k.victim.gateway {
		l.open(t)
	}
	if k.victim.ficus {
		if switching {
			l.recover(t)
		}
		if k.victim.disk {
			l.dir = t.TempDir()
		}
		l.begin(t)
	}
}

// recover looks what the databases alone tell, while nothing drives them.
func (l *life) recover(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stuck)
	defer cancel()
	found, status, err := run(ctx, l.program, "recover", "--json", "--source", l.source.URL, "--target", l.target.URL)
	if err != nil || status != 0 || found["owner"] == nil {
		t.Errorf("recover: status %d, %v, %v", status, found, err)
	}
}

// settle waits until the migration rests, with an owner that takes writes through the gateway. What a
// person would do on the way is done, and counted.
func (l *life) settle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stuck)
	defer cancel()
	began, wrote := time.Now(), time.Duration(0)
	var last string
	failing := 0
	for {
		if ctx.Err() != nil {
			t.Fatalf("stuck: %s\n%s", last, l.process.tail(80))
		}
		if l.process.ended() {
			l.note(t, fmt.Sprintf("started again after it ended by itself, status %d", l.process.status()))
			l.begin(t)
		}
		if wrote == 0 && l.writes(ctx) {
			wrote = time.Since(began)
			l.longest = max(l.longest, wrote)
		}
		s, err := l.client.Get(ctx, l.name)
		last = fmt.Sprintf("wrote %v, phase %s, step %s, waiting for %q, error %q, %v", wrote > 0, s.Phase, s.Step, s.WaitingFor, s.Error, err)
		switch {
		case err != nil:
		case s.Phase == migrate.Failed || s.Error != "" && s.WaitingFor == "" && strings.Contains(s.Hint, "ficus resume"):
			if failing++; failing > 20 { // it had two seconds to get over it
				failing = 0
				l.note(t, "resume: "+s.Error)
				_ = l.client.Do(ctx, l.name, migrate.Command{Verb: migrate.Resume, Actor: "test"}) // may have gone on by itself meanwhile
			}
		case wrote > 0 && resting(s):
			return
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func resting(s migrate.Status) bool {
	if !s.Running {
		return false
	}
	switch s.Phase {
	case migrate.Promoted, migrate.RolledBack: // what was undone is tried again soon, unless it waits for a person
		return s.Lag != nil && s.Lag.Bytes < 1<<20 && s.Lag.Time < 5*time.Second && (s.Error == "" || s.WaitingFor == string(migrate.Rollback))
	case migrate.Following, migrate.Verifying, migrate.ReadsSwitched:
		return s.WaitingFor == string(migrate.Promote)
	case migrate.Pending, migrate.Preparing, migrate.Copying, migrate.CatchingUp, migrate.Promoting, migrate.RollingBack, migrate.Completed, migrate.Cancelled, migrate.Failed:
	}
	return false
}

// note counts what had to be done besides starting what was killed.
func (l *life) note(t *testing.T, what string) {
	t.Helper()
	short, _, _ := strings.Cut(what, "\n")
	l.notes[short[:min(len(short), 160)]]++
	t.Logf("needed: %s\n%s", what, l.process.tail(12))
}

// writes makes one transaction through the gateway.
func (l *life) writes(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, l.gateway)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, `INSERT INTO public.probe DEFAULT VALUES`)
	return err == nil
}

// pause lets time pass, which is what the kills are about.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
