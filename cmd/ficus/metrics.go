package main

import (
	"iter"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ficus-migrate/ficus/gateway"
)

// A gatewayFigure is one metric of gateways.
type gatewayFigure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(s *gatewayFigures, put func(value float64, labels ...string))
}

// gatewayFigures are what one gateway says at a scrape.
type gatewayFigures struct {
	gateway.Stats

	stalls gateway.Stalls
	reads  gateway.ReadStats
	shadow gateway.ShadowStats
}

// gatewayMetrics are the figures of every gateway of a process. It is a prometheus.Collector.
type gatewayMetrics struct {
	all     iter.Seq2[string, *gateway.Gateway]
	figures []gatewayFigure
}

// newGatewayMetrics makes the metrics of gateways, told apart by a label with their name.
func newGatewayMetrics(label string, all iter.Seq2[string, *gateway.Gateway]) *gatewayMetrics {
	m := &gatewayMetrics{all: all}
	add := func(name, help string, kind prometheus.ValueType, of func(*gatewayFigures, func(float64, ...string)), labels ...string) {
		m.figures = append(m.figures, gatewayFigure{prometheus.NewDesc("ficus_gateway_"+name, help, append([]string{label}, labels...), nil), kind, of})
	}
	gauge := func(name, help string, of func(*gatewayFigures) int) {
		add(name, help, prometheus.GaugeValue, func(s *gatewayFigures, put func(float64, ...string)) { put(float64(of(s))) })
	}
	counter := func(name, help string, of func(*gatewayFigures) int64) {
		add(name, help, prometheus.CounterValue, func(s *gatewayFigures, put func(float64, ...string)) { put(float64(of(s))) })
	}
	gauge("clients", "Clients that are connected, those still starting included.", func(s *gatewayFigures) int { return s.Clients })
	gauge("sessions", "Clients with a server session.", func(s *gatewayFigures) int { return s.Sessions })
	gauge("held", "Clients that wait because of a promotion.", func(s *gatewayFigures) int { return s.Held })
	counter("moved_total", "Sessions that moved to the other database.", func(s *gatewayFigures) int64 { return s.Moved })
	counter("ended_total", "Sessions that were ended because their state could not move.", func(s *gatewayFigures) int64 { return s.Ended })
	counter("refused_total", "Clients that were refused, or waited too long.", func(s *gatewayFigures) int64 { return s.Refused })
	counter("transactions_total", "Transactions that passed.", func(s *gatewayFigures) int64 { return s.Transactions })
	counter("asks_total", "Times that the databases were asked who owns.", func(s *gatewayFigures) int64 { return s.Asks })
	add("stall_seconds", "How long clients waited because of the last hold; quantile 1 is the longest.", prometheus.GaugeValue, func(s *gatewayFigures, put func(float64, ...string)) {
		put(s.stalls.P50.Seconds(), "0.5")
		put(s.stalls.P99.Seconds(), "0.99")
		put(s.stalls.Max.Seconds(), "1")
	}, "quantile")

	gauge("reads_percent", "Percentage of the read-only door's reads on the database that does not own.", func(s *gatewayFigures) int { return s.reads.Percent })
	counter("reads_waited_total", "Reads that waited for a write of their user.", func(s *gatewayFigures) int64 { return s.reads.Waited })
	counter("reads_on_owner_total", "Reads that went to the owner because of a write of their user.", func(s *gatewayFigures) int64 { return s.reads.OnOwner })
	counter("reads_stepped_back_total", "Times that reads went back by themselves.", func(s *gatewayFigures) int64 { return s.reads.SteppedBack })
	counter("shadow_compared_total", "Shadow reads whose answers were compared.", func(s *gatewayFigures) int64 { return s.shadow.Compared })
	counter("shadow_mismatched_total", "Shadow reads that the other database answered otherwise.", func(s *gatewayFigures) int64 { return s.shadow.Mismatched })
	counter("shadow_noise_total", "Shadow reads that the owner itself answered otherwise the second time.", func(s *gatewayFigures) int64 { return s.shadow.Noise })
	counter("shadow_left_out_total", "Shadow reads that were not compared: the queue was full, or a database behind or away.",
		func(s *gatewayFigures) int64 { return s.shadow.Dropped + s.shadow.Late + s.shadow.Failed })
	return m
}

// Describe implements [prometheus.Collector].
func (m *gatewayMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, f := range m.figures {
		out <- f.desc
	}
}

// Collect implements [prometheus.Collector].
func (m *gatewayMetrics) Collect(out chan<- prometheus.Metric) {
	for name, g := range m.all {
		s := gatewayFigures{Stats: g.Stats(), stalls: g.Stalls(), reads: g.ReadStats(), shadow: g.ShadowStats()}
		for _, f := range m.figures {
			f.of(&s, func(v float64, labels ...string) {
				out <- prometheus.MustNewConstMetric(f.desc, f.kind, v, append([]string{name}, labels...)...)
			})
		}
	}
}

// gateways are those of the migrations.
func (m *manager) gateways(yield func(string, *gateway.Gateway) bool) {
	for _, e := range m.all() {
		if e.gateway != nil && !yield(e.job.playbook.Name, e.gateway) {
			return
		}
	}
}
