package verify

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	out := &printer{w: w}
	out.printf("%s comparison at %s, %s\n", r.Kind, r.LSN, r.At.UTC().Format(time.RFC3339))
	out.printf("  source %s\n  target %s\n\n", r.Source, r.Target)

	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	tables := &printer{w: columns}
	tables.printf("table\tsource rows\ttarget rows\tmissing\textra\tchanged\thash\n")
	for i := range r.Tables {
		t := &r.Tables[i]
		tables.printf("%s\t%d\t%d\t%d\t%d\t%d\t%s\n", t.Title(), t.Rows, t.TargetRows, t.Missing, t.Extra, t.Changed, t.Method)
	}
	if err := columns.Flush(); out.err == nil {
		out.err = err
	}
	out.printf("\n")

	for i := range r.Tables {
		for j := range r.Tables[i].Samples {
			out.sample(&r.Tables[i], &r.Tables[i].Samples[j])
		}
	}
	out.beyondRows(r)
	for _, u := range r.Uncovered {
		out.printf("not covered: %s\n", u)
	}
	for _, i := range r.Instants {
		out.printf("compared at %s, %s: %d tables\n", i.LSN, i.At.UTC().Format(time.RFC3339), i.Tables)
	}
	if !r.SameInstant {
		out.printf("note: the source was written to meanwhile; the two sides were not compared at the same instant\n")
	}
	if r.Digest != "" {
		out.printf("digest %s\n", r.Digest)
	}
	out.printf("%s\n", r.verdict())
	return out.err
}

// beyondRows writes what the definitions and sequences came to.
func (p *printer) beyondRows(r *Report) {
	for i := range r.Definitions {
		d, word := &r.Definitions[i], "definition, does not matter"
		if d.Matters {
			word = "definition"
		}
		p.printf("%s: %s\n", word, d)
	}
	for i := range r.Sequences {
		q := &r.Sequences[i]
		switch {
		case q.Target == "":
			p.printf("sequence %s: not on the target\n", q.Sequence.Display())
		case !q.Ahead:
			why := ""
			if r.Following {
				why = "; it moves now and then, and when the target becomes the owner"
			}
			p.printf("sequence %s: behind: the next value is %s on the target, %s on the source%s\n", q.Sequence.Display(), q.Target, q.Source, why)
		}
	}
}

// verdict is the last line.
func (r *Report) verdict() string {
	what := fmt.Sprintf("%d tables, %d rows, %s", len(r.Tables), r.Rows, r.Elapsed.Round(time.Millisecond))
	if r.Kind == Delta {
		what = fmt.Sprintf("%d keys, ", r.Keys) + what
	}
	if r.Paused > 0 {
		what += fmt.Sprintf(", applying paused for %s", r.Paused.Round(10*time.Microsecond))
	}
	if r.Definitions != nil {
		what += fmt.Sprintf(", %d differences of definitions that matter", r.Matters())
	}
	switch r.Verdict() {
	case Different:
		return fmt.Sprintf("different: %d rows (%s)", r.Differences, what)
	case Unknown:
		if r.Differences > 0 {
			return fmt.Sprintf("could not tell: %d rows differ, and may have been on their way (%s)", r.Differences, what)
		}
		return fmt.Sprintf("equal as far as covered (%s)", what)
	case Equal:
	}
	return fmt.Sprintf("equal (%s)", what)
}

// A printer keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) sample(t *TableReport, d *Difference) {
	p.printf("%s: %s", t.Title(), d.Kind)
	if d.Key != "" {
		p.printf(" %s", d.Key)
	}
	for i, c := range d.Columns {
		sep := ", "
		if i == 0 {
			sep = ": differs in "
		}
		p.printf("%s%s", sep, c)
	}
	p.printf("\n")
	for _, v := range d.Values {
		p.printf("    %s: %s on the source, %s on the target\n", v.Column, show(v.Source), show(v.Target))
	}
	if d.Writer != "" {
		p.printf("    the target's row was written %s\n", d.Writer)
	}
	p.printf("    source: %s;\n    target: %s;\n", d.SourceSQL, d.TargetSQL)
}

func show(v *string) string {
	if v == nil {
		return "NULL"
	}
	return fmt.Sprintf("%q", *v)
}
