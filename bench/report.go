package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ficus-migrate/ficus/bench/stat"
)

// A Report is one run of the program; --json writes it as it is.
type Report struct {
	Time     time.Time `json:"time"`
	Machine  Machine   `json:"machine"`
	Settings []string  `json:"settings"` // of both clusters
	Quick    bool      `json:"quick"`
	Results  []*Result `json:"results"`
	Failures []string  `json:"failures,omitempty"` // scenarios that ended with an error
}

// load adds what earlier runs wrote with --json. Of two results of one scenario the later one stays.
func (r *Report) load(paths []string) error {
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var earlier Report
		if err := json.Unmarshal(text, &earlier); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, res := range earlier.Results {
			res.Version = cmp.Or(res.Version, earlier.Machine.Versions[ficusName])
		}
		earlier.Results = append(slices.DeleteFunc(r.Results, func(old *Result) bool {
			return slices.ContainsFunc(earlier.Results, func(n *Result) bool { return n.Scenario == old.Scenario })
		}), earlier.Results...)
		*r = earlier
	}
	order := names()
	slices.SortStableFunc(r.Results, func(a, b *Result) int {
		return slices.Index(order, a.scenario()) - slices.Index(order, b.scenario())
	})
	return nil
}

// writeJSON writes everything, every single run included.
func (r *Report) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// writeText writes tables for a terminal.
func (r *Report) writeText(w io.Writer) error {
	fmt.Fprintf(w, "\n%s, %d cores, %d MB, %s; %s to %s; %s\n", r.Machine.CPU, r.Machine.Cores, r.Machine.MemoryMB, r.Machine.Kernel,
		r.Machine.Versions["source"], r.Machine.Versions["target"], r.Machine.Versions["ficus"])
	fmt.Fprintf(w, "both clusters: %s\n", strings.Join(r.Settings, ", "))
	fmt.Fprintln(w, "median of the rounds (smallest - largest)")
	for _, res := range r.Results {
		if err := res.writeText(w); err != nil {
			return err
		}
	}
	for _, failure := range r.Failures {
		fmt.Fprintf(w, "\nfailed: %s\n", failure)
	}
	return nil
}

func (r *Result) writeText(w io.Writer) error {
	fmt.Fprintf(w, "\n%s: %s, %d rounds\n", r.Scenario, r.Title, r.rounds())
	for _, line := range r.Work {
		fmt.Fprintf(w, "  %s\n", line)
	}
	for _, c := range r.Contenders {
		if c.Settings != "" {
			fmt.Fprintf(w, "  %s: %s\n", c.Name, c.Settings)
		}
	}
	tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range r.table() {
		fmt.Fprintf(tab, "  %s\n", strings.Join(row, "\t"))
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	if r.Load[0] != "" {
		fmt.Fprintf(w, "  load average before %s, after %s\n", r.Load[0], r.Load[1])
	}
	return nil
}

// scenario returns the name that --only takes.
func (r *Result) scenario() string {
	if strings.HasPrefix(r.Scenario, growth{}.name()) {
		return growth{}.name()
	}
	return r.Scenario
}

// table returns a heading and a row for each contender.
func (r *Result) table() [][]string {
	metrics := r.metrics()
	head := []string{""}
	for _, m := range metrics {
		head = append(head, strings.TrimSuffix(m.Name+", "+m.Unit, ", "))
	}
	if len(r.Ratios) > 0 {
		base := cmp.Or(r.Base, ficusName)
		head = append(head, "× "+base, "goal", "cpu × "+base)
	}
	rows := [][]string{head}
	for _, c := range r.Contenders {
		row := []string{c.Name}
		if c.Missing != "" {
			row[0] += " (not run: " + c.Missing + ")"
		}
		for i, m := range metrics {
			row = append(row, spreadText(c.spread(m.Name), i == 0))
		}
		if len(r.Ratios) > 0 {
			row = append(row, r.ratioOf(c.Name)...)
		}
		rows = append(rows, row)
	}
	return rows
}

// ratioOf returns the last cells of a contender's row.
func (r *Result) ratioOf(name string) []string {
	for _, x := range r.Ratios {
		if x.Peer != name {
			continue
		}
		return []string{spreadText(x.Value, true), x.Goal, spreadText(x.CPU, true)}
	}
	return []string{"", "", ""}
}

// spreadText prints the median, and the rest where it is asked for and there is any.
func spreadText(s stat.Spread, all bool) string {
	switch {
	case s.N == 0:
		return "-"
	case s.N == 1 || !all:
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s - %s)", number(s.Median), number(s.Min), number(s.Max))
}

// thousands prints a count with commas.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
