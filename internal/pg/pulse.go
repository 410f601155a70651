package pg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// probeTimeout bounds a question about a session that is silent.
const probeTimeout = 15 * time.Second

// A Pulse feels whether the sessions of one piece of work are alive. A network can swallow all that
// is sent, and nothing closes the connection then; and a server may be silent for long because it is
// at work. So a session without a sign of life is asked for, over another one.
type Pulse struct {
	timeout time.Duration
	beat    atomic.Int64 // when a byte moved last, on any of the sessions, Unix nanoseconds
	resting atomic.Int64 // how many parts of the work wait for something else

	mu struct {
		sync.Mutex
		sessions []heard
	}
}

type heard struct {
	name string
	dsn  DSN
	pid  uint32
	conn *beating
}

// NewPulse returns a Pulse that gives sessions up on which nothing has moved for that long.
func NewPulse(timeout time.Duration) *Pulse { return &Pulse{timeout: timeout} }

// Connect is [DSN.Connect] for a session that counts. name is what the operator calls the server; the
// one that data comes from is connected first.
func (p *Pulse) Connect(ctx context.Context, dsn DSN, name, purpose string, opts ...Option) (*pgx.Conn, error) {
	var b *beating // of the attempt that succeeds
	conn, err := dsn.Connect(ctx, purpose, append(opts, func(cfg *pgx.ConnConfig) {
		cfg.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, c net.Conn) (net.Conn, error) {
			b = &beating{Conn: c, pulse: p}
			return b, nil
		}
	})...)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.sessions = append(p.mu.sessions, heard{name, dsn, conn.PgConn().PID(), b})
	return conn, nil
}

// Rest says that the work waits for something else than its sessions until wake is called.
func (p *Pulse) Rest() (wake func()) {
	p.resting.Add(1)
	return func() {
		p.touch()
		p.resting.Add(-1)
	}
}

// Run calls work, and ends it with a [SilentError] when nothing moves on its sessions any more and no
// server is at work for one of them. The context of work is cancelled then, with that error as its cause.
func (p *Pulse) Run(ctx context.Context, work func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watching, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	p.touch()
	watch.Go(func() {
		if err := p.watch(watching); err != nil {
			cancel(err)
		}
	})
	err := work(ctx)
	stop()
	watch.Wait()
	if silent, ok := context.Cause(ctx).(*SilentError); ok && err != nil && !errors.Is(err, silent) { //nolint:errorlint // it is given to cancel above, as it is
		return silent
	}
	return err
}

// watch returns an error when the sessions are dead, and nil when ctx is done.
func (p *Pulse) watch(ctx context.Context) error {
	tick := time.NewTicker(max(p.timeout/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		before := p.beat.Load()
		silent := time.Since(time.Unix(0, before))
		if silent < p.timeout || p.resting.Load() > 0 {
			continue
		}
		switch busy := p.atWork(ctx); {
		case ctx.Err() != nil:
			return nil
		case busy:
			p.beat.CompareAndSwap(before, time.Now().UnixNano()) // and asked again after the same time
		case p.beat.Load() == before:
			return &SilentError{For: silent, Who: p.awaited()}
		}
	}
}

func (p *Pulse) touch() { p.beat.Store(time.Now().UnixNano()) }

// atWork reports whether any server works for one of the sessions.
func (p *Pulse) atWork(ctx context.Context) bool {
	p.mu.Lock()
	sessions := p.mu.sessions
	p.mu.Unlock()
	for _, s := range sessions {
		if AtWork(ctx, s.dsn, s.pid) {
			return true
		}
	}
	return false
}

// awaited names the server that the work waits for, "" when that is not known. Who receives rows is
// listened to all the while, for its complaints, so of two it is the first.
func (p *Pulse) awaited() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.mu.sessions {
		if s.conn.waiting.Load() > 0 {
			return s.name
		}
	}
	return ""
}

// A beating connection tells its pulse of every byte.
type beating struct {
	net.Conn

	pulse   *Pulse
	waiting atomic.Int64 // reads and writes that are under way
}

func (b *beating) Read(data []byte) (int, error) {
	b.waiting.Add(1)
	n, err := b.Conn.Read(data)
	b.waiting.Add(-1)
	if n > 0 {
		b.pulse.touch()
	}
	return n, err
}

func (b *beating) Write(data []byte) (int, error) {
	b.waiting.Add(1)
	n, err := b.Conn.Write(data)
	b.waiting.Add(-1)
	if n > 0 {
		b.pulse.touch()
	}
	return n, err
}

// A SilentError says that connections are dead though nothing has closed them. It counts as a
// time-out, which a new connection may mend.
type SilentError struct {
	For time.Duration
	Who string // the server that is waited for, as an operator calls it; "" when that is not known
}

func (e *SilentError) Error() string {
	from := ""
	if e.Who != "" {
		from = " from the " + e.Who
	}
	return fmt.Sprintf("no answer%s for %s, and no server is at work: the connection is dead", from, e.For.Round(time.Second))
}

// Timeout marks the error as a time-out, as net.Error has it.
func (e *SilentError) Timeout() bool { return true }

// Temporary completes net.Error.
func (e *SilentError) Temporary() bool { return true }

// AtWork asks over another session whether a server works on what it was given, rather than to wait
// for its client. One that does not answer does not work either.
func AtWork(ctx context.Context, dsn DSN, pid uint32) (busy bool) {
	_ = probe(ctx, dsn, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT count(*) > 0 FROM pg_stat_activity
			WHERE pid = $1 AND state = 'active' AND coalesce(wait_event, '') NOT IN ('ClientRead', 'ClientWrite')`, int64(pid)).Scan(&busy)
	})
	return busy
}

// Unblock ends the sessions of this purpose that a session waits for and that are older than it, but for
// those in spare, and returns how many there were. A server may keep one for hours whose client is long gone: nothing
// has told it so.
func Unblock(ctx context.Context, dsn DSN, pid uint32, purpose string, spare ...uint32) (ended int, err error) {
	spared := make([]int64, len(spare))
	for i, p := range spare {
		spared[i] = int64(p)
	}
	err = probe(ctx, dsn, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(old.pid)) FROM pg_stat_activity old, pg_stat_activity us
			WHERE us.pid = $1 AND old.pid = ANY (pg_blocking_pids(us.pid)) AND old.application_name = 'ficus/' || $2::text
			AND old.usename = us.usename AND old.datname = us.datname AND old.backend_start < us.backend_start AND old.pid <> ALL ($3)`, int64(pid), purpose, spared).Scan(&ended)
	})
	return ended, err
}

// probe asks something over a session of its own.
func probe(ctx context.Context, dsn DSN, ask func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := dsn.Connect(ctx, "probe")
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // whoever needed an answer has it
	}()
	return ask(ctx, conn)
}
