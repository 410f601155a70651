package fence

import (
	"strings"
	"unicode/utf8"
)

// shapeLength is how much of a statement is shown.
const shapeLength = 160

// shape is a statement without its literals, which are values of rows, and without comments: what is
// left tells an operator which piece of an application it comes from. The server may have cut the text off
// anywhere, and how a backslash reads depends on a setting: from where it is not certain what is a
// literal, nothing is shown.
func shape(sql string) string {
	var b strings.Builder
	for i := 0; i < len(sql); {
		var token string
		switch rest := sql[i:]; {
		case rest[0] == '\'':
			n := closing(rest, '\'')
			if n < 0 || strings.Contains(rest[:n], `\`) {
				return finish(b.String() + "?...")
			}
			token, i = "?", i+n
		case rest[0] == '"':
			n := closing(rest, '"')
			if n < 0 {
				return finish(b.String() + "...")
			}
			token, i = rest[:n], i+n
		case strings.HasPrefix(rest, "--"):
			n := strings.IndexByte(rest, '\n')
			if n < 0 {
				return finish(b.String())
			}
			token, i = " ", i+n
		case strings.HasPrefix(rest, "/*"), rest[0] == '$' && dollar(rest) != "":
			return finish(b.String() + "...")
		case digit(rest[0]) && !inWord(b.String()):
			n := 1
			for n < len(rest) && (wordByte(rest[n]) || rest[n] == '.') {
				n++
			}
			token, i = "?", i+n
		default:
			token, i = rest[:1], i+1
		}
		b.WriteString(token)
	}
	return finish(b.String())
}

// closing returns the length of a quoted text, doubled quotes within; -1 when it does not end.
func closing(s string, quote byte) int {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] != quote:
		case i+1 < len(s) && s[i+1] == quote:
			i++
		default:
			return i + 1
		}
	}
	return -1
}

// dollar returns the delimiter that a dollar-quoted text begins with; "" for a parameter such as $1.
func dollar(s string) string {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '$':
			return s[:i+1]
		case digit(s[i]) && i == 1, !wordByte(s[i]):
			return ""
		}
	}
	return ""
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func wordByte(c byte) bool {
	return digit(c) || c == '_' || c >= utf8.RuneSelf || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// inWord reports whether what comes next belongs to a name, or to a parameter.
func inWord(before string) bool {
	return before != "" && (wordByte(before[len(before)-1]) || before[len(before)-1] == '$')
}

// finish puts a shape on one line of bounded length.
func finish(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "")), " ")
	if runes := []rune(s); len(runes) > shapeLength {
		return string(runes[:shapeLength-3]) + "..."
	}
	return s
}
