package api

import (
	"errors"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/ficus-migrate/ficus/migrate"
)

// newRegistry returns what /metrics shows.
func (s *Server) newRegistry() (*prometheus.Registry, error) {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ficus_build_info", Help: "1, with the version of the program.", ConstLabels: prometheus.Labels{"version": s.cfg.Version},
	})
	build.Set(1)
	r := prometheus.NewRegistry()
	all := append([]prometheus.Collector{
		build, s.traffic.requests, newGauges(s.cfg.Service),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}, s.cfg.Collectors...)
	var errs []error
	for _, c := range all {
		errs = append(errs, r.Register(c))
	}
	return r, errors.Join(errs...)
}

// traffic counts requests.
type traffic struct{ requests *prometheus.CounterVec }

func newTraffic() *traffic {
	return &traffic{requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ficus_http_requests_total", Help: "Answered requests of API and dashboard; event streams count when they end.",
	}, []string{"method", "route", "status"})}
}

func (t *traffic) count(c *gin.Context) {
	c.Next()
	method, route := c.Request.Method, c.FullPath()
	if route == "" { // whatever a stranger makes up must not become a label
		method, route = "other", "other"
	}
	t.requests.WithLabelValues(method, route, strconv.Itoa(c.Writer.Status())).Inc()
}

// put is one value with the labels that follow "migration".
type put func(value float64, labels ...string)

// A gauge is one metric of a migration.
type gauge struct {
	name, help string
	labels     []string // beside "migration"
	kind       prometheus.ValueType
	of         func(s *migrate.Status, put put)
}

// gauges reads all metrics from one status per migration and scrape.
type gauges struct {
	service Service
	rows    []gauge
	descs   []*prometheus.Desc
}

func newGauges(service Service) *gauges {
	g := &gauges{service: service, rows: gaugeTable()}
	for _, row := range g.rows {
		g.descs = append(g.descs, prometheus.NewDesc("ficus_migration_"+row.name, row.help, append([]string{"migration"}, row.labels...), nil))
	}
	return g
}

// Describe implements [prometheus.Collector].
func (g *gauges) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range g.descs {
		descs <- d
	}
}

// Collect implements [prometheus.Collector].
func (g *gauges) Collect(metrics chan<- prometheus.Metric) {
	for _, s := range g.service.List() {
		for i, row := range g.rows {
			kind := row.kind
			if kind == 0 {
				kind = prometheus.GaugeValue
			}
			row.of(&s, func(v float64, labels ...string) {
				metrics <- prometheus.MustNewConstMetric(g.descs[i], kind, v, append([]string{s.Name}, labels...)...)
			})
		}
	}
}

func gaugeTable() []gauge {
	return append(stateGauges(), workGauges()...)
}

// stateGauges say where a migration stands.
func stateGauges() []gauge {
	return []gauge{
		{name: "phase", help: "1 for the present phase, 0 for the others.", labels: []string{"phase"}, of: func(s *migrate.Status, put put) {
			for _, p := range phases() {
				put(truth(p == s.Phase), string(p))
			}
		}},
		{name: "phase_since_timestamp_seconds", help: "When the present phase began.", of: func(s *migrate.Status, put put) { put(unix(s.PhaseSince)) }},
		{name: "running", help: "Whether this process drives the migration.", of: func(s *migrate.Status, put put) { put(truth(s.Running)) }},
		{name: "paused", help: "Whether a person paused it.", of: func(s *migrate.Status, put put) { put(truth(s.Paused)) }},
		{name: "error", help: "Whether it shows an error.", of: func(s *migrate.Status, put put) { put(truth(s.Error != "")) }},
		{name: "waiting", help: "1 for the gate, or the person's command, that it waits for.", labels: []string{"for"}, of: func(s *migrate.Status, put put) {
			if s.WaitingFor != "" {
				put(1, s.WaitingFor)
			}
		}},
		{name: "owner", help: "1 for the side that owns the data.", labels: []string{"side"}, of: func(s *migrate.Status, put put) {
			put(truth(s.Owner == migrate.Source), string(migrate.Source))
			put(truth(s.Owner == migrate.Target), string(migrate.Target))
		}},
		{name: "epoch", help: "Counts changes of owner.", of: func(s *migrate.Status, put put) { put(float64(s.Epoch)) }},
		{name: "gate_open", help: "Whether a gate is open.", labels: []string{"gate", "before"}, of: func(s *migrate.Status, put put) {
			for _, g := range s.Gates {
				put(truth(g.Open), g.Name, string(g.Phase))
			}
		}},
		{name: "rollback_safe", help: "Whether going back would lose nothing.", of: func(s *migrate.Status, put put) { put(truth(s.Rollback.Safe)) }},
		{name: "reads_percent", help: "Read-only traffic on the side that does not own the data.", of: func(s *migrate.Status, put put) { put(float64(s.ReadsOn)) }},
	}
}

// workGauges say what was moved, proved and switched.
func workGauges() []gauge {
	return []gauge{
		{name: "copied_rows", help: "Rows of the initial load so far.", of: func(s *migrate.Status, put put) { rows, _ := copied(s); put(rows) }},
		{name: "copied_bytes", help: "Bytes of the initial load so far.", of: func(s *migrate.Status, put put) { _, bytes := copied(s); put(bytes) }},
		{name: "lag_bytes", help: "WAL written at the owner and not yet applied.", of: ofLag(func(l *migrate.Lag) float64 { return float64(l.Bytes) })},
		{name: "lag_seconds", help: "Age of the newest applied commit while something is outstanding.", of: ofLag(func(l *migrate.Lag) float64 { return l.Time.Seconds() })},
		{name: "retained_wal_bytes", help: "WAL that the slot keeps on the owner.", of: ofLag(func(l *migrate.Lag) float64 { return float64(l.Retained) })},
		{
			name: "applied_rows_total", help: "Row changes applied since the present link was made.", kind: prometheus.CounterValue,
			of: ofLag(func(l *migrate.Lag) float64 { return float64(l.Rows) }),
		},
		{
			name: "decided_rows_total", help: "Rows of the follower that follow.on_conflict overruled (table ficus.conflicts).", kind: prometheus.CounterValue,
			of: ofLag(func(l *migrate.Lag) float64 { return float64(l.Decided) }),
		},
		{name: "proof_differences", help: "Differing rows of the newest proof; kind is exact, or fence for that of the last promotion.", labels: []string{"kind"}, of: ofProofs(func(p *migrate.Proof) float64 { return float64(p.Differences) })},
		{name: "proof_age_seconds", help: "Age of the newest proof.", labels: []string{"kind"}, of: ofProofs(func(p *migrate.Proof) float64 { return time.Since(p.Time).Seconds() })},
		{name: "promotions", help: "Changes of owner so far, rollbacks included.", of: func(s *migrate.Status, put put) { put(float64(len(s.Promotions))) }},
		{name: "blackout_seconds", help: "Time without a writable owner in the last promotion.", of: ofPromotion(func(p *migrate.Promotion, put put) { put(p.Blackout.Seconds()) })},
		{name: "stall_seconds", help: "How long clients waited in the last promotion; quantile 1 is the longest.", labels: []string{"quantile"}, of: ofPromotion(func(p *migrate.Promotion, put put) {
			put(p.Stall.P50.Seconds(), "0.5")
			put(p.Stall.P99.Seconds(), "0.99")
			put(p.Stall.Max.Seconds(), "1")
		})},
	}
}

func phases() []migrate.Phase {
	return []migrate.Phase{
		migrate.Pending, migrate.Preparing, migrate.Copying, migrate.CatchingUp, migrate.Following, migrate.Verifying, migrate.ReadsSwitched,
		migrate.Promoting, migrate.Promoted, migrate.RollingBack, migrate.RolledBack, migrate.Completed, migrate.Cancelled, migrate.Failed,
	}
}

func ofLag(value func(*migrate.Lag) float64) func(*migrate.Status, put) {
	return func(s *migrate.Status, put put) {
		if s.Lag != nil {
			put(value(s.Lag))
		}
	}
}

func ofProofs(value func(*migrate.Proof) float64) func(*migrate.Status, put) {
	return func(s *migrate.Status, put put) {
		if s.Proof != nil {
			put(value(s.Proof), "exact")
		}
		if s.FenceProof != nil {
			put(value(s.FenceProof), "fence")
		}
	}
}

func ofPromotion(values func(*migrate.Promotion, put)) func(*migrate.Status, put) {
	return func(s *migrate.Status, put put) {
		if n := len(s.Promotions); n > 0 {
			values(&s.Promotions[n-1], put)
		}
	}
}

// copied sums up a load: by its tables while it runs, as the journal has it later.
func copied(s *migrate.Status) (rows, bytes float64) {
	if s.Copied != nil {
		return float64(s.Copied.Rows), float64(s.Copied.Bytes)
	}
	for _, t := range s.Tables {
		rows += float64(t.Rows)
		bytes += float64(t.Bytes)
	}
	return rows, bytes
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
