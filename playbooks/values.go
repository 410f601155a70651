package playbooks

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bytes is an amount written as a number, or with a unit: 64kB, 256MB, 1GB (1024 each).
type Bytes int64

// UnmarshalYAML reads a number or a number with a unit.
func (b *Bytes) UnmarshalYAML(unmarshal func(any) error) error {
	var s string
	if err := unmarshal(&s); err != nil {
		return err
	}
	digits := strings.TrimRight(s, "bBkKmMgGtTiI ")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, ok := map[string]uint{"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[strings.TrimRight(strings.ToLower(strings.TrimSpace(s[len(digits):])), "ib")]
	if err != nil || !ok || n < 0 || n<<shift>>shift != n {
		return fmt.Errorf("%q is not an amount such as 512kB, 64MB or 1GB", s)
	}
	*b = Bytes(n << shift)
	return nil
}

// Duration is a time such as 500ms, 30s, 2h or 3d.
type Duration time.Duration

// UnmarshalYAML reads Go's form of a duration, or a number of days.
func (d *Duration) UnmarshalYAML(unmarshal func(any) error) error {
	var s string
	if err := unmarshal(&s); err != nil {
		return err
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			*d = Duration(time.Duration(n) * 24 * time.Hour)
			return nil
		}
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a time such as 500ms, 30s, 2h or 3d", s)
	}
	*d = Duration(v)
	return nil
}

// Percentages is a list of rising steps from 1 to 100; empty for none.
type Percentages []int

// UnmarshalYAML reads a list, or a string such as "10, 50, 100" as parameters give it.
func (p *Percentages) UnmarshalYAML(unmarshal func(any) error) error {
	var list []string
	if err := unmarshal(&list); err != nil {
		var s string
		if err := unmarshal(&s); err != nil {
			return err
		}
		list = strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
	}
	out := Percentages{}
	for _, s := range list {
		n, err := strconv.Atoi(strings.TrimSuffix(s, "%"))
		if err != nil || n < 1 || n > 100 || len(out) > 0 && n <= out[len(out)-1] {
			return fmt.Errorf("%q: want rising percentages from 1 to 100, such as 10, 50, 100", s)
		}
		out = append(out, n)
	}
	*p = out
	return nil
}
