package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"
)

// line prints one JSON object, or in other modes the text. A command's last line is of type "result".
func (a *app) line(typ string, fields map[string]any, text string) {
	if !a.json {
		a.print(text, false)
		return
	}
	object := map[string]any{"type": typ}
	maps.Copy(object, fields)
	a.print(encoded(object), typ == "result")
}

// object prints v, which is no result, as one line of JSON.
func (a *app) object(v any) { a.print(encoded(v), false) }

func encoded(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		data = fmt.Appendf(nil, `{"type":"error","message":%s}`, strconv.Quote(err.Error()))
	}
	return string(data)
}

// print writes a line; several goroutines may.
func (a *app) print(line string, result bool) {
	a.out.Lock()
	defer a.out.Unlock()
	a.out.result = result
	fmt.Fprintln(a.stdout, line)
}

// fields turns a struct with JSON tags into a map, for line.
func fields(v any) map[string]any {
	data, err := json.Marshal(v)
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	m := map[string]any{}
	if err := json.Unmarshal(data, &m); err != nil {
		return map[string]any{"error": err.Error()}
	}
	return m
}

// isTerminal reports whether a person sees w as it is written.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// milliseconds returns d with three decimals.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// table prints rows in columns, each as wide as its widest cell; the first row is the head.
func table(w io.Writer, rows [][]string) {
	var width []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-len([]rune(cell))+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}
