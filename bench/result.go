package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/bench/lab"
	"github.com/ficus-migrate/ficus/bench/stat"
)

// A Result is what one scenario found.
type Result struct {
	Scenario   string      `json:"scenario"`
	Title      string      `json:"title"`
	Work       []string    `json:"work"` // what was done and how, sentences
	Contenders []Contender `json:"contenders"`
	Ratios     []Ratio     `json:"ratios"`
	Base       string      `json:"base"`              // what Ratios are to
	Load       [2]string   `json:"load"`              // the machine's load average before and after
	Version    string      `json:"version,omitempty"` // of Ficus, where results of several runs are put together
}

// rounds returns how often each contender ran.
func (r *Result) rounds() int {
	n := 0
	for _, c := range r.Contenders {
		n = max(n, len(c.Runs))
	}
	return n
}

// A Contender is one program with one choice of settings, and its runs.
type Contender struct {
	Name     string `json:"name"`
	Settings string `json:"settings,omitempty"`
	// Missing says why it did not run; "" when it did.
	Missing string `json:"missing,omitempty"`
	// Limit says that this is no way to do the work, but a part of it that cannot be left out.
	Limit bool `json:"limit,omitempty"`
	// Own says that it is Ficus in another use, with which Ficus is not compared.
	Own  bool  `json:"own,omitempty"`
	Runs []Run `json:"runs,omitempty"`
}

// A Run is one measured run. The first metric is the one that is compared.
type Run struct {
	Round   int      `json:"round"`
	Metrics []Metric `json:"metrics"`
}

// A Metric is one figure of a run; less is better for all of them.
type Metric struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
}

// A Ratio compares two contenders round by round: how many times what the base needs a peer needs.
// The base is Ficus, unless the Result says otherwise.
type Ratio struct {
	Peer string `json:"peer"`
	// Value is of the first metric, CPU of the processor time of program and servers together, which
	// depends less on what else the machine does.
	Value stat.Spread `json:"value"`
	CPU   stat.Spread `json:"cpu"`
	Goal  string      `json:"goal,omitempty"` // of Value, from docs
}

const (
	ficusName  = "ficus"   // among the contenders
	cpuName    = "cpu"     // the metric: processor time of program and servers
	memoryName = "max rss" // the metric: most memory of the program
)

// measured makes a Run of what a clock and a program say.
func measured(elapsed time.Duration, cpu lab.Usage, peak int64, more ...Metric) Run {
	r := Run{Metrics: slices.Concat([]Metric{
		{"time", "s", elapsed.Seconds()},
		{cpuName, "s", (cpu.Program + cpu.Source + cpu.Target).Seconds()},
	}, more, []Metric{
		{"program cpu", "s", cpu.Program.Seconds()},
		{"source cpu", "s", cpu.Source.Seconds()},
		{"target cpu", "s", cpu.Target.Seconds()},
	})}
	if peak > 0 {
		r.Metrics = append(r.Metrics, Metric{memoryName, "MB", float64(peak) / (1 << 20)})
	}
	return r
}

func (r Run) first() string {
	if len(r.Metrics) == 0 {
		return ""
	}
	return r.Metrics[0].String()
}

// String prints value and unit.
func (m Metric) String() string { return number(m.Value) + " " + m.Unit }

// number prints three digits that count.
func number(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// byRound returns one metric of every run that has it.
func (c *Contender) byRound(name string) map[int]float64 {
	values := map[int]float64{}
	for _, r := range c.Runs {
		for _, m := range r.Metrics {
			if m.Name == name {
				values[r.Round] = m.Value
			}
		}
	}
	return values
}

// spread sums up one metric over the contender's runs.
func (c *Contender) spread(name string) stat.Spread {
	return stat.Of(slices.Collect(maps.Values(c.byRound(name))))
}

// metrics lists what was measured of any contender, in the order in which it came up.
func (r *Result) metrics() (list []Metric) {
	for _, c := range r.Contenders {
		for _, run := range c.Runs {
			for _, m := range run.Metrics {
				if !slices.ContainsFunc(list, func(l Metric) bool { return l.Name == m.Name }) {
					list = append(list, m)
				}
			}
		}
	}
	return list
}

// compare fills in the ratio of every peer to Ficus. goal is that against the fastest of those that
// are no limits; 0 for none.
func (r *Result) compare(goal float64) {
	ours := r.contender(ficusName)
	if ours == nil {
		return
	}
	best := -1
	for i := range r.Contenders {
		c := &r.Contenders[i]
		if c == ours || c.Own || len(c.Runs) == 0 {
			continue
		}
		r.Ratios = append(r.Ratios, ratio(c, ours))
		if n := len(r.Ratios) - 1; !c.Limit && (best < 0 || r.Ratios[n].Value.Median < r.Ratios[best].Value.Median) {
			best = n
		}
	}
	if best >= 0 && goal > 0 {
		r.Ratios[best].Goal = "≥ " + number(goal)
	}
}

// contender returns the one of that name, nil when it did not run.
func (r *Result) contender(name string) *Contender {
	i := slices.IndexFunc(r.Contenders, func(c Contender) bool { return c.Name == name && len(c.Runs) > 0 })
	if i < 0 {
		return nil
	}
	return &r.Contenders[i]
}

// ratio compares the first metric of two contenders that both ran.
func ratio(c, base *Contender) Ratio {
	first := base.Runs[0].Metrics[0].Name
	return Ratio{Peer: c.Name, Value: stat.Ratio(c.byRound(first), base.byRound(first)), CPU: stat.Ratio(c.byRound(cpuName), base.byRound(cpuName))}
}
