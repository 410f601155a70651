// Package stat has the few statistics that the benchmarks print: what lies in the middle of several
// runs, how far they spread, and how two programs compare that ran in turn.
package stat

import (
	"math"
	"slices"
)

// A Spread sums up one quantity over several runs. The zero value is that of no runs.
type Spread struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// Of sums up values, in whatever order they are.
func Of(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	return Spread{N: len(sorted), Median: Quantile(sorted, 0.5), Min: sorted[0], Max: sorted[len(sorted)-1]}
}

// Quantile returns the value below which a share q, from 0 to 1, of sorted lies, and goes straight
// from one value to the next in between. It is NaN for no values.
func Quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	below := int(at)
	if below >= len(sorted)-1 {
		return sorted[len(sorted)-1]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}

// Ratio compares two programs round by round: it sums up a[r]/b[r] over the rounds that both have.
// The two runs of a round stood next to each other in time, so what the machine did meanwhile
// touches a ratio less than it touches the times themselves.
func Ratio(a, b map[int]float64) Spread {
	var ratios []float64
	for round, x := range a {
		if y, ok := b[round]; ok && y != 0 {
			ratios = append(ratios, x/y)
		}
	}
	return Of(ratios)
}
