// Package units writes amounts for people: bytes, counts and durations, as every surface shows them.
package units

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bytes prints an amount of bytes in steps of 1024, with the units of PostgreSQL's pg_size_pretty:
// 512 B, 1.4 GB.
func Bytes(n int64) string {
	const prefixes = "kMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for ; v >= 1024; i++ {
		v /= 1024
	}
	return fmt.Sprintf("%.1f %cB", v, prefixes[i])
}

// Count prints a number with separators: 1,234,567.
func Count(n int64) string {
	digits, sign := strconv.FormatInt(n, 10), ""
	if n < 0 {
		digits, sign = digits[1:], "-"
	}
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return sign + b.String()
}

// Duration prints about three digits: 12.3 ms, 3.21 s, 4m10s.
func Duration(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", float64(d)/float64(time.Millisecond))
	case d < time.Minute:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
