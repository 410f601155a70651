package gateway

import (
	"encoding/binary"
	"fmt"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Messages that the gateway knows by their first byte.
// Source: PostgreSQL manual, Message Formats.
const (
	msgBind         = 'B'
	msgClose        = 'C'
	msgCopyData     = 'd'
	msgCopyDone     = 'c'
	msgCopyFail     = 'f'
	msgDescribe     = 'D'
	msgExecute      = 'E'
	msgFlush        = 'H'
	msgFunctionCall = 'F'
	msgParse        = 'P'
	msgPassword     = 'p' // and SASL responses
	msgQuery        = 'Q'
	msgSync         = 'S'
	msgTerminate    = 'X'

	msgError = 'E' // from the server
	msgReady = 'Z' // from the server
)

// Transaction states of ReadyForQuery.
const statusIdle = 'I'

// headerLen is the type byte and the length, which counts itself but not the type.
const headerLen = 5

// maxMessage is the longest message that PostgreSQL takes: just under 1 GiB.
const maxMessage = 1<<30 - 1

// fromClient reports whether a client may send typ once it is connected.
func fromClient(typ byte) bool {
	switch typ {
	case msgBind, msgClose, msgCopyData, msgCopyDone, msgCopyFail, msgDescribe, msgExecute,
		msgFlush, msgFunctionCall, msgParse, msgQuery, msgSync, msgTerminate:
		return true
	}
	return false
}

// A window is the part of a byte stream that is in memory, walked message by message without
// ever holding a whole message:
//
//	buf:  ... relayed ... | seen, to be relayed | not looked at yet | room
//	                      sent                  pos                 end
type window struct {
	buf            []byte
	sent, pos, end int
	left           int  // bytes of the message at pos that were not seen yet
	base           int  // size of buf when there is little to do
	small          int  // reads in a row that would have fitted into base
	full           bool // the last read filled buf
}

// maxWindow is what a window grows to while reads fill it.
const maxWindow = 128 << 10

func newWindow(size int) window { return window{buf: make([]byte, size), base: size} }

// room returns where to read into, never empty: what was relayed makes way, and the buffer
// grows while reads fill it and shrinks when they no longer do.
func (w *window) room() []byte {
	kept := w.end - w.sent
	switch {
	case kept == len(w.buf), w.full && len(w.buf) < maxWindow:
		w.move(make([]byte, 2*len(w.buf)))
	case w.small > 64 && kept <= w.base/2:
		w.small = 0
		w.move(make([]byte, w.base))
	case w.sent > 0:
		w.move(w.buf)
	}
	w.full = false
	return w.buf[w.end:]
}

func (w *window) move(to []byte) {
	copy(to, w.buf[w.sent:w.end])
	w.pos -= w.sent
	w.end -= w.sent
	w.sent = 0
	w.buf = to
}

// filled says that n bytes were read into room.
func (w *window) filled(n int) {
	w.end += n
	w.full = w.end == len(w.buf)
	if n < w.base && len(w.buf) > w.base {
		w.small++
	} else {
		w.small = 0
	}
}

// header returns type and size, header included, of the message that begins at pos. ok is false
// when too little of it is there. Call it only between messages (left is 0).
func (w *window) header() (typ byte, size int, ok bool, err error) {
	if w.end-w.pos < headerLen {
		return 0, 0, false, nil
	}
	typ = w.buf[w.pos]
	n := binary.BigEndian.Uint32(w.buf[w.pos+1:])
	if n < 4 || n > maxMessage {
		return typ, 0, false, fmt.Errorf("invalid length %d of message type %q", n, typ)
	}
	return typ, int(n) + 1, true, nil
}

// begin starts the message of the given size at pos.
func (w *window) begin(size int) { w.left = size }

// see walks over what is there of the current message and returns it.
func (w *window) see() []byte {
	n := min(w.left, w.end-w.pos)
	piece := w.buf[w.pos : w.pos+n]
	w.pos += n
	w.left -= n
	return piece
}

// seen returns what may be relayed now.
func (w *window) seen() []byte { return w.buf[w.sent:w.pos] }

// relayed says that what seen returned is out, or dropped.
func (w *window) relayed() {
	w.sent = w.pos
	if w.sent == w.end {
		w.sent, w.pos, w.end = 0, 0, 0
	}
}

// A refusal is an error of the gateway's own, told to the client as PostgreSQL tells its errors.
type refusal struct {
	fatal                       bool // the session ends
	code, message, detail, hint string
}

func (r *refusal) Error() string { return r.message + " (SQLSTATE " + r.code + ")" }

// appendTo appends the ErrorResponse.
func (r *refusal) appendTo(b []byte) []byte {
	severity := "ERROR"
	if r.fatal {
		severity = "FATAL"
	}
	return appendMessage(b, &pgproto3.ErrorResponse{
		Severity: severity, SeverityUnlocalized: severity,
		Code: r.code, Message: r.message, Detail: r.detail, Hint: r.hint,
	})
}

// appendMessage appends a message that cannot be too long to encode.
func appendMessage(b []byte, m pgproto3.Message) []byte {
	out, err := m.Encode(b)
	if err != nil { // only a length beyond 1 GiB fails
		return b
	}
	return out
}

func violation(format string, args ...any) *refusal {
	return &refusal{fatal: true, code: "08P01", message: fmt.Sprintf(format, args...)}
}
