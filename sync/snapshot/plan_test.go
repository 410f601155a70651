package snapshot

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/sync/manifest"
)

// TestCutCoversEveryPageOnce: whatever is finished, and however a relation grew or shrank meanwhile,
// finished and new ranges together are all pages, each once, up to the end of the world.
func TestCutCoversEveryPageOnce(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 6))
	for range 3000 {
		p := piece{plain: true, pages: r.Int64N(100)}
		p.bytes = p.pages*8192 + r.Int64N(1<<20)
		limits := planLimits{chunkBytes: 1 + r.Int64N(1<<18), split: r.IntN(4) > 0}
		done := []pages{}
		for at := int64(0); r.IntN(5) > 0; {
			at += r.Int64N(20)
			d := pages{at, at + 1 + r.Int64N(20)}
			at = d.to
			if r.IntN(6) == 0 {
				d.to = manifest.Open
			}
			done = append(done, d)
			if d.to == manifest.Open {
				break
			}
		}
		ranges := cut(p, done, limits)
		all := append(append([]pages{}, done...), ranges...)
		for page := range int64(300) {
			n := 0
			for _, a := range all {
				if page >= a.from && (a.to == manifest.Open || page < a.to) {
					n++
				}
			}
			if n != 1 {
				t.Fatalf("page %d is read %d times: %+v, done %v, new %v", page, n, p, done, ranges)
			}
		}
		for _, a := range ranges {
			if a.to != manifest.Open && a.to <= a.from {
				t.Fatalf("empty range %v: %+v, done %v", a, p, done)
			}
		}
	}
}

func TestConditions(t *testing.T) {
	t.Parallel()
	for r, want := range map[pages][]string{
		{0, manifest.Open}: nil,
		{0, 5}:             {"ctid < '(5,0)'::tid"},
		{5, 7}:             {"ctid >= '(5,0)'::tid", "ctid < '(7,0)'::tid"},
		{7, manifest.Open}: {"ctid >= '(7,0)'::tid"},
	} {
		if diff := cmp.Diff(want, r.conditions()); diff != "" {
			t.Errorf("%v (-want +got):\n%s", r, diff)
		}
	}
}

func TestAppendText(t *testing.T) {
	t.Parallel()
	if got := string(appendText([]byte("x"), []byte("a\\b\tc\nd\re\\N"))); got != `xa\\b\tc\nd\re\\N` {
		t.Errorf("got %q", got)
	}
}
