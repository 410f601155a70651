package hint

import (
	"slices"
	"strings"
)

// Suggest attaches to err the known word nearest to a mistyped one, or the list of all when that is
// short and none is near.
func Suggest(err error, word string, known []string) error {
	if len(known) == 0 {
		return err
	}
	if best := Nearest(word, known); best != "" {
		return Wrap(err, "did you mean %q?", best)
	}
	if len(known) <= 20 {
		return Wrap(err, "known here: %s", strings.Join(known, ", "))
	}
	return err
}

// Nearest returns the known word that a mistyped one was probably meant to be, or "".
func Nearest(word string, known []string) string {
	if len(known) == 0 {
		return ""
	}
	best := slices.MinFunc(known, func(a, b string) int { return distance(word, a) - distance(word, b) })
	if distance(word, best) > max(2, len(word)/3) {
		return ""
	}
	return best
}

// distance counts the single-letter edits between two words, ignoring case (Levenshtein).
func distance(a, b string) int {
	ra, rb := []rune(strings.ToLower(a)), []rune(strings.ToLower(b))
	row := make([]int, len(rb)+1)
	for j := range row {
		row[j] = j
	}
	for i, x := range ra {
		diagonal := row[0]
		row[0] = i + 1
		for j, y := range rb {
			cost := diagonal
			if x != y {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(rb)]
}
