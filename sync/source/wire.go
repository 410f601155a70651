package source

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

const (
	// readBuffer is large because a walsender writes one small packet for each change: whatever
	// has arrived is taken from the kernel in one call.
	readBuffer = 1 << 20
	// maxFrame is more than a server can send: its own buffers end at 1 GB.
	maxFrame = 1<<30 + 1<<10
	// startTimeout bounds how long the server may take to begin streaming. It reads the WAL that
	// the slot holds first only as far as it needs to find a consistent point.
	startTimeout = 5 * time.Minute
	// goodbyeTimeout bounds the sending of the last message.
	goodbyeTimeout = time.Second
	// writeTimeout bounds the sending of a report, of 39 bytes.
	writeTimeout = 30 * time.Second
)

// A wire is a connection in streaming mode. One goroutine reads it and one writes.
//
//	server: | 'd' | length(4) | 'w' | start(8) | server end(8) | time(8) | pgoutput message |
//	        | 'd' | length(4) | 'k' | server end(8) | time(8) | reply(1) |
//	client: | 'd' | length(4) | 'r' | written(8) | flushed(8) | applied(8) | time(8) | reply(1) |
//
// Source: PostgreSQL manual, "Streaming Replication Protocol".
type wire struct {
	conn  net.Conn
	br    *bufio.Reader
	big   []byte // a frame that does not fit into br, as far as it was read
	size  int    // that frame's, 0 without one
	major int    // version of the server; 0: it did not say
}

// A message is what the server sent: data of the stream, or a keepalive.
type message struct {
	serverEnd change.LSN
	data      []byte // a pgoutput message, valid until the next call; nil for a keepalive
	reply     bool   // the server waits for a report
}

// errTakeOver says that pgconn would not let go of a connection; another one may be quicker.
var errTakeOver = errors.New("the connection cannot be taken over")

// hijack takes an idle connection over from pgconn, whose own reader takes a timer and two copies
// for every message. It closes conn when it cannot.
func hijack(ctx context.Context, conn *pgconn.PgConn) (*wire, error) {
	err := conn.SyncConn(ctx) // after a slow write pgconn reads on in the background
	var h *pgconn.HijackedConn
	if err == nil {
		h, err = conn.Hijack()
	}
	if err != nil {
		hangUp(ctx, conn)
		return nil, fmt.Errorf("%w: %w", errTakeOver, err)
	}
	w := newWire(h.Conn)
	w.major = majorVersion(h.ParameterStatuses["server_version"])
	return w, nil
}

// majorVersion reads the number that a server's version begins with: "17.2 (Debian ...)", "18beta1".
func majorVersion(version string) int {
	digits := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(version)
	}
	major, err := strconv.Atoi(version[:digits])
	if err != nil {
		return 0
	}
	return major
}

func newWire(conn net.Conn) *wire {
	return &wire{conn: conn, br: bufio.NewReaderSize(conn, readBuffer)}
}

// close says goodbye, lest the server logs a lost connection, and ends blocked calls. What goes
// wrong here changes nothing: the connection is over.
func (w *wire) close() {
	_ = w.conn.SetDeadline(time.Now().Add(goodbyeTimeout))
	_, _ = w.conn.Write([]byte{'X', 0, 0, 0, 4})
	_ = w.conn.Close()
}

// pluginOptions returns what pgoutput is asked for. Rows come as text and without the messages of
// pg_logical_emit_message, for which nobody here has a use. Changes that replication itself wrote are
// wanted like all others: they are the source's rows.
// Source: PostgreSQL manual, "Logical Streaming Replication Parameters".
func pluginOptions(major int, streaming Streaming, publications []string) string {
	names := make([]string, len(publications))
	for i, p := range publications {
		names[i] = schema.QuoteIdent(p)
	}
	protocol := "proto_version '1'"
	if streaming == StreamingOn && major >= 14 {
		protocol = "proto_version '2', streaming 'on'"
	}
	if major >= 16 {
		protocol += ", origin 'any'"
	}
	return protocol + ", publication_names " + schema.QuoteLiteral(strings.Join(names, ","))
}

// start begins streaming with the transactions whose commit records begin at from or later, or where the
// slot stands when that is later.
func (w *wire) start(slot string, from change.LSN, options string) error {
	sql := fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL %s (%s)", schema.QuoteIdent(slot), from, options)
	query, err := (&pgproto3.Query{String: sql}).Encode(nil)
	if err != nil {
		return fmt.Errorf("start replication: %w", err)
	}
	if err := w.write(query); err != nil {
		return fmt.Errorf("start replication: %w", err)
	}
	for deadline := time.Now().Add(startTimeout); ; {
		typ, body, err := w.frame(deadline)
		if err != nil {
			return fmt.Errorf("start replication: %w", err)
		}
		if typ == 'W' { // CopyBothResponse
			return nil
		}
		if err := serverSays(typ, body); err != nil {
			return fmt.Errorf("start replication: %w", err)
		}
	}
}

// next returns the next message. It gives up with os.ErrDeadlineExceeded, and may be called again.
func (w *wire) next(deadline time.Time) (message, error) {
	for {
		typ, body, err := w.frame(deadline)
		if err != nil {
			return message{}, err
		}
		switch {
		case typ == 'd' && len(body) > 25 && body[0] == 'w':
			return message{serverEnd: lsnAt(body, 9), data: body[25:]}, nil
		case typ == 'd' && len(body) == 18 && body[0] == 'k':
			return message{serverEnd: lsnAt(body, 1), reply: body[17] != 0}, nil
		case typ == 'd':
			return message{}, fmt.Errorf("unexpected replication message of %d bytes", len(body))
		}
		if err := serverSays(typ, body); err != nil {
			return message{}, err
		}
	}
}

// serverSays handles a frame outside of the stream: nil for one without consequences.
func serverSays(typ byte, body []byte) error {
	switch typ {
	case 'E':
		var e pgproto3.ErrorResponse
		if err := e.Decode(body); err != nil {
			return fmt.Errorf("read the server's error: %w", err)
		}
		return pgconn.ErrorResponseToPgError(&e)
	case 'N':
		var n pgproto3.NoticeResponse
		if err := n.Decode(body); err != nil {
			return fmt.Errorf("read the server's notice: %w", err)
		}
		if n.Code == pg.CodeObjectNotReady { // PostgreSQL 18 goes on without the changes
			return hint.Wrap(fmt.Errorf("%w: server: %s", ErrPublicationGone, n.Message), again)
		}
		return nil
	case 'S': // a parameter changed
		return nil
	case 'c', 'C', 'Z': // the server ends the stream, because it shuts down
		return fmt.Errorf("server ended the stream: %w", io.EOF)
	}
	return fmt.Errorf("unexpected message %q from the server", typ)
}

// report sends a standby status update.
func (w *wire) report(received, acked change.LSN, wantReply bool) error {
	const postgresEpoch = 946684800 // seconds, Unix
	b := make([]byte, 0, 39)
	b = append(b, 'd')
	b = binary.BigEndian.AppendUint32(b, 38)
	b = append(b, 'r')
	b = binary.BigEndian.AppendUint64(b, uint64(max(received, acked)))
	b = binary.BigEndian.AppendUint64(b, uint64(acked))
	b = binary.BigEndian.AppendUint64(b, uint64(acked))
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixMicro()-postgresEpoch*1e6))
	if wantReply {
		return w.write(append(b, 1))
	}
	return w.write(append(b, 0))
}

func (w *wire) write(b []byte) error {
	if err := w.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := w.conn.Write(b)
	return err
}

// buffered reports whether frame would return without reading from the network.
func (w *wire) buffered() bool {
	n := w.br.Buffered()
	if w.size > 0 || n < 5 {
		return false
	}
	head, err := w.br.Peek(5)
	return err == nil && n >= frameSize(head)
}

// frameSize is the size of a frame on the wire; head is its type and length.
func frameSize(head []byte) int { return 1 + int(binary.BigEndian.Uint32(head[1:])) }

// frame returns the next frame of the connection, whose body is valid until the next call. When
// the deadline passes first, what has arrived is kept for the next call.
func (w *wire) frame(deadline time.Time) (typ byte, body []byte, err error) {
	if !w.buffered() {
		if err := w.conn.SetReadDeadline(deadline); err != nil {
			return 0, nil, err
		}
	}
	if w.size == 0 {
		head, err := w.br.Peek(5)
		if err != nil {
			return 0, nil, err
		}
		size := frameSize(head)
		if size < 5 || size > maxFrame {
			return 0, nil, fmt.Errorf("malformed message %q from the server", head)
		}
		if size <= w.br.Size() {
			f, err := w.br.Peek(size)
			if err != nil {
				return 0, nil, err
			}
			_, err = w.br.Discard(size) // f stays until br reads again
			return f[0], f[5:], err
		}
		w.size = size
	}
	for len(w.big) < w.size {
		// Memory follows what arrives: a length alone is no reason to believe it.
		if len(w.big) == cap(w.big) {
			w.big = slices.Grow(w.big, min(w.size-len(w.big), max(len(w.big), readBuffer)))
		}
		n, err := w.br.Read(w.big[len(w.big):min(cap(w.big), w.size)])
		w.big = w.big[:len(w.big)+n]
		if err != nil {
			return 0, nil, err
		}
	}
	f := w.big
	w.big, w.size = nil, 0
	return f[0], f[5:], nil
}

func lsnAt(b []byte, i int) change.LSN { return change.LSN(binary.BigEndian.Uint64(b[i:])) }
