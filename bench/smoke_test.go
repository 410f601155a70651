package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// program builds ficus.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ficus")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "../cmd/ficus")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// The whole way of one scenario: clusters, data, Ficus, peers, comparison, files. It breaks when what
// Ficus prints or takes changes under the benchmark's feet.
func TestSmoke(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, page := filepath.Join(dir, "result.json"), filepath.Join(dir, "page.md")
	var text strings.Builder
	err := execute(t.Context(), []string{
		"--ficus", program(t), "--only", "catchup-tpcb", "--rounds", "1", "--tpcb-scale", "1", "--tpcb-transactions", "400", "--json", file, "--markdown", page,
	}, &text, io.Discard)
	if err != nil {
		t.Fatalf("%v\n%s", err, text.String())
	}
	var report Report
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &report)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Results) != 1 || len(report.Results[0].Contenders) != 3 || len(report.Results[0].Ratios) != 2 {
		t.Fatalf("%s", data)
	}
	for _, c := range report.Results[0].Contenders {
		if len(c.Runs) != 1 || c.spread("time").Median <= 0 {
			t.Errorf("%s: %+v", c.Name, c.Runs)
		}
	}
	if rss := report.Results[0].contender(ficusName).spread(memoryName).Median; rss < 10 || rss > memoryGoal {
		t.Errorf("ficus used %v MB", rss)
	}
	if printed, err := os.ReadFile(page); err != nil || !strings.Contains(string(printed), "| walsender alone |") {
		t.Errorf("page: %v\n%s", err, printed)
	}
}

// Every scenario, as small as it goes.
func TestEveryScenario(t *testing.T) {
	if os.Getenv("FICUS_TEST_LONG") == "" {
		t.Skip("FICUS_TEST_LONG=1 runs it")
	}
	t.Parallel()
	dir := t.TempDir()
	var text strings.Builder
	err := execute(t.Context(), []string{
		"--ficus", program(t), "--quick", "--rounds", "1", "--tpcb-transactions", "800", "--network-transactions", "800", "--lag-seconds", "4",
		"--promotions", "1", "--gateway-seconds", "1", "--growth-transactions", "80", "--growth-rows", "1000", "--plot", filepath.Join(dir, "growth.svg"),
	}, &text, io.Discard)
	if err != nil {
		t.Errorf("%v", err)
	}
	for _, s := range scenarios() {
		if !strings.Contains(text.String(), "\n"+s.name()) {
			t.Errorf("nothing of %s in\n%s", s.name(), text.String())
		}
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--only", "nothing"}, `no scenario "nothing"`},
		{[]string{"--ficus", "/no/such/file"}, "there is no program /no/such/file"},
		{[]string{"more"}, `unknown argument "more"`},
		{[]string{"--load", "/no/such/file"}, "no such file"},
	} {
		if err := execute(t.Context(), c.args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: error %v, want %q in it", c.args, err, c.want)
		}
	}
}

func TestQuickLeavesWhatWasGiven(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"--quick", "--tpcb-transactions", "77"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.sizes.tpcbTransactions != 77 || o.sizes.copyScale != 2 || o.rounds != 2 {
		t.Errorf("%d transactions, scale %d, %d rounds", o.sizes.tpcbTransactions, o.sizes.copyScale, o.rounds)
	}
	if o, err = parse([]string{"--quick", "--rounds", "5"}, io.Discard); err != nil || o.rounds != 5 {
		t.Errorf("%d rounds, 5 were given; %v", o.rounds, err)
	}
}
