package snapshot

import (
	"io"
	"time"
)

// reportInterval is how often Progress hears of a table that moves on.
const reportInterval = 200 * time.Millisecond

// publishBytes is how much a worker copies before it adds to the shared counters.
const publishBytes = 256 << 10

// A meter passes rows on and counts them. PostgreSQL sends one message, so one Write, for each row
// (and one for the trailer of the binary format, which settle corrects).
type meter struct {
	w           io.Writer
	table       *table
	rows, bytes int64 // not yet added to table
	published   int64 // rows of this chunk that are
	total       int64 // bytes of this chunk
}

func (m *meter) Write(p []byte) (int, error) {
	m.rows++
	m.bytes += int64(len(p))
	m.total += int64(len(p))
	if m.bytes >= publishBytes {
		m.publish()
	}
	return m.w.Write(p)
}

func (m *meter) publish() {
	m.table.rows.Add(m.rows)
	m.table.bytes.Add(m.bytes)
	m.published += m.rows
	m.rows, m.bytes = 0, 0
}

// settle makes the chunk's share of the counters what PostgreSQL says that it was.
func (m *meter) settle(rows int64) {
	m.publish()
	m.table.rows.Add(rows - m.published)
}

// report tells Progress until finished is closed, and then once more.
func (c *copier) report(finished <-chan struct{}) {
	if c.cfg.Progress == nil {
		return
	}
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	told := make([]Table, len(c.tables))
	for {
		last := false
		select {
		case <-ticker.C:
		case <-finished:
			last = true
		}
		for i, t := range c.tables {
			if now := t.progress(); now != told[i] && (now.Rows > 0 || now.Done) {
				c.cfg.Progress(now)
				told[i] = now
			}
		}
		if last {
			return
		}
	}
}

// progress reads done before the counters, which are final by then.
func (t *table) progress() Table {
	done := t.left.Load() == 0
	return Table{
		Name: t.m.Source.Name, Rows: t.rows.Load(), Bytes: t.bytes.Load(), TotalRows: t.m.Source.Rows,
		Done: done, Format: t.format,
	}
}
