package schema

import (
	"fmt"
	"strings"
)

// ParseName reads schema.name as Display writes it: each part plain, or quoted as an SQL identifier.
func ParseName(s string) (Name, error) {
	first, rest, err := cutIdent(s)
	if err == nil && strings.HasPrefix(rest, ".") {
		var second string
		if second, rest, err = cutIdent(rest[1:]); err == nil && rest == "" {
			return Name{first, second}, nil
		}
	}
	return Name{}, fmt.Errorf("parse name %q: want schema.table, quoted as in SQL where needed", s)
}

// UnmarshalText implements [encoding.TextUnmarshaler]. It accepts what ParseName accepts.
func (n *Name) UnmarshalText(b []byte) error {
	v, err := ParseName(string(b))
	*n = v
	return err
}

// cutIdent cuts one identifier off s.
func cutIdent(s string) (ident, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, `."`)
		if i < 0 {
			i = len(s)
		}
		return s[:i], s[i:], nil
	}
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			continue
		}
		if strings.HasPrefix(s[i+1:], `"`) {
			i++
			continue
		}
		return strings.ReplaceAll(s[1:i], `""`, `"`), s[i+1:], nil
	}
	return "", "", fmt.Errorf("quote is not closed")
}
