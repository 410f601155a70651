package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ficus-migrate/ficus/buffer"
	"github.com/ficus-migrate/ficus/gateway/httpdoor"
)

// A doorFigure is one metric of HTTP doors.
type doorFigure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(s *httpdoor.Stats, put func(value float64, labels ...string))
}

// doorMetrics are the figures of every HTTP door of a process. It is a prometheus.Collector.
type doorMetrics struct {
	m       *manager
	figures []doorFigure
}

func newDoorMetrics(m *manager) *doorMetrics {
	d := &doorMetrics{m: m}
	add := func(name, help string, kind prometheus.ValueType, of func(*httpdoor.Stats, func(float64, ...string)), labels ...string) {
		desc := prometheus.NewDesc("ficus_"+name, help, append([]string{"migration"}, labels...), nil)
		d.figures = append(d.figures, doorFigure{desc, kind, of})
	}
	one := func(value func(*httpdoor.Stats) int64) func(*httpdoor.Stats, func(float64, ...string)) {
		return func(s *httpdoor.Stats, put func(float64, ...string)) { put(float64(value(s))) }
	}
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	add("http_held", "Writes that wait because of a promotion.", gauge, one(func(s *httpdoor.Stats) int64 { return int64(s.Held) }))
	add("http_in_flight", "Writes at the data server.", gauge, one(func(s *httpdoor.Stats) int64 { return int64(s.InFlight) }))
	add("http_reads_total", "Reads that passed.", counter, one(func(s *httpdoor.Stats) int64 { return s.Reads }))
	add("http_reads_away_total", "Reads that went to the data server that does not own.", counter, one(func(s *httpdoor.Stats) int64 { return s.ReadsAway }))
	add("http_reads_back_total", "Of these, reads that went back to the owner since the other data server did not answer.", counter, one(func(s *httpdoor.Stats) int64 { return s.FellBack }))
	add("http_writes_total", "Writes that passed.", counter, one(func(s *httpdoor.Stats) int64 { return s.Writes }))
	add("http_refused_total", "Writes that waited for too long, or found too many waiting.", counter, one(func(s *httpdoor.Stats) int64 { return s.Refused }))
	add("http_failed_total", "Requests that a data server did not answer.", counter, one(func(s *httpdoor.Stats) int64 { return s.Failed }))
	add("http_shadow_reads_total", "Reads that were made on both data servers, by what came of it.", counter, func(s *httpdoor.Stats, put func(float64, ...string)) {
		for result, n := range map[string]int64{
			"same": s.Shadow.Same, "different": s.Shadow.Different, "settled": s.Shadow.Settled,
			"failed": s.Shadow.Failed, "skipped": s.Shadow.Skipped, "dropped": s.Shadow.Dropped,
		} {
			put(float64(n), result)
		}
	}, "result")
	d.addCommands(add)
	return d
}

// addCommands adds the figures of command logs.
func (d *doorMetrics) addCommands(add func(string, string, prometheus.ValueType, func(*httpdoor.Stats, func(float64, ...string)), ...string)) {
	of := func(values func(c *buffer.CommandStats, put func(float64, ...string))) func(*httpdoor.Stats, func(float64, ...string)) {
		return func(s *httpdoor.Stats, put func(float64, ...string)) {
			if s.Commands != nil {
				values(s.Commands, put)
			}
		}
	}
	add("commands", "Commands by state; kept are those that are over.", prometheus.GaugeValue, of(func(c *buffer.CommandStats, put func(float64, ...string)) {
		for state, n := range map[string]int{"waiting": c.Waiting, "sending": c.Sending, "dead": c.Dead, "kept": c.Kept} {
			put(float64(n), state)
		}
	}), "state")
	add("commands_bytes", "What the log of commands takes.", prometheus.GaugeValue, of(func(c *buffer.CommandStats, put func(float64, ...string)) { put(float64(c.Bytes)) }))
	add("commands_oldest_seconds", "Age of the oldest command that waits for its answer; 0 when none does.", prometheus.GaugeValue, of(func(c *buffer.CommandStats, put func(float64, ...string)) {
		if c.Oldest.IsZero() {
			put(0)
			return
		}
		put(time.Since(c.Oldest).Seconds())
	}))
	add("commands_total", "What happened to commands.", prometheus.CounterValue, of(func(c *buffer.CommandStats, put func(float64, ...string)) {
		for event, n := range map[string]int64{
			"accepted": c.Accepted, "repeated": c.Repeated, "mismatched": c.Mismatched, "refused": c.Refused,
			"answered": c.Answered, "died": c.Died,
		} {
			put(float64(n), event)
		}
	}), "event")
	add("commands_attempts_total", "Attempts to get an answer of a data server, by result.", prometheus.CounterValue, of(func(c *buffer.CommandStats, put func(float64, ...string)) {
		put(float64(c.Answered), "answered")
		put(float64(c.Failed), "failed")
	}), "result")
}

// Describe implements [prometheus.Collector].
func (d *doorMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, f := range d.figures {
		out <- f.desc
	}
}

// Collect implements [prometheus.Collector].
func (d *doorMetrics) Collect(out chan<- prometheus.Metric) {
	for _, e := range d.m.all() {
		if e.door == nil {
			continue
		}
		s := e.door.Stats()
		for _, f := range d.figures {
			f.of(&s, func(v float64, labels ...string) {
				out <- prometheus.MustNewConstMetric(f.desc, f.kind, v, append([]string{e.job.playbook.Name}, labels...)...)
			})
		}
	}
}
