package transform

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/ficus-migrate/ficus/schema"
)

// A token is one lexical element of an SQL text that may name a column.
type token struct {
	text   string // the identifier: unquoted, folded to lower case where it was not quoted
	raw    string // as written, without quotes
	quoted bool
	call   bool // an opening parenthesis follows: it names a function
}

// words returns the identifiers and key words of an SQL text, skipping strings, comments and
// numbers. Source: PostgreSQL manual, 4.1 "Lexical Structure".
func words(sql string) []token {
	var out []token
	wordEnd := -1 // where the last unquoted word ended
	for i := 0; i < len(sql); {
		r, size := utf8.DecodeRuneInString(sql[i:])
		switch {
		case strings.HasPrefix(sql[i:], "--"):
			i = skipPast(sql, i+2, "\n")
		case strings.HasPrefix(sql[i:], "/*"):
			i = skipPast(sql, i+2, "*/")
		case r == '\'':
			escapes := false
			if n := len(out); wordEnd == i && slices.Contains([]string{"e", "b", "x", "n"}, out[n-1].text) { // E'...', B'...': no identifier
				escapes = out[n-1].text == "e"
				out = out[:n-1]
			}
			_, i = quotedText(sql, i, escapes)
		case r == '"':
			text, end := quotedText(sql, i, false)
			out = append(out, token{text: text, raw: text, quoted: true, call: callAt(sql, end)})
			i = end
		case r == '$':
			i = skipDollar(sql, i)
		case unicode.IsDigit(r):
			for i < len(sql) && (isWord(rune(sql[i])) || sql[i] == '.') {
				i++
			}
		case isWord(r):
			end := i
			for end < len(sql) {
				r, size := utf8.DecodeRuneInString(sql[end:])
				if !isWord(r) && r != '$' {
					break
				}
				end += size
			}
			raw := sql[i:end]
			out = append(out, token{text: strings.ToLower(raw), raw: raw, call: callAt(sql, end)})
			i, wordEnd = end, end
		default:
			i += size
		}
	}
	return out
}

// identifiers returns the names that an SQL text may use for columns: every identifier that no
// opening parenthesis follows. Key words are among them; callers look for known columns only.
func identifiers(sql string) map[string]bool {
	names := map[string]bool{}
	for _, t := range words(sql) {
		if !t.call {
			names[t.text] = true
		}
	}
	return names
}

// bareIdentifier returns the single identifier that sql consists of.
func bareIdentifier(sql string) (t token, ok bool) {
	sql = strings.TrimSpace(sql)
	ws := words(sql)
	if len(ws) != 1 {
		return token{}, false
	}
	t = ws[0]
	if t.quoted {
		return t, strings.ReplaceAll(t.raw, `"`, `""`) == strings.TrimSuffix(strings.TrimPrefix(sql, `"`), `"`)
	}
	return t, t.raw == sql
}

// parseName reads a table's name as people write it, with a schema or without, in which case it is
// in the given one.
func parseName(s, inSchema string) (schema.Name, error) {
	s = strings.TrimSpace(s)
	name, err := schema.ParseName(s)
	if err != nil {
		name, err = schema.ParseName(schema.QuoteIdent(inSchema) + "." + s)
	}
	if err != nil || name.Name == "" || name.Schema == "" && inSchema != "" {
		return schema.Name{}, fmt.Errorf("%q is no table name", s)
	}
	return name, nil
}

func isWord(r rune) bool {
	return r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) || r >= utf8.RuneSelf
}

// callAt reports whether an opening parenthesis comes next.
func callAt(sql string, i int) bool {
	return strings.HasPrefix(strings.TrimLeft(sql[i:], " \t\r\n"), "(")
}

// quotedText reads the text between the quote at i and its closing one, and returns the index
// after that. A doubled quote stands for one; with escapes a backslash protects what follows.
func quotedText(sql string, i int, escapes bool) (text string, end int) {
	quote := sql[i]
	var b strings.Builder
	for i++; i < len(sql); i++ {
		switch {
		case escapes && sql[i] == '\\':
			i++
		case sql[i] != quote:
			b.WriteByte(sql[i])
		case i+1 < len(sql) && sql[i+1] == quote:
			b.WriteByte(quote)
			i++
		default:
			return b.String(), i + 1
		}
	}
	return b.String(), len(sql)
}

// skipDollar returns the index after a dollar-quoted string that starts at i, or after the dollar.
func skipDollar(sql string, i int) int {
	n := strings.IndexByte(sql[i+1:], '$')
	if n < 0 || strings.ContainsFunc(sql[i+1:i+1+n], func(r rune) bool { return !isWord(r) }) {
		return i + 1
	}
	tag := sql[i : i+n+2]
	return skipPast(sql, i+len(tag), tag)
}

func skipPast(sql string, i int, mark string) int {
	if i > len(sql) {
		return len(sql)
	}
	n := strings.Index(sql[i:], mark)
	if n < 0 {
		return len(sql)
	}
	return i + n + len(mark)
}
