package apply

import "math"

// The last years that PostgreSQL's types surely hold.
const (
	lastYearOfDate      = 5_874_896
	lastYearOfTimestamp = 294_275
)

// date reads "2026-11-21" as days since 2000-01-01.
func date(text []byte) (days int64, ok bool) {
	switch string(text) {
	case "infinity":
		return math.MaxInt32, true
	case "-infinity":
		return math.MinInt32, true
	}
	return day(text, lastYearOfDate)
}

// timestamp reads "2026-11-21 13:37:06.123456" and the zone behind it as microseconds since 2000-01-01.
func timestamp(text []byte, zone string) (us int64, ok bool) {
	switch string(text) {
	case "infinity":
		return math.MaxInt64, true
	case "-infinity":
		return math.MinInt64, true
	}
	end := len(text) - len(zone)
	if end < 0 || string(text[end:]) != zone {
		return 0, false
	}
	text = text[:end]
	space := 10 // behind the day
	for space < len(text) && text[space] != ' ' {
		space++
	}
	if len(text) < space+9 {
		return 0, false
	}
	days, ok := day(text[:space], lastYearOfTimestamp)
	if !ok {
		return 0, false
	}
	us, ok = timeOfDay(text[space+1:])
	return days*86_400_000_000 + us, ok
}

// timeOfDay reads "13:37:06" with up to six digits of a second behind it.
func timeOfDay(text []byte) (us int64, ok bool) {
	if len(text) < 8 || len(text) == 9 || len(text) > 15 || text[2] != ':' || text[5] != ':' {
		return 0, false
	}
	h, ok1 := digits(text[:2])
	m, ok2 := digits(text[3:5])
	s, ok3 := digits(text[6:8])
	if !ok1 || !ok2 || !ok3 || h > 23 || m > 59 || s > 59 {
		return 0, false
	}
	fraction := int64(0)
	if len(text) > 8 {
		if fraction, ok = digits(text[9:]); !ok || text[8] != '.' {
			return 0, false
		}
		for range 15 - len(text) {
			fraction *= 10
		}
	}
	return ((h*60+m)*60+s)*1_000_000 + fraction, true
}

// day reads "2026-11-21", a day that there is, as days since 2000-01-01.
func day(text []byte, lastYear int64) (days int64, ok bool) {
	n := len(text)
	if n < 10 || text[n-3] != '-' || text[n-6] != '-' {
		return 0, false
	}
	y, ok1 := digits(text[:n-6])
	m, ok2 := digits(text[n-5 : n-3])
	d, ok3 := digits(text[n-2:])
	if !ok1 || !ok2 || !ok3 || y < 1 || y > lastYear || m < 1 || m > 12 || d < 1 || d > daysIn(y, m) {
		return 0, false
	}
	// Years begin in March, so that what is irregular comes last, and 400 of them always have 146,097 days.
	if m <= 2 {
		y--
		m += 12
	}
	of := y % 400
	return y/400*146_097 + of*365 + of/4 - of/100 + (153*(m-3)+2)/5 + d - 1 - 730_425, true
}

func daysIn(y, m int64) int64 {
	switch {
	case m == 2 && y%4 == 0 && (y%100 != 0 || y%400 == 0):
		return 29
	case m == 2:
		return 28
	case m == 4 || m == 6 || m == 9 || m == 11:
		return 30
	}
	return 31
}
