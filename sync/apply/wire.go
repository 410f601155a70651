package apply

import (
	"encoding/binary"
	"io"
	"slices"
)

// A wire encodes messages of PostgreSQL's extended query protocol, and sends them as they fill its
// buffer: a statement with millions of bytes of rows is never whole in memory, and its bytes are
// copied once.
//
//	Parse    'P' | length | name 0 | text 0 | int16 0
//	Bind     'B' | length | portal 0 | name 0 | int16 formats | format... | int16 params | param... | int16 0
//	Execute  'E' | length | portal 0 | int32 rows, 0 for all
//	Sync     'S' | length
//
// Lengths count themselves and what follows, not the letter. A param is its length and its bytes.
// Source: PostgreSQL manual, "Message Formats".
type wire struct {
	out io.Writer
	buf []byte
	err error // of the first write that failed; nothing is sent after it
}

func (w *wire) flush() {
	if w.err == nil {
		_, w.err = w.out.Write(w.buf)
	}
	w.buf = w.buf[:0]
}

// spill sends what there is once it is worth a write.
func (w *wire) spill() {
	if len(w.buf) >= flushBytes {
		w.flush()
	}
}

func (w *wire) message(kind byte, length int) {
	w.buf = append(w.buf, kind)
	w.int32(4 + length)
}

func (w *wire) int16(n int) { w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(n)) }
func (w *wire) int32(n int) { w.buf = binary.BigEndian.AppendUint32(w.buf, uint32(n)) }

func (w *wire) string(s string) { w.buf = append(append(w.buf, s...), 0) }

func (w *wire) parse(name, text string) {
	w.message('P', len(name)+1+len(text)+1+2)
	w.string(name)
	w.string(text)
	w.int16(0) // types of parameters: the server finds them out
}

// bind begins a Bind message whose parameters have one format and so many bytes, lengths included.
func (w *wire) bind(name string, format, params, size int) {
	w.message('B', 1+len(name)+1+4+2+size+2)
	w.string("")
	w.string(name)
	w.int16(1)
	w.int16(format)
	w.int16(params)
}

// execute ends a Bind message and runs what it bound. Results come as text.
func (w *wire) execute() {
	w.int16(0)
	w.message('E', 1+4)
	w.string("")
	w.int32(0)
	w.spill()
}

func (w *wire) sync() { w.message('S', 0) }

// texts runs a prepared statement with parameters as text.
func (w *wire) texts(name string, params [][]byte) {
	size := 4 * len(params)
	for _, p := range params {
		size += len(p)
	}
	w.bind(name, 0, len(params), size)
	for _, p := range params {
		w.int32(len(p))
		w.buf = append(w.buf, p...)
	}
	w.execute()
}

// arrays runs a prepared statement on rows: each of its args is an array, as textArrays encodes them,
// of one element per row. With count, how many rows there are follows as a last parameter.
func (w *wire) arrays(name string, args []arg, rows []imagePair, count bool) {
	params, size := len(args), 0
	for _, a := range args {
		size += 4 + arraySize(a, rows)
	}
	if count {
		params, size = params+1, size+4+8
	}
	w.bind(name, 1, params, size)
	for _, a := range args {
		w.int32(arraySize(a, rows))
		w.buf = appendArrayHeader(w.buf, len(rows))
		for i := range rows {
			w.buf = appendElement(w.buf, a.value(&rows[i]))
			w.spill()
		}
	}
	if count {
		w.int32(8)
		w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(len(rows)))
	}
	w.execute()
}

// shrink lets go of a buffer that one giant value has blown up.
func (w *wire) shrink() {
	if cap(w.buf) > 16*flushBytes {
		w.buf = slices.Grow([]byte(nil), 2*flushBytes)
	}
}
