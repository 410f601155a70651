package snapshot

import "time"

// reportInterval is how often Progress hears of a table that moves on.
const reportInterval = 200 * time.Millisecond

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
