package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

// TestRehearse: "ficus run --rehearse" goes up to the fence and back, tells what that cost, and leaves the source
// to its writers; "promote" is then the real thing.
func TestRehearse(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO public.t SELECT i FROM generate_series(1, 100) i`)
	file := filepath.Join(t.TempDir(), "book.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "name: %s\nrouter: {type: none}\ngates: {lag_window: 1s}\n", nameFor(source)), 0o600))
	_, address := freeAddrs(t)
	p := ficus(t, t.TempDir(), "run", "-f", file, "--source", source.URL, "--target", target.URL, "--yes", "--rehearse", "--listen", address)
	out := p.line("result", nil)
	steps, _ := out["steps_ms"].(map[string]any)
	if out["rehearsed"] != true || out["owner"] != "source" || number(out["blackout_ms"]) <= 0 || len(steps) != 8 {
		t.Errorf("result %v", out)
	}
	source.Exec(t, `INSERT INTO public.t VALUES (101)`)
	client, err := api.NewClient("http://"+address, "")
	must(t, err)
	defer client.Close()
	must(t, client.Do(t.Context(), nameFor(source), migrate.Command{Verb: migrate.Promote, Actor: "test", Wait: true}))
	s, err := client.Get(t.Context(), nameFor(source))
	must(t, err)
	if s.Owner != migrate.Target || s.Rehearsal == nil || len(s.Promotions) != 1 || target.Int(t, `SELECT count(*) FROM public.t`) != 101 {
		t.Errorf("after the promotion: %+v", s)
	}
	if status := p.stop(os.Interrupt); status != 0 {
		t.Errorf("interrupted: status %d", status)
	}
}
