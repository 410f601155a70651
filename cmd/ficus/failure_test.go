package main

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestFailureKeepsTheDoorOpen: a row that the target refuses stops the link, not the application;
// once the cause is mended the migration goes on where it was.
func TestFailureKeepsTheDoorOpen(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY, v text); INSERT INTO public.t SELECT i, 'row' FROM generate_series(1, 100) i`)
	gateway, api := freeAddrs(t)
	dir := t.TempDir()
	run := ficus(t, dir, "run", "cluster-move", "--name", nameFor(source), "--source", source.URL, "--target", target.URL, "--yes", "--gateway-listen", gateway, "--listen", api, "--until", "following")
	run.line("result", map[string]any{"phase": "following"})

	app, err := pgx.Connect(t.Context(), "postgresql://postgres@"+gateway+"/"+source.Name+"?sslmode=disable")
	must(t, err)
	defer app.Close(t.Context())
	write := func(id int) {
		t.Helper()
		if _, err := app.Exec(t.Context(), `INSERT INTO public.t VALUES ($1, 'app')`, id); err != nil {
			t.Errorf("the application's insert %d: %v", id, err)
		}
	}
	if got := get(t, "http://"+api+"/metrics"); !strings.Contains(got, `ficus_gateway_sessions{migration="`+nameFor(source)+`"} 1`) {
		t.Errorf("the gateway's figures are not among the metrics:\n%s", got)
	}
	stranger := target.Conn(t)
	for _, sql := range []string{`SET session_replication_role = replica`, `INSERT INTO public.t VALUES (200, 'stranger')`} {
		_, err := stranger.Exec(t.Context(), sql)
		must(t, err)
	}
	write(200)
	run.line("phase", map[string]any{"phase": "failed"})
	status, code := once(t, dir, "status", nameFor(source), "--api", "http://"+api)
	if text, _ := status["error"].(string); code != 0 || !strings.Contains(text, "public.t") || !strings.Contains(text, "200") || status["hint"] == nil {
		t.Errorf("status %d: %v", code, status)
	}
	write(201)

	_, err = stranger.Exec(t.Context(), `DELETE FROM public.t WHERE id = 200`)
	must(t, err)
	if out, code := once(t, dir, "resume", nameFor(source), "--wait", "--api", "http://"+api); code != 0 {
		t.Fatalf("resume: status %d, %v", code, out)
	}
	write(202)
	pgtest.Eventually(t, "the link to go on", func() bool { return target.Int(t, `SELECT count(*) FROM public.t`) == 103 })
	if out, code := once(t, dir, "verify", nameFor(source), "--api", "http://"+api); code != 0 || out["differences"] != 0.0 {
		t.Errorf("verify: status %d, %v", code, out)
	}
}

// get returns the body of an answer of status 200.
func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s\n%s", url, resp.Status, body)
	}
	return string(body)
}
