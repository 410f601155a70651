package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// What stands between these lines of a page is the program's; the rest is somebody's.
const (
	pageBegin = "<!-- bench: begin -->\n"
	pageEnd   = "<!-- bench: end -->\n"
)

// updatePage puts the report between the marks of the page at path. A page that is not there yet
// becomes the marks alone.
func (r *Report) updatePage(path string) error {
	page, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		page, err = []byte(pageBegin+pageEnd), nil
	}
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(page), pageBegin)
	_, after, ended := strings.Cut(rest, pageEnd)
	if !ok || !ended {
		return fmt.Errorf("%s: there are no lines %q and %q to write between", path, strings.TrimSpace(pageBegin), strings.TrimSpace(pageEnd))
	}
	return os.WriteFile(path, []byte(before+pageBegin+r.markdown()+pageEnd+after), 0o644) //nolint:gosec // a page for everybody
}

// markdown returns what writeText prints, as Markdown.
func (r *Report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nMeasured %s on %s, %d cores, %d MB of memory, %s.\n", r.Time.Format("2006-01-02"), r.Machine.CPU, r.Machine.Cores, r.Machine.MemoryMB, r.Machine.Kernel)
	b.WriteString("Each cell is the median of the rounds, with the smallest and the largest in brackets where it is compared.")
	if r.Quick {
		b.WriteString(" **Small sizes (`--quick`): these show that it works, not how fast.**")
	}
	b.WriteString("\n\n| program | version |\n|---|---|\n")
	for _, name := range versionNames() {
		if v := r.Machine.Versions[name]; v != "" {
			fmt.Fprintf(&b, "| %s | %s |\n", name, v)
		}
	}
	fmt.Fprintf(&b, "\nSettings of both clusters: `%s`.\n", strings.Join(r.Settings, "`, `"))
	for _, failure := range r.Failures {
		fmt.Fprintf(&b, "\n**Failed:** %s\n", failure)
	}
	for _, res := range r.Results {
		res.markdown(&b)
	}
	return b.String() + "\n"
}

func (r *Result) markdown(b *strings.Builder) {
	with := ""
	if r.Version != "" {
		with = ", " + r.Version
	}
	fmt.Fprintf(b, "\n### %s\n\n`--only %s`, %d rounds%s. %s\n\n", r.Title, r.scenario(), r.rounds(), with, strings.Join(r.Work, " "))
	for i, row := range r.table() {
		for j, cell := range row {
			row[j] = strings.ReplaceAll(cell, "|", "\\|")
		}
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(b, "|%s\n", strings.Repeat("---|", len(row)))
		}
	}
	b.WriteString("\n")
	for _, c := range r.Contenders {
		if c.Settings != "" {
			fmt.Fprintf(b, "- %s: %s\n", c.Name, c.Settings)
		}
	}
	if r.Load[0] != "" {
		fmt.Fprintf(b, "- load average before: %s; after: %s\n", r.Load[0], r.Load[1])
	}
}
