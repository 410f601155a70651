package change_test

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/ficus-migrate/ficus/change"
)

func TestParseLSN(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]change.LSN{
		"0/0":               0,
		"0/1":               1,
		"1/0":               1 << 32,
		"16/B374D848":       0x16_B374D848,
		"16/b374d848":       0x16_B374D848,
		"0/16B374D8":        0x16B374D8,
		"FFFFFFFF/FFFFFFFF": math.MaxUint64,
	} {
		got, err := change.ParseLSN(text)
		if err != nil || got != want {
			t.Errorf("ParseLSN(%q) = %d, %v; want %d", text, got, err, want)
		}
		again, err := change.ParseLSN(got.String())
		if err != nil || again != got {
			t.Errorf("%q does not come back: %q gives %d, %v", text, got, again, err)
		}
	}
}

func TestParseLSNRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "/", "0", "0/", "/0", "1/2/3", "100000000/0", "0/100000000", "-1/0", "0/+1", "0x1/0", " 0/1", "0/1 ", "g/0", "0_1/0"} {
		if got, err := change.ParseLSN(text); err == nil {
			t.Errorf("ParseLSN(%q) = %s, want an error", text, got)
		}
	}
}

func TestLSNInJSON(t *testing.T) {
	t.Parallel()
	type status struct {
		Applied change.LSN `json:"applied"`
	}
	out, err := json.Marshal(status{0x16_B374D848})
	if err != nil || string(out) != `{"applied":"16/B374D848"}` {
		t.Errorf("marshalled: %s, %v", out, err)
	}
	var back status
	if err := json.Unmarshal(out, &back); err != nil || back.Applied != 0x16_B374D848 {
		t.Errorf("unmarshalled: %+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"applied":"nowhere"}`), &back); err == nil {
		t.Error("a word was taken for an LSN")
	}
}
