package snapshot

import (
	"bufio"
	"context"
	"errors"
	"io"

	"github.com/jackc/pgx/v5/pgconn"
)

// bufferSize is how much is handed from COPY to COPY at once. PostgreSQL sends a message for each
// row; handing those over one by one costs more than everything else (measured: 2.4 times the
// elapsed time, 10 times the CPU).
const bufferSize = 256 << 10

// errStopped ends the reading side when the writing side has failed.
var errStopped = errors.New("the target takes no more rows")

// pump runs COPY ... TO STDOUT on src into COPY ... FROM STDIN on dst and returns the row counts
// that each reported. After an error neither session is usable.
func pump(ctx context.Context, src, dst *pgconn.PgConn, out, in string, m *meter) (sent, stored int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	var readErr error
	done := make(chan struct{})
	go func() { // ends with the COPY, with its connection, or when nobody reads the pipe any more
		defer close(done)
		buf := bufio.NewWriterSize(pw, bufferSize)
		m.w = buf
		var tag pgconn.CommandTag
		if tag, readErr = src.CopyTo(ctx, m, out); readErr == nil {
			readErr = buf.Flush()
		}
		sent = tag.RowsAffected()
		pw.CloseWithError(readErr) // EOF when nil
	}()

	tag, writeErr := dst.CopyFrom(ctx, pr, in)
	if writeErr != nil {
		_ = pr.CloseWithError(errStopped)
		cancel() // the source may be busy looking for its next row
	}
	<-done
	switch {
	case readErr != nil && (writeErr == nil || !stoppedBy(readErr)):
		return 0, 0, sourceError(readErr)
	case writeErr != nil:
		return 0, 0, targetError(writeErr)
	}
	return sent, tag.RowsAffected(), nil
}

// stoppedBy reports whether the source's COPY ended only because the target's had failed.
func stoppedBy(err error) bool {
	return errors.Is(err, errStopped) || errors.Is(err, context.Canceled)
}
