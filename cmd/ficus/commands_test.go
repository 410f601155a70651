package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/examples/shop/dataserver"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestDataServerGivesWay migrates a data server to its successor, with the playbook of the documentation,
// while a front end sends commands: promotion, a kill of the process, rollback, promotion. Each command that
// was acknowledged is done once, in its customer's order, and has the number that was told.
//
// It fails when what a killed process left is not sent.
func TestDataServerGivesWay(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, dataserver.LegacySchema)
	serve := func(g dataserver.Generation, dsn string) string {
		t.Helper()
		s, err := dataserver.New(t.Context(), g, dsn)
		must(t, err)
		h := httptest.NewServer(s)
		t.Cleanup(func() {
			h.Close()
			s.Close()
		})
		return h.URL
	}
	legacy, successor := serve(dataserver.Legacy, source.URL), serve(dataserver.Successor, target.URL)
	door, api := freeAddrs(t)
	dir, name := t.TempDir(), nameFor(source)
	args := []string{
		"run", "-f", "../../examples/shop/dataserver/playbook.yaml", "--name", name, "--source", source.URL, "--target", target.URL, "--yes", "--listen", api,
		"-p", "legacy=" + legacy, "-p", "successor=" + successor, "-p", "listen=" + door,
	}
	run := ficus(t, dir, args...)
	if l := run.line("listening", nil); l["http"] != door {
		t.Errorf("listening: %v", l)
	}
	front := &dataserver.FrontEnd{URL: func() string { return "http://" + door }, Customers: 6}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		front.Run(ctx)
	}()
	t.Cleanup(stop)
	drive := func(args ...string) map[string]any {
		t.Helper()
		out, status := once(t, dir, append(args, "--api", "http://"+api)...)
		if status != 0 {
			t.Fatalf("%s: status %d, %v", strings.Join(args, " "), status, out)
		}
		return out
	}
	goesOn := func() {
		t.Helper()
		before := front.Acknowledged()
		pgtest.Eventually(t, "the front end to go on", func() bool { return front.Acknowledged() > before+30 })
	}

	if r := run.line("result", map[string]any{"phase": "promoted"}); r["rollback_safe"] != true {
		t.Errorf("result %v", r)
	}
	goesOn()
	run.stop(os.Kill)
	run = ficus(t, dir, args...)
	run.line("listening", nil)
	run.line("result", map[string]any{"phase": "promoted"})
	goesOn()
	if s := drive("rollback", name, "--wait"); s["owner"] != "source" {
		t.Errorf("after rollback: %v", s)
	}
	goesOn()
	if s := drive("promote", name, "--wait"); s["owner"] != "target" {
		t.Errorf("after the second promotion: %v", s)
	}
	goesOn()
	stop()
	<-ended
	pgtest.Eventually(t, "all commands to be answered", func() bool { return drive("commands", "list", name)["commands"] == 0.0 })
	if err := front.Check(t.Context(), dataserver.Successor, target.URL); err != nil {
		t.Errorf("after %d commands: %v", front.Acknowledged(), err)
	}
	if v := drive("verify", name); v["differences"] != 0.0 {
		t.Errorf("verify: %v", v)
	}
	commandsAreSeen(t, "http://"+api, name, drive)
	drive("complete", name, "--wait")
	if status := run.wait(); status != 0 {
		t.Errorf("run ended with status %d", status)
	}
}

// commandsAreSeen looks at commands and the door from outside.
func commandsAreSeen(t *testing.T, api, name string, drive func(...string) map[string]any) {
	t.Helper()
	if c := drive("commands", "show", name, "customer-00/fig-00000"); c["state"] != "answered" || c["status"] != 200.0 || c["order"] != "customer-00" {
		t.Errorf("show: %v", c)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, api+"/metrics", http.NoBody)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	must(t, err)
	for _, want := range []string{
		fmt.Sprintf(`ficus_commands{migration=%q,state="waiting"} 0`, name),
		fmt.Sprintf(`ficus_commands_total{event="died",migration=%q} 0`, name),
		fmt.Sprintf(`ficus_http_shadow_reads_total{migration=%q,result="same"}`, name),
		fmt.Sprintf(`ficus_http_refused_total{migration=%q} 0`, name),
	} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}
