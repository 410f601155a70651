package api

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ficus-migrate/ficus/migrate"
)

func TestMetrics(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set(func(s *migrate.Status) {
		s.Tables = []migrate.TableProgress{{Rows: 3, Bytes: 40}, {Rows: 4, Bytes: 60}}
		s.Gates = []migrate.GateState{{Name: "lag", Phase: migrate.Promoting, Open: true}, {Name: "approval", Phase: migrate.Promoting}}
		s.Proof = &migrate.Proof{Differences: 2, Time: time.Now().Add(-time.Minute)}
		s.Promotions = []migrate.Promotion{{}, {Blackout: 142 * time.Millisecond, Stall: migrate.StallStats{P99: 190 * time.Millisecond}}}
		s.WaitingFor = migrate.GateApproval
	})
	extra := prometheus.NewGauge(prometheus.GaugeOpts{Name: "ficus_gateway_clients", Help: "x"})
	_, h := serve(t, Config{Service: f, Version: "v1.2.3", Collectors: []prometheus.Collector{extra}})
	var text string
	for range 2 { // the second shows that the first was counted
		resp := get(t, h.URL+"/metrics")
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	for _, want := range []string{
		`ficus_migration_phase{migration="shop",phase="following"} 1`,
		`ficus_migration_phase{migration="shop",phase="failed"} 0`,
		`ficus_migration_lag_bytes{migration="shop"} 8192`,
		`ficus_migration_lag_seconds{migration="shop"} 1.5`,
		`ficus_migration_retained_wal_bytes{migration="shop"} 99`,
		`ficus_migration_applied_rows_total{migration="shop"} 7`,
		`ficus_migration_copied_rows{migration="shop"} 7`,
		`ficus_migration_copied_bytes{migration="shop"} 100`,
		`ficus_migration_gate_open{before="promoting",gate="lag",migration="shop"} 1`,
		`ficus_migration_gate_open{before="promoting",gate="approval",migration="shop"} 0`,
		`ficus_migration_waiting{for="approval",migration="shop"} 1`,
		`ficus_migration_proof_differences{kind="exact",migration="shop"} 2`,
		`ficus_migration_proof_age_seconds{kind="exact",migration="shop"} 6`,
		`ficus_migration_blackout_seconds{migration="shop"} 0.142`,
		`ficus_migration_stall_seconds{migration="shop",quantile="0.99"} 0.19`,
		`ficus_migration_rollback_safe{migration="shop"} 0`,
		`ficus_migration_owner{migration="shop",side="source"} 1`,
		`ficus_http_requests_total{method="GET",route="/metrics",status="200"} 1`,
		`ficus_build_info{version="v1.2.3"} 1`,
		"ficus_gateway_clients 0", "go_goroutines", "process_open_fds",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if strings.Contains(text, `kind="fence"`) {
		t.Error("a fence proof that there was not")
	}
}

func TestCollectorTwiceIsAnError(t *testing.T) {
	t.Parallel()
	twice := prometheus.NewGauge(prometheus.GaugeOpts{Name: "ficus_migration_epoch", Help: "x"})
	if _, err := New(Config{Service: newFake(), Collectors: []prometheus.Collector{twice}}); err == nil {
		t.Error("no error")
	}
}
