package change

import (
	"fmt"
	"strconv"
	"strings"
)

// An LSN is a byte position in a PostgreSQL write-ahead log. Zero means "none".
// Source: PostgreSQL manual, "WAL Internals" and type pg_lsn.
type LSN uint64

// String returns PostgreSQL's text form: two hexadecimal halves, "16/B374D848".
func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}

// ParseLSN reads PostgreSQL's text form.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("parse LSN %q: want two hexadecimal halves such as 16/B374D848", s)
	}
	return LSN(h<<32 | l), nil
}

// MarshalText implements [encoding.TextMarshaler] with String's form.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. It accepts what ParseLSN accepts.
func (l *LSN) UnmarshalText(b []byte) error {
	v, err := ParseLSN(string(b))
	*l = v
	return err
}
