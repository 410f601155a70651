package stat

import (
	"math"
	"testing"
)

func TestOf(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		values []float64
		want   Spread
	}{
		"none":         {nil, Spread{}},
		"one":          {[]float64{3}, Spread{1, 3, 3, 3}},
		"odd":          {[]float64{9, 1, 4}, Spread{3, 4, 1, 9}},
		"even":         {[]float64{8, 2, 4, 6}, Spread{4, 5, 2, 8}},
		"all the same": {[]float64{2, 2}, Spread{2, 2, 2, 2}},
	} {
		if got := Of(c.values); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestOfLeavesItsArgumentAlone(t *testing.T) {
	t.Parallel()
	values := []float64{3, 1, 2}
	Of(values)
	if values[0] != 3 {
		t.Errorf("sorted the caller's values: %v", values)
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	hundred := make([]float64, 101)
	for i := range hundred {
		hundred[i] = float64(i)
	}
	for q, want := range map[float64]float64{0: 0, 0.5: 50, 0.95: 95, 0.99: 99, 1: 100, 0.125: 12.5} {
		if got := Quantile(hundred, q); math.Abs(got-want) > 1e-9 {
			t.Errorf("Quantile(%v) = %v, want %v", q, got, want)
		}
	}
	if got := Quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("of nothing: %v, want NaN", got)
	}
}

// The ratio of medians would be 2 here; the rounds say that b never was twice as fast as a.
func TestRatioGoesRoundByRound(t *testing.T) {
	t.Parallel()
	a := map[int]float64{1: 1, 2: 10, 3: 6, 4: 5}
	b := map[int]float64{1: 1, 2: 10, 3: 3, 5: 7}
	if got, want := Ratio(a, b), (Spread{3, 1, 1, 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := Ratio(a, map[int]float64{1: 0}); got != (Spread{}) {
		t.Errorf("a division by nothing: %+v", got)
	}
}
