package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// runs makes a contender of times in seconds.
func runs(name string, seconds ...float64) Contender {
	c := Contender{Name: name}
	for i, s := range seconds {
		c.Runs = append(c.Runs, Run{Round: i + 1, Metrics: []Metric{{"time", "s", s}, {cpuName, "s", 2 * s}, {memoryName, "MB", 10 * s}}})
	}
	return c
}

// The goal stands beside the fastest peer, not beside a limit or another use of Ficus.
func TestCompare(t *testing.T) {
	t.Parallel()
	limit, own, missing := runs("limit", 1, 1, 1), runs("ficus follow", 3, 3, 3), Contender{Name: "gone", Missing: "not installed"}
	limit.Limit, own.Own = true, true
	r := Result{Contenders: []Contender{runs("slow", 9, 9, 9), limit, runs(ficusName, 2, 3, 4), own, runs("fast", 6, 6, 6), missing}}
	r.compare(1.5)
	got := map[string][2]any{}
	for _, x := range r.Ratios {
		got[x.Peer] = [2]any{x.Value.Median, x.Goal}
	}
	want := map[string][2]any{"slow": {3.0, ""}, "limit": {1.0 / 3, ""}, "fast": {2.0, "≥ 1.50"}}
	if len(got) != len(want) {
		t.Errorf("ratios to %v", got)
	}
	for peer, w := range want {
		if got[peer] != w {
			t.Errorf("%s: %v, want %v", peer, got[peer], w)
		}
	}
	text := strings.Builder{}
	if err := (&Report{Results: []*Result{&r}}).writeText(&text); err != nil || !strings.Contains(text.String(), "gone (not run: not installed)") {
		t.Errorf("%v\n%s", err, text.String())
	}
}

func TestPlot(t *testing.T) {
	t.Parallel()
	var grown []*Result
	for i, name := range []string{"growth-copy", "growth-catchup", "growth-transaction", "lag"} {
		r := &Result{Scenario: name}
		for _, n := range factors() {
			r.Contenders = append(r.Contenders, runs(times(n), float64(n)*0.8+float64(i)))
		}
		grown = append(grown, r)
	}
	var svg bytes.Buffer
	if err := writePlot(&svg, grown); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", ">in proportion<", ">copy<", ">catchup<", ">transaction<"} {
		if !strings.Contains(svg.String(), want) {
			t.Errorf("no %q in the plot", want)
		}
	}
	if strings.Contains(svg.String(), ">lag<") {
		t.Error("a line for what is no growth")
	}
	if err := writePlot(&svg, grown[3:]); err == nil {
		t.Error("an empty plot is drawn")
	}
}

// Runs of scenarios on their own become one report, the later ones in place of the earlier.
func TestLoadAndPage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var files []string
	for i, results := range [][]*Result{
		{{Scenario: "lag", Title: "old lag"}, {Scenario: "copy", Title: "the copy"}},
		{{Scenario: "lag", Title: "new lag", Contenders: []Contender{runs("a | b", 1)}}},
	} {
		path := filepath.Join(dir, string(rune('a'+i)))
		if err := writeFile(path, (&Report{Results: results}).writeJSON); err != nil {
			t.Fatal(err)
		}
		files = append(files, path)
	}
	var r Report
	if err := r.load(files); err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(dir, "page.md")
	if err := os.WriteFile(page, []byte("before\n"+pageBegin+"what was\n"+pageEnd+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time over its own text
		if err := r.updatePage(page); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	at := func(s string) int { return strings.Index(string(text), s) }
	order := []int{at("before\n"), at(pageBegin), at("### the copy"), at("### new lag"), at(`| a \| b | 1.00 |`), at(pageEnd), at("after\n")}
	if !slices.IsSorted(order) || order[0] != 0 || strings.Contains(string(text), "old lag") || strings.Contains(string(text), "what was") {
		t.Errorf("%v in\n%s", order, text)
	}
	if err := r.updatePage(filepath.Join(dir, "a")); err == nil {
		t.Error("wrote into a page without marks")
	}
}

// A fake contender notes when it ran.
type fake struct {
	name string
	ran  *[]string
	err  error
}

func (f fake) about() Contender { return Contender{Name: f.name} }

func (f fake) run(context.Context, int) (Run, error) {
	*f.ran = append(*f.ran, f.name)
	return Run{Metrics: []Metric{{"time", "s", 1}}}, f.err
}

func (f fake) discard(context.Context, int) error { return nil }

// Who comes first changes, and a run whose rows are wrong ends the scenario instead of counting.
func TestCompete(t *testing.T) {
	t.Parallel()
	var ran []string
	c := contest{
		rounds: 3, all: []contender{fake{"a", &ran, nil}, fake{"b", &ran, nil}},
		calm: func(context.Context) error { return nil }, say: func(context.Context, string, ...any) {},
	}
	results, err := c.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(ran, ""); got != "abbaab" {
		t.Errorf("ran in order %s", got)
	}
	if n := len(results[0].Runs); n != 3 || results[0].Runs[2].Round != 3 {
		t.Errorf("%d runs: %+v", n, results[0].Runs)
	}
	wrong := errors.New("the target is wrong")
	c.all = append(c.all, fake{"c", &ran, wrong})
	if _, err := c.run(t.Context()); !errors.Is(err, wrong) {
		t.Errorf("a wrong run counted: %v", err)
	}
}
