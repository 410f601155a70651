package source

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/backoff"
)

// positions is what the loops know about where things stand.
type positions struct {
	mu struct {
		sync.Mutex
		Status
		// mute: the server has not shown yet that it is the one that was read before, so it is told
		// nothing of what it may forget.
		mute bool
	}
	trouble backoff.Trouble
}

func (p *positions) status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.Status
}

// connect begins again with what this server's slot and the stream hold. That there was nothing behind
// them is what the connection before was told: of a server that was restored since it need not be true.
func (p *positions) connect(confirmed, head change.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.Connected, p.mu.mute = true, true
	p.mu.Received, p.mu.Acked = max(head, confirmed), confirmed
}

// fork forgets what was said of positions after at, which belong to another history now.
func (p *positions) fork(at change.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.Received, p.mu.Acked, p.mu.ServerEnd = min(p.mu.Received, at), min(p.mu.Acked, at), min(p.mu.ServerEnd, at)
}

func (p *positions) disconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.Connected = false
}

func (p *positions) heard(now time.Time, serverEnd change.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble.OverAfter(steadyAfter)
	p.mu.LastMessage = now
	p.mu.ServerEnd = max(p.mu.ServerEnd, serverEnd)
}

func (p *positions) receive(lsn change.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.mute = false
	p.mu.Received = max(p.mu.Received, lsn)
	p.mu.ServerEnd = max(p.mu.ServerEnd, lsn) // of which only a sample is taken
}

func (p *positions) isMute() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.mute
}

func (p *positions) ack(lsn change.LSN) (received, acked change.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.Acked = max(p.mu.Acked, lsn)
	return p.mu.Received, p.mu.Acked
}

// report tells the server how far it may forget: at intervals, and at once when it asks.
func (r *Reader) report(ctx context.Context, w *wire, asked <-chan struct{}) error {
	saved, err := r.cfg.Stream.Cursor(cursorAcked)
	if err != nil {
		return err
	}
	tick := time.NewTicker(r.cfg.StatusInterval)
	defer tick.Stop()
	for wantReply := true; ; {
		var received, acked change.LSN // positions of zero leave a slot as it is
		if !r.pos.isMute() {
			ack := r.ackable()
			if ack > max(saved, r.cfg.Stream.Durable()) {
				// The slot is about to move beyond what the store holds. Should both be found so after
				// a crash, this tells that nothing was lost.
				if err := r.cfg.Stream.SetCursor(cursorAcked, ack); err != nil {
					return err
				}
				saved = ack
			}
			received, acked = r.pos.ack(ack)
		}
		if err := w.report(received, acked, wantReply); err != nil {
			return fmt.Errorf("report to the server: %w", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			// The answer proves that the connection lives, and brings a quiet server's position.
			wantReply = true
		case <-asked:
			wantReply = false // lest two sides ask each other for ever
		}
	}
}

// ackable returns how far the server may forget: what is safe, and when all that was received is,
// then also the positions without changes after it.
func (r *Reader) ackable() change.LSN {
	received := r.pos.status().Received // before Head: all of it lies at or before the head read next
	head := r.cfg.Stream.Head()
	var safe change.LSN
	switch r.cfg.Ack {
	case AckStored:
		safe = r.cfg.Stream.Durable()
	case AckApplied:
		safe = r.cfg.Applied()
	}
	if safe >= head {
		return max(safe, received)
	}
	return safe
}
