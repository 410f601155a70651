package snapshot

import (
	"context"
	"errors"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A reader is a session at the source, whose rows go into relay.
type reader struct {
	*pgx.Conn

	diverter *diverter
	relay    *relay
}

// attach puts the reader's diverter behind a session's socket, which it reads in large pieces: with
// the default buffer the many messages of a COPY make too many system calls. Where connecting takes
// several attempts, the last one counts.
func (r *reader) attach(cfg *pgx.ConnConfig) {
	cfg.BuildFrontend = func(from io.Reader, to io.Writer) *pgproto3.Frontend {
		r.diverter = &diverter{from: from, buf: make([]byte, blockSize)}
		return pgproto3.NewFrontend(r.diverter, to)
	}
}

// moved is what a COPY moved, in rows as each of the two servers reported.
type moved struct {
	sent, stored int64
	bytes        int64
}

// pump runs COPY ... TO STDOUT on src into COPY ... FROM STDIN on dst, while t counts. After an error
// neither session is usable.
func pump(ctx context.Context, src *reader, dst *pgconn.PgConn, out, in string, t *table) (moved, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	src.relay.begin(t)
	var sent pgconn.CommandTag
	var readErr error
	done := make(chan struct{})
	go func() { // ends with the COPY, with its connection, or when nobody reads the relay any more
		defer close(done)
		src.diverter.to = src.relay
		sent, readErr = src.PgConn().CopyTo(ctx, io.Discard, out)
		src.diverter.to = nil
		src.relay.end(readErr == nil)
	}()

	stored, writeErr := dst.CopyFrom(ctx, src.relay, in)
	if writeErr != nil {
		src.relay.stop()
		cancel() // the source may be busy looking for its next row
	}
	<-done
	switch {
	case readErr != nil && (writeErr == nil || !stoppedBy(readErr)):
		return moved{}, sourceError(readErr)
	case writeErr != nil:
		return moved{}, targetError(writeErr)
	}
	return moved{sent: sent.RowsAffected(), stored: stored.RowsAffected(), bytes: src.relay.bytes}, nil
}

// stoppedBy reports whether the source's COPY ended only because the target's had failed.
func stoppedBy(err error) bool {
	return errors.Is(err, errStopped) || errors.Is(err, context.Canceled)
}
