package snapshot

import (
	"encoding/binary"
	"io"
)

// A diverter stands between a session's socket and pgconn. While a COPY ... TO STDOUT runs it takes
// the rows out of the stream, since pgconn hands over each of them by itself, and whole, however long
// it is. Everything else passes: errors, cancelling and the state of the session stay with pgconn.
//
//	                     CopyData ──► relay ──► COPY ... FROM STDIN
//	socket ──► diverter ─┤
//	                     all else ──► pgconn
//
// The server's stream is messages of one byte of type, four bytes of length (its own included, the
// type not) and contents. Source: PostgreSQL manual, "Message Formats".
type diverter struct {
	from io.Reader
	buf  []byte // what was read and not used yet is buf[r:w]
	r, w int

	pass int    // bytes left of a message that goes to pgconn
	row  int    // bytes left of a CopyData message that goes to to
	to   *relay // nil while no COPY runs
}

const (
	messageHeader = 5
	copyDataType  = 'd'
)

// Read implements [io.Reader] for pgconn.
func (d *diverter) Read(p []byte) (n int, err error) {
	for {
		switch {
		case d.pass > 0 && d.r < d.w:
			part := copy(p[n:], d.buf[d.r:min(d.w, d.r+d.pass)])
			d.r, d.pass, n = d.r+part, d.pass-part, n+part
		case d.row == 0 && d.pass == 0 && d.w-d.r >= messageHeader:
			d.next()
		case d.row > 0 && d.r < d.w:
			if err := d.divert(); err != nil {
				return n, err
			}
		case n > 0: // nothing more can be given without waiting
			return n, nil
		default:
			if err := d.fill(); err != nil {
				return 0, err
			}
		}
		if n > 0 && n == len(p) {
			return n, nil
		}
	}
}

// next looks at the header of a message. One that makes no sense goes to pgconn, which says so.
func (d *diverter) next() {
	size := int(int32(binary.BigEndian.Uint32(d.buf[d.r+1:])))
	if d.to == nil || d.buf[d.r] != copyDataType || size <= messageHeader-1 {
		d.pass = max(size, messageHeader-1) + 1
		return
	}
	d.to.rows++
	d.r, d.row = d.r+messageHeader, size-(messageHeader-1)
}

// divert hands over what is there of a row, and of those that follow it at once.
func (d *diverter) divert() error {
	for {
		part := min(d.row, d.w-d.r)
		if err := d.to.write(d.buf[d.r : d.r+part]); err != nil {
			return err
		}
		d.r, d.row = d.r+part, d.row-part
		if d.row > 0 || d.w-d.r < messageHeader || d.buf[d.r] != copyDataType {
			return nil
		}
		if d.next(); d.row == 0 {
			return nil
		}
	}
}

// fill reads more behind what is left, which is less than the header of a message.
func (d *diverter) fill() error {
	d.r, d.w = 0, copy(d.buf, d.buf[d.r:d.w])
	n, err := d.from.Read(d.buf[d.w:])
	d.w += n
	if n > 0 {
		return nil // a connection repeats an error that came with bytes
	}
	return err
}
