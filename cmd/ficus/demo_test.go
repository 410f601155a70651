package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/examples/shop"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgserver"
	"github.com/ficus-migrate/ficus/migrate"
)

// The whole way, small: to the report, a moment of play after it, and an interrupt.
func TestDemo(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithTimeout(t.Context(), 3*time.Minute)
	defer interrupt()
	r, w := io.Pipe()
	var stderr bytes.Buffer
	status := make(chan int, 1)
	go func() {
		args := []string{"demo", "--json", "--keep", "--rows", "20000", "--seconds", "2", "--rate", "200"}
		status <- execute(ctx, args, strings.NewReader(""), w, &stderr)
		_ = w.Close()
	}()

	kinds := map[string]int{}
	var last []byte
	var result demoReport
	for lines := bufio.NewScanner(r); lines.Scan(); {
		last = bytes.Clone(lines.Bytes())
		var line struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(last, &line); err != nil {
			t.Fatalf("%q: %v", last, err)
		}
		kinds[line.Type]++
		if line.Type == "result" {
			if err := json.Unmarshal(last, &result); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(time.Second, interrupt) // with --keep it plays until then
		}
	}
	if got := <-status; got != exitDone {
		t.Errorf("exit status %d, want %d\n%s\n%s", got, exitDone, last, stderr.Bytes())
	}
	for kind, least := range map[string]int{"story": 8, "clusters": 1, "filled": 1, "listening": 1, "phase": 8, "promotion": 3, "change": 3, "result": 1} {
		if kinds[kind] < least {
			t.Errorf("%d lines of type %s, want %d", kinds[kind], kind, least)
		}
	}
	if kinds["result"] != 1 || !bytes.Contains(last, []byte(`"type":"result"`)) {
		t.Errorf("%d results; the last line is %s", kinds["result"], last)
	}
	checkResult(t, &result)
}

func checkResult(t *testing.T, r *demoReport) {
	t.Helper()
	tx := &r.Transactions
	if !r.OK || len(r.Problems) > 0 || r.Phase != migrate.Promoted || !r.RollbackSafe {
		t.Errorf("ok %v, phase %s, rollback safe %v, problems %q", r.OK, r.Phase, r.RollbackSafe, r.Problems)
	}
	if tx.Report == nil || tx.Acknowledged < 500 || tx.Found != tx.Acknowledged || tx.Failed+tx.InDoubt != 0 || tx.Reads == 0 {
		t.Errorf("transactions: %+v %+v", tx, tx.Report)
	}
	if r.RowsFilled < 18_000 || r.RowsCopied < r.RowsFilled || r.BytesCopied == 0 || r.CopySeconds <= 0 || r.Seconds < 10 {
		t.Errorf("filled %d rows, copied %d (%d bytes) in %f of %f s", r.RowsFilled, r.RowsCopied, r.BytesCopied, r.CopySeconds, r.Seconds)
	}
	if r.Verify.Rows <= r.RowsCopied || r.Verify.Differences != 0 {
		t.Errorf("verified: %+v, after %d copied rows", r.Verify, r.RowsCopied)
	}
	var way []migrate.Side
	for _, c := range r.Changes {
		way = append(way, c.To)
		if c.Blackout <= 0 || c.Felt.Clients == 0 || c.Felt.Max < c.Felt.P50 || c.Stall.Max < c.Stall.P50 || c.Differences != 0 {
			t.Errorf("change of owner: %+v", c)
		}
	}
	if diff := cmp.Diff([]migrate.Side{migrate.Target, migrate.Source, migrate.Target}, way); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
}

// Interrupted in the middle of a copy, or of anything, the demo leaves nothing.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	a := &app{stdout: writer(func(line []byte) {
		if bytes.Contains(line, []byte(`"phase":"copying"`)) {
			interrupt()
		}
	}), json: true}
	d := &demo{
		app: a, flags: demoFlags{rows: 5000, writers: 2, readers: 1, rate: 50, listen: "127.0.0.1:0", gatewayListen: "127.0.0.1:0"},
		log: slog.New(slog.DiscardHandler), ledger: &shop.Ledger{}, began: time.Now(),
	}
	d.story = newStory(a, d.live)
	defer d.story.close()
	err := d.run(ctx)
	if !errors.Is(err, context.Canceled) || d.left != nil {
		t.Errorf("interrupted: %v; left: %v", err, d.left)
	}
	for _, dir := range []string{d.ground.dir, d.ground.source.Dir(), d.ground.target.Dir()} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
	if d.ground.source.Running() || d.ground.target.Running() {
		t.Error("a cluster runs on")
	}
}

// A writer is called with what is written.
type writer func([]byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

func TestDemoFlags(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--rows", "10"}, {"--writers", "0"}, {"--rate", "-1"}, {"--seconds", "-1"}, {"extra"}, {"--source-version", "7"}} {
		var stderr bytes.Buffer
		got := execute(t.Context(), append([]string{"demo"}, args...), strings.NewReader(""), io.Discard, &stderr)
		if got != exitUsage || !strings.Contains(stderr.String(), "hint: ") {
			t.Errorf("%v: exit status %d, %s", args, got, stderr.Bytes())
		}
	}
}

func TestChooseInstalls(t *testing.T) {
	t.Parallel()
	found := []pgserver.Install{{Major: 18}, {Major: 15}, {Major: 13}}
	for _, c := range []struct {
		found                    []pgserver.Install
		source, target, from, to int
	}{
		{found, 0, 0, 13, 18},
		{found[1:2], 0, 0, 15, 15},
		{found, 15, 0, 15, 18},
		{found, 0, 15, 13, 15},
		{found, 18, 13, 18, 13},
	} {
		from, to, err := chooseInstalls(c.found, c.source, c.target)
		if err != nil || from.Major != c.from || to.Major != c.to {
			t.Errorf("%d and %d of %d: %d to %d, %v", c.source, c.target, len(c.found), from.Major, to.Major, err)
		}
	}
	if _, _, err := chooseInstalls(found, 0, 16); err == nil || !strings.Contains(hint.Of(err), "18, 15, 13") {
		t.Errorf("a version that is not there: %v, hint %q", err, hint.Of(err))
	}
}

// Whatever does not hold must be named, and end the demo with a status of its own.
func TestDemoVerdict(t *testing.T) {
	t.Parallel()
	good := func() *demoReport {
		return &demoReport{
			Phase: migrate.Promoted, RowsCopied: 1, Changes: make([]demoChange, 3), Verify: demoVerify{Rows: 1},
			Transactions: demoTransactions{Report: &shop.Report{Acknowledged: 2, Found: 2, Servers: map[int]int64{1: 1, 2: 1}}, Reads: 1},
		}
	}
	r := good()
	if r.judge(); !r.OK || r.verdict() != nil {
		t.Errorf("a good report: %q, %v", r.Problems, r.verdict())
	}
	for name, spoil := range map[string]func(*demoReport){
		"lost":             func(r *demoReport) { r.Transactions.Found, r.Transactions.Missing = 1, 1 },
		"doubled":          func(r *demoReport) { r.Transactions.Doubled = 1 },
		"altered":          func(r *demoReport) { r.Transactions.Altered = 1 },
		"unexpected":       func(r *demoReport) { r.Transactions.Unexpected = 1 },
		"failed":           func(r *demoReport) { r.Transactions.Failed = 1 },
		"in doubt":         func(r *demoReport) { r.Transactions.InDoubt = 1 },
		"unbalanced":       func(r *demoReport) { r.Transactions.Unbalanced = []string{"1 order"} },
		"none":             func(r *demoReport) { r.Transactions.Acknowledged, r.Transactions.Found = 0, 0 },
		"one server":       func(r *demoReport) { delete(r.Transactions.Servers, 2) },
		"reads failed":     func(r *demoReport) { r.Transactions.ReadsFailed = 1 },
		"reads torn":       func(r *demoReport) { r.Transactions.Torn = 1 },
		"nothing read":     func(r *demoReport) { r.Transactions.Reads = 0 },
		"rows differ":      func(r *demoReport) { r.Verify.Differences = 1 },
		"nothing compared": func(r *demoReport) { r.Verify.Rows = 0 },
		"fence differs":    func(r *demoReport) { r.Changes[1].Differences = 1 },
		"nothing copied":   func(r *demoReport) { r.RowsCopied = 0 },
		"a change missing": func(r *demoReport) { r.Changes = r.Changes[:2] },
		"wrong phase":      func(r *demoReport) { r.Phase = migrate.RolledBack },
	} {
		r := good()
		spoil(r)
		r.judge()
		err := r.verdict()
		var status *statusError
		if r.OK || !errors.As(err, &status) || status.status != exitFailed || hint.Of(err) == "" {
			t.Errorf("%s: ok %v, %v", name, r.OK, err)
		}
	}
}
