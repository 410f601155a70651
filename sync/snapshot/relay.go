package snapshot

import (
	"errors"
	"io"
)

const (
	// blockSize is how much is handed from COPY to COPY at once. PostgreSQL sends a message for each
	// row; handing those over one by one costs more than everything else (measured: 2.4 times the
	// elapsed time, 10 times the CPU).
	blockSize = 256 << 10
	// relayBlocks is how many blocks one side may be ahead of the other. The sockets hold some more.
	relayBlocks = 4
)

// errStopped ends one side when the other has failed. errCut goes to the target's log, which must not
// show what the source says of a row.
var (
	errStopped = errors.New("the target takes no more rows")
	errCut     = errors.New("the source's rows end early")
)

// A relay carries the bytes of one COPY at a time from the goroutine that reads the source to the one
// that writes to the target. It has a few blocks and no more, which go round for as long as a worker
// lives. Rows lie in them as they come: a row may begin in one block and end in another.
type relay struct {
	full  chan []byte // on their way to the target
	spare chan []byte // on their way back; nil stands for a block that was not needed so far

	// The writing side's.
	table       *table // counts what moves on
	block       []byte // block[:used] is filled
	used        int
	rows, bytes int64 // of this COPY; PostgreSQL sends the trailer of the binary format as a row, too
	told        struct{ rows, bytes int64 }
	cut         bool          // the COPY ended early; set before full is closed
	stopped     chan struct{} // closed when nobody reads any more

	// The reading side's.
	reading, rest []byte
}

func newRelay() *relay {
	r := &relay{spare: make(chan []byte, relayBlocks)}
	for range relayBlocks {
		r.spare <- nil
	}
	return r
}

// begin makes the relay ready for the next COPY, whose progress t counts.
func (r *relay) begin(t *table) {
	r.full, r.stopped = make(chan []byte, relayBlocks), make(chan struct{})
	r.table, r.rows, r.bytes, r.cut = t, 0, 0, false
	r.told.rows, r.told.bytes = 0, 0
}

// write takes bytes of a row, and waits while the target is too slow.
func (r *relay) write(row []byte) error {
	r.bytes += int64(len(row))
	for {
		n := copy(r.block[r.used:], row)
		r.used += n
		if n == len(row) {
			return nil
		}
		row = row[n:]
		if err := r.pass(); err != nil {
			return err
		}
	}
}

// pass sends the block on its way and takes a new one.
func (r *relay) pass() error {
	r.tell()
	if r.used > 0 {
		r.full <- r.block[:r.used] // there is room for all the blocks there are
		r.block, r.used = nil, 0
	}
	select {
	case r.block = <-r.spare:
	case <-r.stopped:
		return errStopped
	}
	if r.block == nil {
		r.block = make([]byte, blockSize)
	}
	r.block = r.block[:cap(r.block)]
	return nil
}

// end says that no more will be written, because all is there or because something came between.
func (r *relay) end(all bool) {
	if all && r.used > 0 {
		r.full <- r.block[:r.used]
		r.block, r.used = nil, 0
	}
	r.tell()
	r.cut = !all
	close(r.full)
}

// stop says that no more will be read.
func (r *relay) stop() { close(r.stopped) }

// Read implements [io.Reader] for the target's COPY.
func (r *relay) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.reading != nil {
			r.spare <- r.reading
			r.reading = nil
		}
		block, ok := <-r.full
		switch {
		case ok:
			r.reading, r.rest = block, block
		case r.cut:
			return 0, errCut
		default:
			return 0, io.EOF
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// tell adds to the table's counters what they do not have, the last row excepted: it may be the trailer.
func (r *relay) tell() {
	rows := max(r.rows-1, 0)
	r.table.rows.Add(rows - r.told.rows)
	r.table.bytes.Add(r.bytes - r.told.bytes)
	r.told.rows, r.told.bytes = rows, r.bytes
}

// settle makes the COPY's share of the counters what PostgreSQL says that it was.
func (r *relay) settle(rows int64) { r.table.rows.Add(rows - r.told.rows) }
