package gateway

import "bytes"

// soil notes that a text may leave something behind in the session.
func (s *borrower) soil(typ byte, body []byte) {
	if typ != msgQuery && typ != msgParse && typ != msgFunctionCall {
		return
	}
	if typ == msgFunctionCall || leavesSomething(body) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mu.srv.dirty = true
	}
}

// leavesSomething guesses from a text whether it changes the session. Wrongly yes costs a DISCARD ALL;
// wrongly no lets a setting leak to the next client, so it is generous.
func leavesSomething(text []byte) bool {
	text = bytes.ToLower(text[:min(len(text), 4*reach)])
	for _, word := range []string{"set ", "set\t", "set\n", "set_config", "advisory_", "listen", "prepare", "with hold", "temp", "load ", "role"} {
		for from := 0; ; {
			i := bytes.Index(text[from:], []byte(word))
			if i < 0 {
				break
			}
			i += from
			part := i > 0 && wordByte(text[i-1]) && word[len(word)-1] != '_' // of another word, as in OFFSET
			if !part && (word[:3] != "set" || word == "set_config" || !bytes.Contains(text[:i], []byte("update"))) {
				return true
			}
			from = i + len(word)
		}
	}
	return false
}
