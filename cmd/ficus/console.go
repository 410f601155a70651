package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

// A console shows a running migration: JSON lines, plain lines, or on a terminal lines above bars.
// Its methods are called by one goroutine at a time; status may come from anywhere.
type console struct {
	app    *app
	status func() migrate.Status

	screen *mpb.Progress // nil unless standard output is a terminal
	bars   map[string]*mpb.Bar
	said   map[string]time.Time // when progress of a table was last printed
	footer *mpb.Bar
	closed sync.Once
	over   atomic.Bool
}

// progressEvery is how often a line tells the progress of a table where there are no bars.
const progressEvery = 2 * time.Second

// newConsole returns a console; close it at the end.
func (a *app) newConsole(status func() migrate.Status) *console {
	c := &console{app: a, status: status, bars: map[string]*mpb.Bar{}, said: map[string]time.Time{}}
	if a.json || !isTerminal(a.stdout) {
		return c
	}
	c.screen = mpb.New(mpb.WithOutput(a.stdout), mpb.WithWidth(40), mpb.WithRefreshRate(200*time.Millisecond), mpb.WithAutoRefresh())
	c.footer = c.screen.New(0, mpb.NopStyle(), mpb.BarPriority(1<<30), mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
		if c.over.Load() {
			return ""
		}
		return summary(c.status())
	})))
	return c
}

// close takes the bars away.
func (c *console) close() {
	c.closed.Do(func() {
		if c.screen == nil {
			return
		}
		c.over.Store(true)
		for _, b := range c.bars {
			b.Abort(true)
		}
		c.footer.Abort(true)
		c.screen.Wait()
	})
}

// say prints one line above the bars.
func (c *console) say(text string) { c.sayAt(time.Now(), text) }

// sayAt is say for what happened at another time.
func (c *console) sayAt(at time.Time, text string) {
	if at.IsZero() {
		at = time.Now()
	}
	w := c.app.stdout
	if c.screen != nil && !c.over.Load() {
		w = c.screen
	}
	fmt.Fprintf(w, "%s  %s\n", at.Local().Format(time.TimeOnly), text)
}

// goesOn tells that a phase which an earlier process entered goes on.
func (c *console) goesOn(p migrate.Phase) {
	c.event(migrate.Event{Type: "phase", Time: time.Now().UTC(), Phase: p, Message: string(p) + ": goes on where it was"})
}

// event shows one event of the migration's story.
func (c *console) event(e migrate.Event) {
	if table, ok := e.Data["table"].(migrate.TableProgress); ok {
		c.progress(e, table)
		return
	}
	if c.app.json {
		c.app.object(e)
		return
	}
	switch e.Type {
	case "progress":
		return // the footer shows it
	case "step":
		if text := stepText(e); text != "" {
			c.sayAt(e.Time, "  "+text)
		}
	case "finding":
		c.sayAt(e.Time, "  "+findingText(decode[migrate.Finding](e.Data["finding"])))
	case "phase":
		c.sayAt(e.Time, bold(c.screen != nil, strings.ReplaceAll(e.Message, "\n", "; ")))
	case "error", "link":
		c.sayAt(e.Time, "! "+e.Message)
		if st := c.status(); st.Hint != "" {
			c.sayAt(e.Time, "  hint: "+st.Hint)
		}
	default:
		text := "  " + e.Message
		if e.Actor != "" {
			text += " (by " + e.Actor + ")"
		}
		c.sayAt(e.Time, text)
	}
}

// longStep is how long a step takes of which people are told that it is done.
const longStep = time.Second

// stepText says of a step what a person wants to know: that it took its time, or that something went
// wrong. It is "" for nothing.
func stepText(e migrate.Event) string {
	f := decode[struct {
		Step  string        `json:"step"`
		State string        `json:"state"`
		Took  time.Duration `json:"took_ns"`
	}](e.Data)
	switch {
	case f.State == "started" || f.State == "done" && f.Took < longStep:
		return ""
	case f.State == "done":
		return fmt.Sprintf("%s took %s", f.Step, units.Duration(f.Took))
	}
	return e.Message
}

// decode reads an event's data back; the zero T when it is no such thing.
func decode[T any](v any) (t T) {
	data, err := json.Marshal(v)
	if err != nil || json.Unmarshal(data, &t) != nil {
		var zero T
		return zero
	}
	return t
}

// progress shows how far the copy of a table is.
func (c *console) progress(e migrate.Event, t migrate.TableProgress) {
	if c.screen == nil {
		if !t.Done && time.Since(c.said[t.Table]) < progressEvery {
			return
		}
		c.said[t.Table] = time.Now()
		switch {
		case c.app.json:
			c.app.object(e)
		case t.Done:
			c.say(fmt.Sprintf("  copied %s: %s rows, %s (%s)", t.Table, units.Count(t.Rows), units.Bytes(t.Bytes), t.Format))
		case t.Rows > 0:
			c.say(fmt.Sprintf("  copying %s: %s of about %s rows", t.Table, units.Count(t.Rows), units.Count(max(t.TotalRows, t.Rows))))
		}
		return
	}
	bar := c.bars[t.Table]
	switch {
	case t.Done:
		if bar != nil {
			bar.Abort(true)
			delete(c.bars, t.Table)
		}
		c.say(fmt.Sprintf("  copied %s: %s rows, %s (%s)", t.Table, units.Count(t.Rows), units.Bytes(t.Bytes), t.Format))
	case bar == nil && t.Rows > 0:
		c.bars[t.Table] = c.screen.AddBar(max(t.TotalRows, t.Rows+1),
			mpb.PrependDecorators(decor.Name(fmt.Sprintf("  %-28s", t.Table)), decor.Percentage(decor.WC{W: 5})),
			mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string { return " " + units.Count(s.Current) + " rows" })))
		c.bars[t.Table].SetCurrent(t.Rows)
	case bar != nil:
		if t.Rows >= t.TotalRows { // the estimate was low
			bar.SetTotal(t.Rows+1, false)
		}
		bar.SetCurrent(t.Rows)
	}
}

// summary is the one line that says where a migration stands.
func summary(s migrate.Status) string {
	parts := []string{string(s.Phase)}
	if s.Step != "" {
		parts = append(parts, s.Step)
	}
	if s.Phase == migrate.Copying && slices.ContainsFunc(s.Tables, func(t migrate.TableProgress) bool { return !t.Done }) {
		var rows, total int64
		for _, t := range s.Tables {
			rows, total = rows+t.Rows, total+max(t.TotalRows, t.Rows)
		}
		parts = append(parts, fmt.Sprintf("%s of about %s rows", units.Count(rows), units.Count(total)))
	}
	if s.Build != nil {
		parts = append(parts, fmt.Sprintf("%d/%d %s", s.Build.Done, s.Build.Total, s.Build.What))
	}
	if s.Recopy != nil {
		parts = append(parts, "copies tables anew")
	}
	if s.Lag != nil {
		parts = append(parts, fmt.Sprintf("lag %s, %s", units.Bytes(s.Lag.Bytes), units.Duration(s.Lag.Time)), units.Count(s.Lag.Rows)+" changes applied")
		if s.Lag.Decided > 0 {
			parts = append(parts, units.Count(s.Lag.Decided)+" rows overruled, see ficus.conflicts")
		}
	}
	if s.Owner != "" {
		parts = append(parts, "owner "+string(s.Owner))
	}
	if t := s.Throttle; t != nil {
		parts = append(parts, "throttled, "+t.Name+": "+t.Reason)
	}
	if e := s.ETA; e != nil && e.Unknown == "" {
		parts = append(parts, "ETA "+units.Duration(e.Low.Round(time.Second))+" to "+units.Duration(e.High.Round(time.Second)))
	}
	if s.Paused {
		parts = append(parts, "paused")
	}
	if s.WaitingFor != "" {
		parts = append(parts, "waiting for "+s.WaitingFor)
	}
	if s.Owner == migrate.Target {
		safe := "rollback safe"
		if !s.Rollback.Safe {
			safe = "rollback not safe, because " + strings.Join(s.Rollback.Because, "; ")
		}
		parts = append(parts, safe)
	}
	return strings.Join(parts, " · ")
}

func bold(terminal bool, s string) string {
	if !terminal {
		return s
	}
	return "\x1b[1m" + s + "\x1b[0m"
}
