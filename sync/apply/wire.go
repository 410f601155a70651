package apply

import (
	"encoding/binary"
	"io"
	"slices"
)

// A wire encodes messages of PostgreSQL's extended query protocol, and sends them as they fill its
// buffer: a statement with millions of bytes of rows is never whole in memory, and what is text is copied
// once.
//
//	Parse    'P' | length | name 0 | text 0 | int16 0
//	Bind     'B' | length | portal 0 | name 0 | int16 formats | format... | int16 params | param... | int16 0
//	Execute  'E' | length | portal 0 | int32 rows, 0 for all
//	CopyData 'd' | length | bytes
//	CopyDone 'c' | length
//	Flush    'H' | length
//	Sync     'S' | length
//
// Lengths count themselves and what follows, not the letter. A param is its length and its bytes.
// Source: PostgreSQL manual, "Message Formats".
type wire struct {
	out io.Writer
	buf []byte
	err error // of the first write that failed; nothing is sent after it

	typed []byte // the arrays of a statement that are not of text, one after another
	sizes []int  // of each of them
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

// flushAnswers has the server send what it has answered so far, which it else keeps until the Sync.
func (w *wire) flushAnswers() { w.message('H', 0) }

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
// of one element per row. With count, how many rows there are follows as a last parameter. ok is false,
// and nothing was sent, where a value does not have the form of its arg.
func (w *wire) arrays(name string, args []arg, rows []imagePair, count bool) (ok bool) {
	if !w.encode(args, rows) {
		return false
	}
	params, size := len(args), len(w.typed)
	for _, a := range args {
		if size += 4; a.form == asText {
			size += arraySize(a, rows)
		}
	}
	if count {
		params, size = params+1, size+4+8
	}
	w.bind(name, 1, params, size)
	typed, sizes := w.typed, w.sizes
	for _, a := range args {
		if a.form != asText {
			w.int32(sizes[0])
			w.buf = append(w.buf, typed[:sizes[0]]...)
			typed, sizes = typed[sizes[0]:], sizes[1:]
			w.spill()
			continue
		}
		w.int32(arraySize(a, rows))
		w.buf = appendArrayHeader(w.buf, asText, len(rows))
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
	return true
}

// copy runs a prepared COPY. Its data follows at once: a server that has refused the statement, or one
// before it, throws them away up to the Sync.
// Source: PostgreSQL manual, "COPY", Text Format; "Message Flow", COPY Operations.
func (w *wire) copy(name string, fields []arg, rows []imagePair) {
	w.bind(name, 0, 0, 0)
	w.execute()
	start := w.data()
	for i := range rows {
		for n, f := range fields {
			if n > 0 {
				w.buf = append(w.buf, '\t')
			}
			w.buf = appendField(w.buf, f.value(&rows[i]))
		}
		w.buf = append(w.buf, '\n')
		if len(w.buf) >= flushBytes {
			w.dataEnds(start)
			w.flush()
			start = w.data()
		}
	}
	w.dataEnds(start)
	w.message('c', 0)
}

// data begins a CopyData message, which begins where it says.
func (w *wire) data() (start int) {
	w.message('d', 0)
	return len(w.buf) - 5
}

func (w *wire) dataEnds(start int) {
	binary.BigEndian.PutUint32(w.buf[start+1:], uint32(len(w.buf)-start-1))
}

// encode makes the arrays that are not of text: a Bind message says how long it is before it says what it
// is, and none can be taken back. They are small, a few bytes for each value.
func (w *wire) encode(args []arg, rows []imagePair) (ok bool) {
	w.typed, w.sizes = w.typed[:0], w.sizes[:0]
	for _, a := range args {
		if a.form == asText {
			continue
		}
		before := len(w.typed)
		if w.typed, ok = appendTyped(w.typed, a, rows); !ok {
			return false
		}
		w.sizes = append(w.sizes, len(w.typed)-before)
	}
	return true
}

// shrink lets go of a buffer that one giant value has blown up.
func (w *wire) shrink() {
	if cap(w.buf) > 16*flushBytes {
		w.buf = slices.Grow([]byte(nil), 2*flushBytes)
	}
}
