package schema

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A Filter chooses tables by name. A table is chosen when it matches some pattern of Include, or
// Include is empty, and no pattern of Exclude. The zero Filter chooses every table.
//
// A pattern is schema.table, or table alone for a table of that name in any schema; * stands for
// any characters. Names are compared as they are, without folding case. A part in double quotes is
// literal: "odd.schema"."a*b".
type Filter struct{ Include, Exclude []string }

// Compile reads the patterns. The error names the pattern that cannot be read.
func (f Filter) Compile() (*Matcher, error) {
	m := &Matcher{patterns: f.Include}
	for _, list := range []struct {
		from []string
		to   *[]pattern
	}{{f.Include, &m.include}, {f.Exclude, &m.exclude}} {
		for _, s := range list.from {
			p, err := parsePattern(s)
			if err != nil {
				return nil, fmt.Errorf("table pattern %q: %w (it reads schema.table, as in public.users, public.* or *.audit_*)", s, err)
			}
			*list.to = append(*list.to, p)
		}
	}
	return m, nil
}

// A Matcher is a compiled Filter. It is safe for concurrent use.
type Matcher struct {
	patterns         []string // of Include, as written
	include, exclude []pattern
}

// Match reports whether the filter chooses the table of that name.
func (m *Matcher) Match(n Name) bool {
	chosen := len(m.include) == 0
	for i := range m.include {
		chosen = chosen || m.include[i].match(n)
	}
	for i := range m.exclude {
		chosen = chosen && !m.exclude[i].match(n)
	}
	return chosen
}

// Unmatched returns the patterns of Include that match none of the names: misspelt ones, mostly.
func (m *Matcher) Unmatched(names []Name) []string {
	var idle []string
	for i := range m.include {
		used := false
		for _, n := range names {
			used = used || m.include[i].match(n)
		}
		if !used {
			idle = append(idle, m.patterns[i])
		}
	}
	return idle
}

type pattern struct{ schema, name *regexp.Regexp } // schema is nil for any

func (p *pattern) match(n Name) bool {
	return (p.schema == nil || p.schema.MatchString(n.Schema)) && p.name.MatchString(n.Name)
}

func parsePattern(s string) (pattern, error) {
	var parts []string // as regular expressions
	var part strings.Builder
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' && quoted && i+1 < len(s) && s[i+1] == '"':
			part.WriteByte('"')
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
			part.WriteString(literal(c))
		case c == '.':
			parts = append(parts, part.String())
			part.Reset()
		case c == '*':
			part.WriteString(".*")
		default:
			part.WriteString(literal(c))
		}
	}
	parts = append(parts, part.String())
	if quoted {
		return pattern{}, errors.New("a double quote is not closed")
	}
	if slices.Contains(parts, "") {
		return pattern{}, errors.New("a name is missing")
	}

	var p pattern
	var err error
	switch len(parts) {
	case 1:
		p.name, err = anchored(parts[0])
	case 2:
		if p.schema, err = anchored(parts[0]); err == nil {
			p.name, err = anchored(parts[1])
		}
	default:
		err = errors.New("more than one dot")
	}
	return p, err
}

// literal returns the regular expression of one byte; those of a multi-byte character stay as they
// are and join up again.
func literal(c byte) string {
	if c >= 0x80 {
		return string([]byte{c})
	}
	return regexp.QuoteMeta(string(rune(c)))
}

func anchored(expr string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(`(?s)\A(?:` + expr + `)\z`)
	if err != nil {
		return nil, errors.New("not valid UTF-8")
	}
	return re, nil
}
