package main

import (
	"github.com/prometheus/client_golang/prometheus"
)

// gatewayMetrics are the figures of every gateway of a process. It is a prometheus.Collector.
type gatewayMetrics struct {
	m *manager

	clients, sessions, held             *prometheus.Desc
	moved, ended, refused, transactions *prometheus.Desc
}

func newGatewayMetrics(m *manager) *gatewayMetrics {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("ficus_gateway_"+name, help, []string{"migration"}, nil)
	}
	return &gatewayMetrics{
		m:            m,
		clients:      desc("clients", "Clients that are connected, those still starting included."),
		sessions:     desc("sessions", "Clients with a server session."),
		held:         desc("held", "Clients that wait because of a promotion."),
		moved:        desc("moved_total", "Sessions that moved to the other database."),
		ended:        desc("ended_total", "Sessions that were ended because their state could not move."),
		refused:      desc("refused_total", "Clients that were refused, or waited too long."),
		transactions: desc("transactions_total", "Transactions that passed."),
	}
}

// Describe implements [prometheus.Collector].
func (g *gatewayMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.clients, g.sessions, g.held, g.moved, g.ended, g.refused, g.transactions} {
		out <- d
	}
}

// Collect implements [prometheus.Collector].
func (g *gatewayMetrics) Collect(out chan<- prometheus.Metric) {
	for _, e := range g.m.all() {
		if e.gateway == nil {
			continue
		}
		s, name := e.gateway.Stats(), e.job.playbook.Name
		for d, v := range map[*prometheus.Desc]int64{g.clients: int64(s.Clients), g.sessions: int64(s.Sessions), g.held: int64(s.Held)} {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), name)
		}
		for d, v := range map[*prometheus.Desc]int64{g.moved: s.Moved, g.ended: s.Ended, g.refused: s.Refused, g.transactions: s.Transactions} {
			out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), name)
		}
	}
}
