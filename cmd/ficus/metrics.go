package main

import (
	"github.com/prometheus/client_golang/prometheus"
)

// gatewayMetrics are the figures of every gateway of a process. It is a prometheus.Collector.
type gatewayMetrics struct {
	m *manager

	clients, sessions, held             *prometheus.Desc
	moved, ended, refused, transactions *prometheus.Desc

	readPercent, readWaited, readOnOwner, readBack        *prometheus.Desc
	shadowCompared, shadowWrong, shadowNoise, shadowOmits *prometheus.Desc
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

		readPercent:    desc("reads_percent", "Percentage of the read-only door's reads on the database that does not own."),
		readWaited:     desc("reads_waited_total", "Reads that waited for a write of their user."),
		readOnOwner:    desc("reads_on_owner_total", "Reads that went to the owner because of a write of their user."),
		readBack:       desc("reads_stepped_back_total", "Times that reads went back by themselves."),
		shadowCompared: desc("shadow_compared_total", "Shadow reads whose answers were compared."),
		shadowWrong:    desc("shadow_mismatched_total", "Shadow reads that the other database answered otherwise."),
		shadowNoise:    desc("shadow_noise_total", "Shadow reads that the owner itself answered otherwise the second time."),
		shadowOmits:    desc("shadow_left_out_total", "Shadow reads that were not compared: the queue was full, or a database behind or away."),
	}
}

// Describe implements [prometheus.Collector].
func (g *gatewayMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		g.clients, g.sessions, g.held, g.moved, g.ended, g.refused, g.transactions,
		g.readPercent, g.readWaited, g.readOnOwner, g.readBack, g.shadowCompared, g.shadowWrong, g.shadowNoise, g.shadowOmits,
	} {
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
		r, sh := e.gateway.ReadStats(), e.gateway.ShadowStats()
		for d, v := range map[*prometheus.Desc]int64{
			g.clients: int64(s.Clients), g.sessions: int64(s.Sessions), g.held: int64(s.Held), g.readPercent: int64(r.Percent),
		} {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), name)
		}
		for d, v := range map[*prometheus.Desc]int64{
			g.moved: s.Moved, g.ended: s.Ended, g.refused: s.Refused, g.transactions: s.Transactions,
			g.readWaited: r.Waited, g.readOnOwner: r.OnOwner, g.readBack: r.SteppedBack,
			g.shadowCompared: sh.Compared, g.shadowWrong: sh.Mismatched, g.shadowNoise: sh.Noise, g.shadowOmits: sh.Dropped + sh.Late + sh.Failed,
		} {
			out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), name)
		}
	}
}
