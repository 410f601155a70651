package apply

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// Trouble returns since when nothing can be written, and why; nil while all is well.
func (a *Applier) Trouble() (since time.Time, err error) { return a.trouble.Now() }

// troubled takes note of an error that will be tried again, and tells the operator: loudly when only
// an operator can end it.
func (a *Applier) troubled(ctx context.Context, err error) {
	since := a.trouble.Note(err)
	level, reason := slog.LevelWarn, "lost: connecting again"
	switch code := pg.Code(err); {
	case code == "53100":
		level, reason = slog.LevelError, "its disk is full: make room there"
	case strings.HasPrefix(code, "53"):
		level, reason = slog.LevelError, "it is out of resources: free some"
	case code == pg.CodeReadOnlyTransaction:
		reason = "it is read-only: waiting until it is not"
	}
	a.cfg.Log.LogAttrs(ctx, level, "destination lost, will try again", slog.String("link", a.cfg.Link), slog.String("why", reason),
		slog.Time("since", since), slog.Any("err", err))
}

// A listener is a connection that knows how long somebody has waited for its next byte.
type listener struct {
	net.Conn

	waiting atomic.Int64 // when the read that is under way began, Unix nanoseconds; 0: none is
}

func (l *listener) Read(p []byte) (int, error) {
	l.waiting.Store(time.Now().UnixNano())
	defer l.waiting.Store(0)
	return l.Conn.Read(p)
}

func (l *listener) silent() time.Duration {
	if at := l.waiting.Load(); at != 0 {
		return time.Since(time.Unix(0, at))
	}
	return 0
}

// watch ends a session whose destination has been silent for too long and is not at work for it: a
// slow destination is none that is lost. Nothing but this ends a session whose network swallows all.
// Earlier sessions that are in its way are ended, but for those it is to spare.
func (a *Applier) watch(ctx context.Context, s *session, spare ...uint32) error {
	l, pid := s.heard, s.conn.PgConn().PID()
	tick := time.NewTicker(max(a.cfg.AnswerTimeout/8, time.Millisecond))
	defer tick.Stop()
	told := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		silent := l.silent()
		if silent < a.cfg.AnswerTimeout {
			told = 0
			continue
		}
		if !pg.AtWork(ctx, a.cfg.DSN, pid) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if l.silent() < a.cfg.AnswerTimeout { // it has answered meanwhile
				continue
			}
			return &pg.SilentError{For: silent}
		}
		if silent >= told+a.cfg.AnswerTimeout {
			told = silent
			a.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "destination is slow: it has worked on one statement for long",
				slog.String("link", a.cfg.Link), slog.Duration("for", silent), slog.Int("pid", int(pid)))
			// It may wait for an earlier session of ours whose connection died without a word to the server.
			if n, err := pg.Unblock(ctx, a.cfg.DSN, pid, "apply", spare...); err == nil && n > 0 { // else it is asked again
				a.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "earlier sessions of this link were in the way: ended",
					slog.String("link", a.cfg.Link), slog.Int("sessions", n))
			}
		}
	}
}
