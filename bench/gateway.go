package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// gateway measures what it costs that something stands between clients and server.
type gateway struct{}

const (
	gatewayClients = 16
	gatewayThreads = "2" // of pgbench
)

func (gateway) name() string { return "gateway" }

func (gateway) run(ctx context.Context, b *bench) (_ []*Result, err error) {
	const source, target = "gateway_source", "gateway_target"
	drop := func(ctx context.Context) error {
		return errors.Join(b.Source.Drop(ctx, source), b.Target.Drop(ctx, target))
	}
	if err := errors.Join(drop(ctx), b.Source.Create(ctx, source, ""), b.Target.Create(ctx, target, "")); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx))) }()
	if err := errors.Join(b.pgbenchInit(ctx, b.Source, source, b.size.gatewayScale), b.Source.Exec(ctx, source, "VACUUM ANALYZE")); err != nil {
		return nil, err
	}
	doors, err := openDoors(ctx, b, source, target)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, doors.close(context.WithoutCancel(ctx))) }()

	r := &Result{Scenario: "gateway", Title: "What stands before the server", Work: []string{
		fmt.Sprintf("pgbench -S -M prepared, %d clients, %d s each, scale %d, over TCP on loopback without TLS. Latency is the mean of a transaction; throughput is %d clients divided by it.",
			gatewayClients, b.size.gatewaySeconds, b.size.gatewayScale, gatewayClients),
		"Ficus is the front door of a migration that follows, which has nothing to follow meanwhile. The relay is a Go program that copies bytes through a buffer of 32 kB and looks at none: it runs within the benchmark.",
	}}
	if r.Contenders, err = b.compete(ctx, "gateway", doors.contenders(), nil); err != nil {
		return nil, err
	}
	r.compare(0.9)
	return []*Result{r}, nil
}

// doors are the ways to one database, all open at once; one is in use at a time.
type doors struct {
	*bench
	direct  string // connection strings
	front   *front
	bouncer *bouncer // nil where there is none
	relay   *relay
}

func openDoors(ctx context.Context, b *bench, source, target string) (_ *doors, err error) {
	d := &doors{bench: b, direct: b.Source.URL(source)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close(context.WithoutCancel(ctx)))
		}
	}()
	if d.front, err = b.openFront(ctx, "gateway", source, target); err != nil {
		return nil, err
	}
	if d.relay, err = newRelay(ctx, b.Source.DSN(source)); err != nil {
		return nil, err
	}
	if b.tools.pgbouncer != "" {
		if d.bouncer, err = newBouncer(ctx, b, source); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *doors) contenders() []contender {
	pgbouncer := &visitor{doors: d, Contender: Contender{Name: "pgbouncer", Settings: "pool_mode = session", Missing: "no pgbouncer is installed"}}
	if d.bouncer != nil {
		pgbouncer.Missing, pgbouncer.url, pgbouncer.cpu = "", d.bouncer.url, d.bouncer.CPU
	}
	return []contender{
		&visitor{doors: d, Contender: Contender{Name: ficusName, Settings: "router: gateway, defaults"}, url: d.front.url, cpu: d.front.CPU},
		pgbouncer,
		&visitor{doors: d, Contender: Contender{Name: "direct", Limit: true}, url: d.direct, cpu: func() time.Duration { return 0 }},
		&visitor{doors: d, Contender: Contender{Name: "relay", Limit: true}, url: d.relay.url, cpu: ownCPU},
	}
}

func (d *doors) close(ctx context.Context) error {
	var errs []error
	if d.front != nil {
		errs = append(errs, d.front.close(ctx))
	}
	if d.bouncer != nil {
		errs = append(errs, d.bouncer.close())
	}
	if d.relay != nil {
		errs = append(errs, d.relay.close())
	}
	return errors.Join(errs...)
}

// A visitor lets clients work through one door.
type visitor struct {
	*doors
	Contender
	url string
	cpu func() time.Duration // of what stands there, so far
}

func (v *visitor) about() Contender { return v.Contender }

var averageLatency = regexp.MustCompile(`latency average = ([0-9.]+) ms`)

func (v *visitor) run(ctx context.Context, _ int) (Run, error) {
	clock, before := v.Clock(), v.cpu()
	said, _, err := lab.Run(ctx, v.tools.pgbench, "-n", "-S", "-M", "prepared", "-c", strconv.Itoa(gatewayClients), "-j", gatewayThreads, "-T", strconv.Itoa(v.size.gatewaySeconds), v.url)
	if err != nil {
		return Run{}, err
	}
	_, used := clock.Stop()
	used.Program = v.cpu() - before
	latency, n := averageLatency.FindStringSubmatch(said), processed.FindStringSubmatch(said)
	if latency == nil || n == nil {
		return Run{}, fmt.Errorf("pgbench told no figures: %s", said)
	}
	mean, err := strconv.ParseFloat(latency[1], 64)
	if err != nil {
		return Run{}, err
	}
	transactions, err := strconv.ParseFloat(n[1], 64)
	if err != nil || transactions == 0 || mean == 0 {
		return Run{}, fmt.Errorf("pgbench made nothing: %s", said)
	}
	micros := func(d time.Duration) float64 { return float64(d.Microseconds()) / transactions }
	return Run{Metrics: []Metric{
		{"latency", "µs", mean * 1000},
		{"throughput", "1/s", gatewayClients * 1000 / mean},
		{cpuName, "µs/transaction", micros(used.Program + used.Source)},
		{"program cpu", "µs/transaction", micros(used.Program)},
		{"source cpu", "µs/transaction", micros(used.Source)},
	}}, nil
}

func (*visitor) discard(context.Context, int) error { return nil }

// ownCPU is the processor time of this program, in which the relay runs.
func ownCPU() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// A bouncer is PgBouncer before one database.
type bouncer struct {
	*lab.Process
	dir, url string
}

func newBouncer(ctx context.Context, b *bench, database string) (_ *bouncer, err error) {
	p := &bouncer{}
	if p.dir, err = b.Scratch(); err != nil {
		return nil, err
	}
	if err := os.Chmod(p.dir, 0o755); err != nil { //nolint:gosec // it runs as another user
		return nil, err
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	server := b.Source.DSN(database)
	file := filepath.Join(p.dir, "pgbouncer.ini")
	text := fmt.Sprintf("[databases]\n%s = host=%s port=%d user=%s\n[pgbouncer]\nlisten_addr = %s\nlisten_port = %s\nunix_socket_dir =\nauth_type = any\npool_mode = session\ndefault_pool_size = 64\nmax_client_conn = 200\n",
		database, server.Host(), server.Port(), server.User(), host, port)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil { //nolint:gosec // it runs as another user
		return nil, err
	}
	args := []string{"-q", file}
	if os.Geteuid() == 0 { // which it refuses to run as
		args = []string{"-q", "-u", "nobody", file}
	}
	if p.Process, err = lab.Start(context.WithoutCancel(ctx), b.tools.pgbouncer, args...); err != nil {
		return nil, err
	}
	p.url = fmt.Sprintf("postgresql://%s@%s/%s?sslmode=disable", server.User(), address, database)
	return p, p.opens(ctx, address)
}

// opens waits until it takes connections.
func (p *bouncer) opens(ctx context.Context, address string) error {
	const patience = 10 * time.Second
	var dialer net.Dialer
	for deadline := time.Now().Add(patience); ; {
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("pgbouncer takes no connections: %w", err), p.close())
		}
		if err := rest(ctx, 20*time.Millisecond); err != nil {
			return errors.Join(err, p.close())
		}
	}
}

func (p *bouncer) close() error {
	err := p.Stop()
	return errors.Join(err, os.RemoveAll(p.dir))
}
