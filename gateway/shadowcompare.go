package gateway

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"
)

// OIDs of floating point types.
const (
	oidFloat4 = 700
	oidFloat8 = 701
)

// A comparison says how answers are compared.
type comparison struct {
	ignore  []string
	floats  float64
	ordered bool     // rows have an order
	columns []column // of an answer that was described
}

// differ says what is different in two answers, "" for nothing.
func (c comparison) differ(a, b *answer) (kind string, columns []string) {
	switch {
	case a.code != b.code:
		return "error", nil
	case len(a.rows) != len(b.rows):
		return "rows", nil
	case a.columns != nil && b.columns != nil && !slices.EqualFunc(a.columns, b.columns, func(x, y column) bool { return x.name == y.name && x.binary == y.binary }):
		return "columns", nil
	}
	columns = c.unlike(a.rows, b.rows)
	if columns == nil {
		return "", nil
	}
	left, right := slices.Clone(a.rows), slices.Clone(b.rows)
	slices.SortFunc(left, c.order)
	slices.SortFunc(right, c.order)
	if sorted := c.unlike(left, right); sorted != nil {
		return "values", sorted
	}
	if c.ordered {
		return "order", nil
	}
	return "", nil
}

// unlike names the columns in which rows differ, taken in pairs; nil when none do.
func (c comparison) unlike(a, b [][][]byte) []string {
	var names []string
	for i := range a {
		if len(a[i]) != len(b[i]) {
			return []string{"?"}
		}
		for k := range a[i] {
			col := c.column(k)
			if slices.Contains(c.ignore, col.name) || slices.Contains(names, col.name) || c.same(a[i][k], b[i][k], col) {
				continue
			}
			names = append(names, col.name)
		}
	}
	return names
}

func (c comparison) column(k int) column {
	if k < len(c.columns) {
		return c.columns[k]
	}
	return column{name: "column " + strconv.Itoa(k+1)}
}

// order is some order of rows in which floating point numbers come last, so that what they differ by does
// not change it unless all else is the same.
func (c comparison) order(a, b [][]byte) int {
	for pass := range 2 {
		for k := range min(len(a), len(b)) {
			col := c.column(k)
			float := col.oid == oidFloat4 || col.oid == oidFloat8
			if slices.Contains(c.ignore, col.name) || float != (pass == 1) {
				continue
			}
			if x, ok := number(a[k], col); float && ok {
				if y, ok := number(b[k], col); ok {
					if d := cmp.Compare(x, y); d != 0 {
						return d
					}
					continue
				}
			}
			if d := cmp.Or(compareNull(a[k], b[k]), bytes.Compare(a[k], b[k])); d != 0 {
				return d
			}
		}
	}
	return cmp.Compare(len(a), len(b))
}

func compareNull(a, b []byte) int {
	switch {
	case a == nil && b != nil:
		return -1
	case a != nil && b == nil:
		return 1
	}
	return 0
}

// same compares two values.
func (c comparison) same(a, b []byte, col column) bool {
	if (a == nil) != (b == nil) {
		return false
	}
	if bytes.Equal(a, b) {
		return true
	}
	x, ok := number(a, col)
	y, ok2 := number(b, col)
	if !ok || !ok2 {
		return false
	}
	tolerance := c.floats
	if col.oid == oidFloat4 {
		tolerance = max(tolerance, 1e-5) // it has six digits
	}
	return math.Abs(x-y) <= tolerance*max(math.Abs(x), math.Abs(y)) || math.IsNaN(x) && math.IsNaN(y)
}

// number reads a floating point value.
func number(v []byte, col column) (float64, bool) {
	switch {
	case v == nil || col.oid != oidFloat4 && col.oid != oidFloat8:
		return 0, false
	case !col.binary:
		x, err := strconv.ParseFloat(string(v), 64)
		return x, err == nil
	case len(v) == 8:
		return math.Float64frombits(binary.BigEndian.Uint64(v)), true
	case len(v) == 4:
		return float64(math.Float32frombits(binary.BigEndian.Uint32(v))), true
	}
	return 0, false
}

// readable reports whether a text is one read that can be run again without harm, and whose answer is
// determined by what the tables hold. It errs on the side of no.
func readable(text string) bool {
	all := words(text)
	if len(all) == 0 || !slices.Contains([]string{"select", "with", "values", "table"}, all[0]) || manyStatements(text) {
		return false
	}
	for _, w := range all {
		if slices.Contains(harmful(), w) || strings.HasPrefix(w, "pg_") || strings.HasPrefix(w, "lo_") || strings.HasPrefix(w, "txid_") || strings.HasPrefix(w, "dblink") {
			return false
		}
	}
	limited := slices.ContainsFunc(all, func(w string) bool { return w == "limit" || w == "offset" || w == "fetch" })
	return !limited || slices.Contains(all, "order")
}

// harmful are words that change something, take locks, or tell of the server rather than of its tables.
func harmful() []string {
	return []string{
		"into", "insert", "update", "delete", "merge", "share", "key", "nextval", "setval", "currval", "lastval", "set_config", "xmin", "xmax", "ctid",
	}
}

// words returns the words of a text in lower case, without those in constants, comments and quotes.
func words(text string) []string {
	var bare strings.Builder
	for rest := strings.ToLower(shape(text)); rest != ""; {
		before, after, _ := strings.Cut(rest, `"`)
		bare.WriteString(before + " ")
		_, rest, _ = strings.Cut(after, `"`)
	}
	return strings.FieldsFunc(bare.String(), func(r rune) bool { return r <= 0x7f && !wordByte(byte(r)) })
}

// ordered reports whether the rows of a query come in an order: there is an ORDER BY outside of parentheses.
func ordered(text string) bool {
	var top strings.Builder
	depth := 0
	for _, c := range strings.ToLower(shape(text)) {
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		default:
			if depth <= 0 {
				top.WriteRune(c)
			}
		}
	}
	return strings.Contains(top.String(), "order by")
}

// manyStatements reports whether something follows a semicolon.
func manyStatements(text string) bool {
	return strings.Contains(strings.TrimRight(shape(text), "; "), ";")
}

// firstWord returns the first word in lower case, comments aside, and what follows it.
func firstWord(text string) (word, rest string) {
	text = strings.TrimLeft(skipComments(text), " \t\r\n")
	end := strings.IndexFunc(text, func(r rune) bool { return r > 0x7f || !wordByte(byte(r)) })
	if end < 0 {
		end = len(text)
	}
	return strings.ToLower(text[:end]), text[end:]
}

func skipComments(text string) string {
	for {
		text = strings.TrimLeft(text, " \t\r\n")
		switch {
		case strings.HasPrefix(text, "--"):
			_, text, _ = strings.Cut(text, "\n")
		case strings.HasPrefix(text, "/*"):
			_, text, _ = strings.Cut(text, "*/")
		default:
			return text
		}
	}
}

// shape returns a query without its values: each constant is a question mark, comments are left out and
// white space is one blank.
func shape(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		c := text[i]
		rest := text[i:]
		switch {
		case strings.HasPrefix(rest, "--"), strings.HasPrefix(rest, "/*"):
			i = len(text) - len(skipOne(rest))
			blank(&b)
		case space(c):
			i++
			blank(&b)
		case c == '\'':
			i += quotedLen(rest, escaped(b.String()))
			trimPrefix(&b)
			b.WriteByte('?')
		case c == '"':
			n := quotedLen(rest, false)
			b.WriteString(rest[:n])
			i += n
		case c == '$' && dollarLen(rest) > 0:
			i += dollarLen(rest)
			b.WriteByte('?')
		case c >= '0' && c <= '9' && (i == 0 || !wordByte(text[i-1])):
			for i < len(text) && (wordByte(text[i]) || text[i] == '.') {
				i++
			}
			b.WriteByte('?')
		default:
			b.WriteByte(c)
			i++
		}
	}
	return strings.TrimSpace(b.String())
}

func blank(b *strings.Builder) {
	if s := b.String(); s != "" && s[len(s)-1] != ' ' {
		b.WriteByte(' ')
	}
}

// skipOne takes one comment off the front.
func skipOne(s string) string {
	end := "\n"
	if s[0] == '/' {
		end = "*/"
	}
	_, rest, _ := strings.Cut(s, end)
	return rest
}

// escaped reports whether a string constant that follows s knows backslashes.
func escaped(s string) bool {
	n := len(s)
	return n > 0 && (s[n-1] == 'e' || s[n-1] == 'E') && (n == 1 || !wordByte(s[n-2]))
}

// trimPrefix takes the E of an escape string off.
func trimPrefix(b *strings.Builder) {
	if s := b.String(); escaped(s) {
		b.Reset()
		b.WriteString(s[:len(s)-1])
	}
}

// quotedLen returns the length of the quoted thing at the front of s, all of s when its end is missing.
func quotedLen(s string, backslash bool) int {
	for i := 1; i < len(s); i++ {
		switch {
		case backslash && s[i] == '\\':
			i++
		case s[i] != s[0]:
		case i+1 < len(s) && s[i+1] == s[0]:
			i++
		default:
			return i + 1
		}
	}
	return len(s)
}

// dollarLen returns the length of the dollar-quoted string at the front of s, 0 when there is none.
func dollarLen(s string) int {
	end := strings.IndexByte(s[1:], '$')
	if end < 0 || strings.IndexFunc(s[1:1+end], func(r rune) bool { return r > 0x7f || !wordByte(byte(r)) || r == '$' }) >= 0 || end > 0 && s[1] >= '0' && s[1] <= '9' {
		return 0
	}
	tag := s[:end+2]
	if i := strings.Index(s[len(tag):], tag); i >= 0 {
		return 2*len(tag) + i
	}
	return len(s)
}
