package gateway

import (
	"strings"
)

// Bounds of what a session remembers about its client's texts.
const (
	maxUnnamed  = 1 << 20 // longest unnamed statement that is re-made after a switch
	maxSettings = 256     // custom settings
	reach       = 1024    // how much text after the word SET is looked at
)

// A memo remembers of a client's messages what the server cannot be asked for at a switch.
type memo struct {
	unnamed []byte // body of the Parse that made the unnamed statement; empty for none

	settings map[string]struct{} // custom settings (with a dot) that were SET, lower case
	opaque   bool                // some custom setting may have been set under a name we could not see

	typ   byte
	first bool   // no piece of the present message was observed
	keep  bool   // the present message goes into unnamed
	tail  []byte // end of the text so far, while a message comes in pieces
}

// begin starts a message.
func (m *memo) begin(typ byte) {
	m.typ, m.first, m.keep = typ, true, false
	m.tail = m.tail[:0]
	if typ == msgQuery { // PostgreSQL drops the unnamed statement
		m.unnamed = m.unnamed[:0]
	}
}

// observe takes the next piece of the message; the first one begins with the header.
func (m *memo) observe(piece []byte, last bool) {
	if m.typ != msgQuery && m.typ != msgParse {
		return
	}
	body := piece
	if m.first {
		m.first = false
		body = piece[headerLen:]
		if m.typ == msgParse && (len(body) == 0 || body[0] == 0) {
			m.keep = true
			m.forget()
		}
	}
	if m.keep {
		m.unnamed = append(m.unnamed, body...)
		if len(m.unnamed) > maxUnnamed {
			m.keep = false
			m.forget()
		}
	}
	if last && len(m.tail) == 0 {
		m.scan(body, true)
		return
	}
	m.tail = append(m.tail, body...)
	m.scan(m.tail, last)
	m.tail = append(m.tail[:0], m.tail[max(0, len(m.tail)-reach-4):]...)
	if last && cap(m.tail) > 4*reach {
		m.tail = nil
	}
}

func (m *memo) forget() {
	if cap(m.unnamed) > 64<<10 {
		m.unnamed = nil
	}
	m.unnamed = m.unnamed[:0]
}

// scan looks for SET [SESSION | LOCAL] a.b and set_config('a.b', ...). It reads no SQL: what it
// finds inside a comment or a string does no harm, because the server is asked for each name. Unless
// the text is all there it leaves for later what may go on in the next piece.
func (m *memo) scan(text []byte, all bool) {
	for i := 0; i+4 < len(text) && (all || i+reach < len(text)); i++ {
		if text[i]|0x20 != 's' || text[i+1]|0x20 != 'e' || text[i+2]|0x20 != 't' || (i > 0 && wordByte(text[i-1])) {
			continue
		}
		rest := text[i+3:]
		switch {
		case space(rest[0]):
			m.set(string(rest[:min(len(rest), reach)]))
		case rest[0] == '_' && len(rest) > 7 && strings.EqualFold(string(rest[:7]), "_config"):
			m.setConfig(string(rest[7:min(len(rest), reach)]))
		}
	}
}

// set notes the name in what follows the word SET.
func (m *memo) set(s string) {
	s = strings.TrimLeft(s, " \t\r\n\f")
	for _, word := range []string{"session", "local"} {
		if len(s) > len(word) && strings.EqualFold(s[:len(word)], word) && space(s[len(word)]) {
			s = strings.TrimLeft(s[len(word):], " \t\r\n\f")
		}
	}
	end := strings.IndexFunc(s, func(r rune) bool { return r != '.' && r != '"' && (r > 0x7f || !wordByte(byte(r))) })
	if end < 0 {
		end = len(s)
	}
	m.note(strings.ReplaceAll(s[:end], `"`, ""))
}

// setConfig notes the name in what follows set_config.
func (m *memo) setConfig(s string) {
	args, ok := strings.CutPrefix(strings.TrimLeft(s, " \t\r\n\f"), "(")
	if !ok {
		return
	}
	args = strings.TrimLeft(args, " \t\r\n\f")
	if name, rest, ok := literal(args); ok && !strings.HasPrefix(strings.TrimLeft(rest, " "), "||") {
		m.note(name)
		return
	}
	if !localCall(args) {
		m.opaque = true
	}
}

// literal takes a string constant without quotes and backslashes inside off the front of s.
func literal(s string) (value, rest string, ok bool) {
	if s == "" || s[0] != '\'' {
		return "", s, false
	}
	value, rest, ok = strings.Cut(s[1:], "'")
	return value, rest, ok && !strings.ContainsAny(value, `\`) && !strings.HasPrefix(rest, "'")
}

// localCall reports whether the last argument of the call is the constant true: such a setting ends
// with its transaction.
func localCall(args string) bool {
	depth := 1
	for i := range len(args) {
		switch args[i] {
		case '(':
			depth++
		case ')':
			depth--
		}
		if depth == 0 {
			_, last, _ := cutLast(args[:i], ",")
			return strings.EqualFold(strings.TrimSpace(last), "true")
		}
	}
	return false
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// note remembers a custom setting's name. Settings without a dot are PostgreSQL's own, which
// pg_settings lists.
func (m *memo) note(name string) {
	if !strings.Contains(name, ".") || strings.ContainsAny(name, "'\\\x00") {
		return
	}
	if len(m.settings) >= maxSettings {
		m.opaque = true
		return
	}
	if m.settings == nil {
		m.settings = map[string]struct{}{}
	}
	m.settings[strings.ToLower(name)] = struct{}{}
}

func wordByte(c byte) bool {
	return c == '_' || c == '$' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c > 0x7f
}

func space(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' }
