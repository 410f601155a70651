package verify

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"time"
)

//go:embed report.html.tmpl
var page string

// The report in JSON stands in the page between these, so that the page can be checked, too.
const (
	jsonBegin = `<script type="application/json" id="report">`
	jsonEnd   = `</script>`
)

// WriteJSON writes the report for machines.
func (r *Report) WriteJSON(w io.Writer) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	_, err = w.Write(append(data, '\n'))
	return err
}

// WriteHTML writes the report as a page that needs nothing else: the evidence to keep.
func (r *Report) WriteHTML(w io.Writer) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	t, err := template.New("report").Funcs(template.FuncMap{
		"time": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000 MST") },
		"show": show,
	}).Parse(page)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return t.Execute(w, map[string]any{
		"R": r, "Verdict": r.Verdict(), "Sentence": r.verdict(),
		"JSON": template.JS(data), //nolint:gosec // made by Marshal, which escapes <, > and &
	})
}

// Embedded returns the report in JSON that stands in a page written by WriteHTML.
func Embedded(page []byte) ([]byte, error) {
	_, rest, ok := bytes.Cut(page, []byte(jsonBegin))
	data, _, end := bytes.Cut(rest, []byte(jsonEnd))
	if !ok || !end {
		return nil, errors.New("the page holds no report")
	}
	return data, nil
}
