package apply

import (
	"encoding/binary"
	"math"
	"strconv"
)

// A form is how the values of an array are sent. What the stream brings is text. Of the plain types most
// tables are made of, the fast path sends the binary form instead: the server then neither copies a text
// nor parses it. A text that is not as PostgreSQL itself writes it, and a few that it does write (BC,
// numeric NaN), have no binary form here: their statement is sent as text, as the slow path sends all.
type form uint8

// The forms.
const (
	asText form = iota
	asBool
	asInt2
	asInt4
	asInt8
	asFloat4
	asFloat8
	asNumeric
	asUUID
	asDate
	asTimestamp
	asTimestampTZ
)

// formOf returns the form of a type as format_type writes it. Types of users have their schema before
// them there, so none is mistaken for one of these.
func formOf(base string) form {
	switch base {
	case "boolean":
		return asBool
	case "smallint":
		return asInt2
	case "integer":
		return asInt4
	case "bigint":
		return asInt8
	case "real":
		return asFloat4
	case "double precision":
		return asFloat8
	case "numeric":
		return asNumeric
	case "uuid":
		return asUUID
	case "date":
		return asDate
	case "timestamp without time zone":
		return asTimestamp
	case "timestamp with time zone":
		return asTimestampTZ
	}
	return asText
}

// String returns the type's name in SQL.
func (f form) String() string {
	name, _ := f.typ()
	return name
}

// typ returns the type's name in pg_catalog and its number.
func (f form) typ() (name string, oid int) {
	switch f {
	case asBool:
		return "bool", 16
	case asInt2:
		return "int2", 21
	case asInt4:
		return "int4", 23
	case asInt8:
		return "int8", 20
	case asFloat4:
		return "float4", 700
	case asFloat8:
		return "float8", 701
	case asNumeric:
		return "numeric", 1700
	case asUUID:
		return "uuid", 2950
	case asDate:
		return "date", 1082
	case asTimestamp:
		return "timestamp", 1114
	case asTimestampTZ:
		return "timestamptz", 1184
	case asText:
	}
	return "text", textOID
}

// append appends the length and the bytes of a value; ok is false where it has no binary form here.
// Source: PostgreSQL source, the types' ..._recv functions in src/backend/utils/adt.
func (f form) append(b, text []byte) (_ []byte, ok bool) {
	switch f {
	case asText:
		return append(binary.BigEndian.AppendUint32(b, uint32(len(text))), text...), true
	case asBool:
		switch string(text) {
		case "t":
			return append(b, 0, 0, 0, 1, 1), true
		case "f":
			return append(b, 0, 0, 0, 1, 0), true
		}
		return b, false
	case asInt2:
		n, ok := integer(text, math.MinInt16, math.MaxInt16)
		return binary.BigEndian.AppendUint16(append(b, 0, 0, 0, 2), uint16(n)), ok
	case asInt4:
		n, ok := integer(text, math.MinInt32, math.MaxInt32)
		return appendInt4(b, n), ok
	case asInt8:
		n, ok := integer(text, math.MinInt64, math.MaxInt64)
		return appendInt8(b, n), ok
	case asFloat4:
		v, ok := float(text, 32)
		return appendInt4(b, int64(math.Float32bits(float32(v)))), ok
	case asFloat8:
		v, ok := float(text, 64)
		return appendInt8(b, int64(math.Float64bits(v))), ok
	case asNumeric:
		return appendNumeric(b, text)
	case asUUID:
		return appendUUID(b, text)
	case asDate:
		days, ok := date(text)
		return appendInt4(b, days), ok
	case asTimestamp:
		us, ok := timestamp(text, "")
		return appendInt8(b, us), ok
	case asTimestampTZ:
		us, ok := timestamp(text, "+00")
		return appendInt8(b, us), ok
	}
	return b, false
}

func appendInt4(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0, 0, 0, 4), uint32(n))
}

func appendInt8(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0, 0, 0, 8), uint64(n))
}

// digits reads decimal digits and nothing else, 18 at most.
func digits(text []byte) (n int64, ok bool) {
	if len(text) == 0 || len(text) > 18 {
		return 0, false
	}
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

func integer(text []byte, low, high int64) (n int64, ok bool) {
	if len(text) > 18 { // near the ends of int8
		n, err := strconv.ParseInt(string(text), 10, 64)
		return n, err == nil && text[0] != '+' && low <= n && n <= high
	}
	negative := len(text) > 0 && text[0] == '-'
	if negative {
		text = text[1:]
	}
	if n, ok = digits(text); negative {
		n = -n
	}
	return n, ok && low <= n && n <= high
}

// float reads a number. What is too small to be anything but zero is left to the server, which refuses
// it, and NaN has more than one form.
func float(text []byte, bits int) (v float64, ok bool) {
	nonzero := false
	for i, c := range text {
		switch {
		case '1' <= c && c <= '9':
			nonzero = true
		case c == '0', c == '.', i > 0 && c == '+', c == '-':
		case c == 'e' && i > 0:
			v, err := strconv.ParseFloat(string(text), bits)
			return v, err == nil && (v != 0) == nonzero
		default:
			return infinite(text)
		}
	}
	v, err := strconv.ParseFloat(string(text), bits)
	return v, err == nil && (v != 0) == nonzero
}

func infinite(text []byte) (v float64, ok bool) {
	switch string(text) {
	case "Infinity":
		return math.Inf(1), true
	case "-Infinity":
		return math.Inf(-1), true
	}
	return 0, false
}

// appendNumeric writes digits of base 10,000, counted from the decimal point, the first of which is not zero:
//
//	| digits int16 | weight of the first int16 | sign int16 | decimals shown int16 | digit int16 ... |
func appendNumeric(b, text []byte) (_ []byte, ok bool) {
	sign := 0
	if len(text) > 0 && text[0] == '-' {
		sign, text = 0x4000, text[1:]
	}
	if len(text) == 0 || len(text) > 1000 {
		return b, false
	}
	point := len(text)
	for i, c := range text {
		if c == '.' && point == len(text) && i > 0 && i+1 < len(text) {
			point = i
		} else if c < '0' || c > '9' {
			return b, false
		}
	}
	scale := max(0, len(text)-point-1)
	whole := (point + 3) / 4 // groups before the point
	head := len(b)
	b = append(b, make([]byte, 12)...)
	count, weight := 0, 0
	for g := range whole + (scale+3)/4 {
		n := numericGroup(text, point, g-whole)
		if n == 0 && count == 0 {
			continue
		}
		if count == 0 {
			weight = whole - 1 - g
		}
		b = binary.BigEndian.AppendUint16(b, uint16(n))
		count++
	}
	binary.BigEndian.PutUint32(b[head:], uint32(8+2*count))
	binary.BigEndian.PutUint16(b[head+4:], uint16(count))
	binary.BigEndian.PutUint16(b[head+6:], uint16(weight))
	binary.BigEndian.PutUint16(b[head+8:], uint16(sign))
	binary.BigEndian.PutUint16(b[head+10:], uint16(scale))
	return b, true
}

// numericGroup returns four decimal digits of a number as one: group -1 is left of the point, 0 right of
// it. What the text does not have is zero.
func numericGroup(text []byte, point, group int) (n int) {
	first := point + 4*group
	if group >= 0 {
		first++ // behind the point
	}
	for i := first; i < first+4; i++ {
		n *= 10
		if i >= 0 && i < len(text) {
			n += int(text[i] - '0')
		}
	}
	return n
}

func appendUUID(b, text []byte) (_ []byte, ok bool) {
	if len(text) != 36 {
		return b, false
	}
	b = append(b, 0, 0, 0, 16)
	for i := 0; i < 36; {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if text[i] != '-' {
				return b, false
			}
			i++
		}
		high, ok1 := hexDigit(text[i])
		low, ok2 := hexDigit(text[i+1])
		if !ok1 || !ok2 {
			return b, false
		}
		b = append(b, high<<4|low)
		i += 2
	}
	return b, true
}

func hexDigit(c byte) (v byte, ok bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
