package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/examples/shop"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

// A demoReport is what the demo proves, as its last JSON line shows it.
type demoReport struct {
	Type    string  `json:"type"` // "result"
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"` // from start to report
	Source  string  `json:"source_version"`
	Target  string  `json:"target_version"`

	RowsFilled  int64   `json:"rows_filled"`
	RowsCopied  int64   `json:"rows_copied"`
	BytesCopied int64   `json:"bytes_copied"`
	CopySeconds float64 `json:"copy_seconds"`

	Phases  []demoPhase  `json:"phases"`
	Changes []demoChange `json:"changes"` // of owner, oldest first

	Transactions demoTransactions `json:"transactions"`
	Verify       demoVerify       `json:"verify"`
	Phase        migrate.Phase    `json:"phase"`
	RollbackSafe bool             `json:"rollback_safe"`
	Problems     []string         `json:"problems"` // empty when OK

	latency shop.Latency
	took    string // how many transactions each cluster took, for people
}

type demoPhase struct {
	Phase   migrate.Phase `json:"phase"`
	Seconds float64       `json:"seconds"`
}

// A demoChange is one change of owner.
type demoChange struct {
	To       migrate.Side `json:"to"`
	Epoch    int64        `json:"epoch"`
	Stall    demoStall    `json:"stall_ms"`        // of held clients, as the gateway saw it
	Felt     demoStall    `json:"client_stall_ms"` // of transactions under way, as the clients saw them
	Blackout float64      `json:"blackout_ms"`
	// Proved counts the rows compared under the fence, Differences those that differed.
	Proved      int64 `json:"rows_proved"`
	Differences int64 `json:"differences"`

	stall    migrate.StallStats
	felt     shop.Latency
	blackout time.Duration
}

type demoStall struct {
	Clients int     `json:"clients"`
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
}

type demoTransactions struct {
	*shop.Report
	Failed      int64 `json:"failed"`
	Reads       int64 `json:"reads"`
	ReadsFailed int64 `json:"reads_failed"`
	Torn        int64 `json:"reads_torn"` // reads that saw half a transaction
}

type demoVerify struct {
	Rows        int64   `json:"rows"`
	Differences int64   `json:"differences"`
	Tables      int     `json:"tables"`
	Seconds     float64 `json:"seconds"`
}

// changes returns the changes of owner so far.
func (d *demo) changes() []demoChange {
	holds := d.story.holds()
	var out []demoChange
	for _, p := range d.engine.migration.Status().Promotions {
		c := demoChange{
			To: p.To, Epoch: p.Epoch, Stall: stallOf(p.Stall.Clients, p.Stall.P50, p.Stall.P99, p.Stall.Max), Blackout: milliseconds(p.Blackout),
			Proved: max(p.Proof.Keys, p.Proof.Rows), Differences: p.Proof.Differences, stall: p.Stall, blackout: p.Blackout,
		}
		// The hold of this change is the last that began before it was on record: one that was
		// undone came earlier.
		for _, h := range holds {
			if h.from.Before(p.At) && !h.to.IsZero() {
				c.felt = d.ledger.Latency(h.from, h.to)
			}
		}
		c.Felt = stallOf(c.felt.Transactions, c.felt.P50, c.felt.P99, c.felt.Max)
		out = append(out, c)
	}
	return out
}

func stallOf(clients int, p50, p99, most time.Duration) demoStall {
	return demoStall{clients, milliseconds(p50), milliseconds(p99), milliseconds(most)}
}

// prove compares both databases over the reverse link, and the ledger with the owner. The clients
// have gone home.
func (d *demo) prove(ctx context.Context) (*demoReport, error) {
	d.story.step("the proof: compare every row over the reverse link, and look for every transaction that was acknowledged")
	proof, err := d.engine.verifier.Exact(ctx, migrate.Target, func(int64, int64) {})
	if err != nil {
		return nil, fmt.Errorf("compare both databases: %w", err)
	}
	ledger, err := d.ledger.Check(ctx, d.ground.target.URL(demoDatabase))
	if err != nil {
		return nil, err
	}
	s, t := d.engine.migration.Status(), d.ledger.Totals()
	r := &demoReport{
		Type: "result", Seconds: time.Since(d.began).Seconds(), Source: d.ground.source.Install().Version, Target: d.ground.target.Install().Version,
		RowsFilled: d.ground.rows, Changes: d.changes(), Phase: s.Phase, RollbackSafe: s.Rollback.Safe,
		Transactions: demoTransactions{Report: ledger, Failed: t.Failed, Reads: t.Reads, ReadsFailed: t.ReadsFailed, Torn: t.Torn},
		Verify:       demoVerify{Rows: proof.Rows, Differences: proof.Differences, Tables: proof.Tables, Seconds: proof.Elapsed.Seconds()},
		Problems:     []string{}, latency: d.ledger.Latency(d.began, time.Now()),
	}
	if c := s.Copied; c != nil {
		r.RowsCopied, r.BytesCopied, r.CopySeconds = c.Rows, c.Bytes, c.Elapsed.Seconds()
	}
	for _, p := range s.Phases {
		if p.Took > 0 {
			r.Phases = append(r.Phases, demoPhase{p.Phase, p.Took.Seconds()})
		}
	}
	r.took = fmt.Sprintf("%s by the %s, %s by the %s", units.Count(ledger.Servers[d.ground.source.Port()]), d.names(migrate.Source),
		units.Count(ledger.Servers[d.ground.target.Port()]), d.names(migrate.Target))
	r.judge()
	for i, err := range d.ledger.Errors() {
		d.story.fact("client_error", map[string]any{"message": err.Error()}, fmt.Sprintf("! client error %d: %v", i+1, err))
	}
	return r, nil
}

// judge lists what does not hold.
func (r *demoReport) judge() {
	t := &r.Transactions
	for _, c := range []struct {
		wrong bool
		text  string
	}{
		{r.Phase != migrate.Promoted, fmt.Sprintf("the migration is in phase %s", r.Phase)},
		{len(r.Changes) != 3, fmt.Sprintf("%d changes of owner, want 3", len(r.Changes))},
		{r.RowsCopied == 0, "no row was copied"},
		{t.Acknowledged == 0, "no transaction was acknowledged"},
		{t.Found != t.Acknowledged, fmt.Sprintf("%d of %d acknowledged transactions found", t.Found, t.Acknowledged)},
		{t.Missing > 0, fmt.Sprintf("%d lost", t.Missing)},
		{t.Doubled > 0, fmt.Sprintf("%d doubled", t.Doubled)},
		{t.Altered > 0, fmt.Sprintf("%d altered", t.Altered)},
		{t.Unexpected > 0, fmt.Sprintf("%d that nobody asked for", t.Unexpected)},
		{t.Failed > 0, fmt.Sprintf("%d failed", t.Failed)},
		{len(t.Servers) != 2, "both clusters should have taken transactions"},
		{t.InDoubt > 0, fmt.Sprintf("%d in doubt", t.InDoubt)},
		{len(t.Unbalanced) > 0, "the books do not balance: " + strings.Join(t.Unbalanced, ", ")},
		{t.Reads == 0, "nothing was read"},
		{t.ReadsFailed > 0, fmt.Sprintf("%d reads failed", t.ReadsFailed)},
		{t.Torn > 0, fmt.Sprintf("%d reads saw half a transaction", t.Torn)},
		{r.Verify.Rows == 0, "nothing was compared"},
		{r.Verify.Differences > 0, fmt.Sprintf("%d rows differ between the databases", r.Verify.Differences)},
	} {
		if c.wrong {
			r.Problems = append(r.Problems, c.text)
		}
	}
	for _, c := range r.Changes {
		if c.Differences > 0 {
			r.Problems = append(r.Problems, fmt.Sprintf("%d differences under the fence of epoch %d", c.Differences, c.Epoch))
		}
	}
	r.OK = len(r.Problems) == 0
}

// report prints the closing report.
func (s *story) report(r *demoReport) {
	s.working(false)
	if s.app.json {
		s.result(r)
		return
	}
	s.title("The proof")
	t := &r.Transactions
	var phases []string
	for _, p := range r.Phases {
		phases = append(phases, fmt.Sprintf("%s %.1f s", p.Phase, p.Seconds))
	}
	rows := [][]string{
		{"databases", fmt.Sprintf("PostgreSQL %s -> PostgreSQL %s", r.Source, r.Target)},
		{"copied", fmt.Sprintf("%s rows, %s, in %.2f s", units.Count(r.RowsCopied), units.Bytes(r.BytesCopied), r.CopySeconds)},
	}
	for i, line := range wrap(phases, 4) {
		rows = append(rows, []string{first(i, "phases"), line})
	}
	rows = append(
		rows,
		[]string{"transactions", fmt.Sprintf("%s acknowledged, %s found, %d failed, %d in doubt", units.Count(t.Acknowledged), units.Count(t.Found), t.Failed, t.InDoubt)},
		[]string{"", r.took},
		[]string{"", fmt.Sprintf("as clients saw them: p50 %s, p99 %s, longest %s", units.Duration(r.latency.P50), units.Duration(r.latency.P99), units.Duration(r.latency.Max))},
		[]string{"reads", fmt.Sprintf("%s, %d failed, %d saw half a transaction", units.Count(t.Reads), t.ReadsFailed, t.Torn)},
		[]string{"compared", fmt.Sprintf("%s rows of %d tables, over the reverse link, in %.2f s: %d differences", units.Count(r.Verify.Rows), r.Verify.Tables, r.Verify.Seconds, r.Verify.Differences)},
	)
	s.table(rows)
	s.print("")
	s.table(r.changeRows())
	s.print("")
	if r.OK {
		s.print(bold(s.terminal, fmt.Sprintf("Nothing was lost, nothing failed, both databases are equal. %.0f s in all.", r.Seconds)))
		return
	}
	for _, p := range r.Problems {
		s.print(bold(s.terminal, "! "+p))
	}
}

// changeRows is the table of the changes of owner.
func (r *demoReport) changeRows() [][]string {
	rows := [][]string{{"CHANGE OF OWNER", "NO WRITES FOR", "HELD", "STALL P50", "P99", "MAX", "CLIENTS SAW P50", "P99", "MAX"}}
	for _, c := range r.Changes {
		what := "promote"
		if c.To == migrate.Source {
			what = "roll back"
		}
		rows = append(rows, []string{
			fmt.Sprintf("%s (epoch %d)", what, c.Epoch), units.Duration(c.blackout),
			fmt.Sprintf("%d clients", c.stall.Clients), units.Duration(c.stall.P50), units.Duration(c.stall.P99), units.Duration(c.stall.Max),
			units.Duration(c.felt.P50), units.Duration(c.felt.P99), units.Duration(c.felt.Max),
		})
	}
	return rows
}

// table prints rows in columns, indented.
func (s *story) table(rows [][]string) {
	var b strings.Builder
	table(&b, rows)
	for line := range strings.Lines(b.String()) {
		s.print("  " + strings.TrimRight(line, "\n"))
	}
}

// wrap joins words, so many to a line.
func wrap(words []string, each int) []string {
	var lines []string
	for len(words) > 0 {
		n := min(each, len(words))
		lines = append(lines, strings.Join(words[:n], ", "))
		words = words[n:]
	}
	return lines
}

// first returns the head of the first line of several.
func first(i int, head string) string {
	if i == 0 {
		return head
	}
	return ""
}
