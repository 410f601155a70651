package units

import (
	"math"
	"testing"
	"time"
)

func TestForms(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ got, want string }{
		{Bytes(0), "0 B"},
		{Bytes(1023), "1023 B"},
		{Bytes(1024), "1.0 kB"},
		{Bytes(1 << 20), "1.0 MB"},
		{Bytes(1536 << 20), "1.5 GB"},
		{Bytes(math.MaxInt64), "8.0 EB"},
		{Count(0), "0"},
		{Count(999), "999"},
		{Count(1000), "1,000"},
		{Count(-1234567), "-1,234,567"},
		{Count(math.MinInt64), "-9,223,372,036,854,775,808"},
		{Duration(0), "0 ms"},
		{Duration(1234 * time.Microsecond), "1.23 ms"},
		{Duration(3210 * time.Millisecond), "3.21 s"},
		{Duration(250 * time.Second), "4m10s"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}
