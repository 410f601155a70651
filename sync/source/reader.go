package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// syncPause lies between two syncs. As often as the disk lets it, they took a tenth of the time in which
// a backlog is received.
const syncPause = 20 * time.Millisecond

// steadyAfter is how long after a failure a reader counts as well again that receives: a server that
// cannot decode sends a little before it says so, each time.
const steadyAfter = 5 * time.Second

// receiveTimeout is what Config.ReceiveTimeout is by default.
const receiveTimeout = 60 * time.Second

// A Reader receives the changes of one slot and stores them. Run it once at a time.
type Reader struct {
	cfg      Config
	pos      positions
	identity Identity      // of the server that was read last; Run's alone
	unsynced chan struct{} // holds a token while the stream may have something that is not durable
	// streaming is what is asked for, Run's alone. A server that had a fault is not asked for
	// transactions in progress any more: it may decode the same one well when it has committed.
	streaming Streaming
}

// Status is how far a reader is.
type Status struct {
	Received    change.LSN // every transaction that ends at or before this is visible in the stream
	ServerEnd   change.LSN // how far the server has read its WAL, as it said last
	Durable     change.LSN // see eventstore.Stream.Durable
	Acked       change.LSN // what the server was told it may forget
	LastMessage time.Time  // when the server was last heard of; zero: never
	Connected   bool
}

// New returns a reader that does nothing until Run.
func New(cfg Config) (*Reader, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	return &Reader{cfg: cfg, identity: cfg.Identity, unsynced: make(chan struct{}, 1), streaming: cfg.Streaming}, nil
}

// Status returns where the reader stands.
func (r *Reader) Status() Status {
	s := r.pos.status()
	s.Durable = r.cfg.Stream.Durable()
	return s
}

// Trouble returns since when nothing can be received, and why; nil while all is well.
func (r *Reader) Trouble() (since time.Time, err error) { return r.pos.trouble.Now() }

// Run receives until ctx is done, and returns its cause, or until an error that no new connection
// mends: the slot or a publication is gone, or the stream and the server do not fit together. That
// error carries a hint.
func (r *Reader) Run(ctx context.Context) error {
	retry := backoff.Timer{Min: 100 * time.Millisecond, Max: 30 * time.Second}
	var faults faults
	defer r.pos.trouble.Over()
	for {
		err := r.streamOnce(ctx, retry.Reset)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !r.mends(err, &faults):
			return fmt.Errorf("receive from slot %q: %w", r.cfg.Slot, streamHint(r.explain(ctx, err), r.cfg.Slot))
		}
		r.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "connection to the source lost, will reconnect",
			slog.String("slot", r.cfg.Slot), slog.Any("err", err))
		r.pos.trouble.Note(err)
		if err := retry.Wait(ctx); err != nil {
			return err
		}
	}
}

// mends reports whether a new connection may mend an error.
func (r *Reader) mends(err error, faults *faults) bool {
	if errors.Is(err, errUntold) || pg.Code(err) == codeInternal && faults.again(r.cfg.Stream.Head()) {
		r.streaming = StreamingOff
		return true
	}
	return pg.Retryable(err) || errors.Is(err, errTakeOver)
}

// faultTries is how many faults of the server in a row, with nothing received between them, are
// taken for passing ones.
const faultTries = 3

// faults counts the server's own faults. One passes with a new connection: "requested WAL segment
// ... has already been removed" comes up when a slot, just connected, is told a position that makes
// the server move on from where an earlier session stood, and a checkpoint falls between; the slot
// itself is sound. Others come again at the same place.
type faults struct {
	count int
	head  change.LSN // of the stream, at the last
}

// again reports whether the fault that came with the stream at head is worth another try.
func (f *faults) again(head change.LSN) bool {
	if head > f.head {
		f.count = 0
	}
	f.count++
	f.head = head
	return f.count <= faultTries
}

// codeInternal is what a server says about its own faults.
const codeInternal = "XX000"

func streamHint(err error, slot string) error {
	switch pg.Code(err) {
	case pg.CodeUndefinedObject:
		return hint.Wrap(err, "a publication or the slot was dropped: changes are lost, so start the migration again")
	case pg.CodeObjectNotReady:
		return hint.Wrap(err, "slot %q can no longer be read: changes are lost, so start the migration again", slot)
	case codeInternal:
		return hint.Wrap(err, "the server cannot decode its own WAL: a transaction that truncated or rewrote a table while "+
			"slot %q was being made can be the cause; start the migration again when no such transaction is open", slot)
	}
	return err
}

// streamOnce receives over one connection until it fails. It calls progress as the server sends.
func (r *Reader) streamOnce(ctx context.Context, progress func()) (err error) {
	conn, err := r.cfg.DSN.ConnectReplication(ctx, "source", patiently)
	if err != nil {
		return err
	}
	slot, err := r.preflight(ctx, conn)
	if err != nil {
		hangUp(ctx, conn)
		return err
	}
	from, again, err := r.resume(slot)
	if err != nil {
		hangUp(ctx, conn)
		return err
	}
	w, err := hijack(ctx, conn)
	if err != nil {
		return err
	}
	defer w.close()
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, w.close) // ends a blocked read or write
	defer stop()
	options := pluginOptions(w.major, r.streaming, r.cfg.Publications)
	if err := w.start(r.cfg.Slot, from, options); err != nil {
		return err
	}
	p := newPacker(r.cfg.Stream, r.asked(), r.stored)
	p.again = again
	ask := inquiry{dsn: r.cfg.DSN}
	defer ask.close(ctx)
	p.rolledBack = func(subs []uint32) ([]uint32, error) { return ask.rolledBack(ctx, subs) }
	defer func() { err = errors.Join(err, p.abandon()) }()
	r.connected(ctx, slot.ConfirmedFlush, again != nil)
	defer func() {
		if parent.Err() != nil {
			err = context.Cause(parent) // rather than what closing the connection led to
		}
		r.disconnected(err)
	}()

	asked := make(chan struct{}, 1)
	g.Go(func() error { return r.receive(w, p, asked, progress) })
	g.Go(func() error { return r.makeDurable(ctx) })
	g.Go(func() error { return r.report(ctx, w, asked) })
	return g.Wait()
}

func (r *Reader) connected(ctx context.Context, at change.LSN, compares bool) {
	r.pos.connect(at, r.cfg.Stream.Head())
	r.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "receiving changes", slog.String("slot", r.cfg.Slot),
		slog.String("confirmed", at.String()), slog.String("stored", r.cfg.Stream.Head().String()),
		slog.String("streaming", r.streaming.String()), slog.Bool("compares_newest", compares))
	if f := r.cfg.Events.Connected; f != nil {
		f()
	}
}

func (r *Reader) disconnected(err error) {
	r.pos.disconnect()
	if f := r.cfg.Events.Disconnected; f != nil {
		f(err)
	}
}

// stored is called when everything up to received is visible in the stream; bytes is what was
// written for it, 0 when there was nothing to write.
func (r *Reader) stored(received change.LSN, bytes int) {
	r.pos.receive(received)
	if bytes == 0 {
		return
	}
	select {
	case r.unsynced <- struct{}{}:
	default: // a sync is due already
	}
	if f := r.cfg.Events.Stored; f != nil {
		f(received, bytes)
	}
}

// receive takes what the server sends, for ever.
func (r *Reader) receive(w *wire, p *packer, asked chan<- struct{}, progress func()) error {
	heard := time.Now()
	for n := 0; ; n++ {
		deadline, drained := heard.Add(r.cfg.ReceiveTimeout), !w.buffered()
		if drained {
			due, err := p.drained(time.Now())
			if err != nil {
				return err
			}
			if !due.IsZero() {
				deadline = due
			}
		}
		msg, err := w.next(deadline)
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Since(heard) < r.cfg.ReceiveTimeout {
			continue // it is time to flush
		} else if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if drained || n%256 == 0 { // the clock costs as much as a message
			heard = time.Now()
			r.pos.heard(heard, msg.serverEnd)
			progress()
		}
		if msg.data != nil {
			err = p.add(msg.data)
		} else {
			err = p.keepalive(msg.serverEnd)
		}
		if err != nil {
			return err
		}
		if msg.reply {
			select {
			case asked <- struct{}{}:
			default: // an answer is due already
			}
		}
	}
}

// makeDurable syncs what was stored: at once what comes alone, and now and then while there is more.
// Nobody waits for it: readers of the stream see what is not durable, and the server hears about
// positions but every StatusInterval.
func (r *Reader) makeDurable(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.unsynced:
		}
		if err := r.cfg.Stream.Sync(ctx); err != nil {
			return err
		}
		if err := backoff.Sleep(ctx, syncPause); err != nil {
			return err
		}
	}
}
