package gateway

import (
	"math/bits"
	"sync"
	"time"
)

// Stalls says how long clients waited because of the last Hold: in the queue, or for their session
// to move. Percentiles are exact to about 3 %.
type Stalls struct {
	Clients       int
	P50, P99, Max time.Duration
}

// A histogram counts durations in buckets whose width grows with them: 32 per power of two of
// microseconds.
type histogram struct {
	mu struct {
		sync.Mutex
		buckets [bucketsPer * 40]uint32
		n       int
		max     time.Duration
	}
}

const (
	bucketBits = 5
	bucketsPer = 1 << bucketBits
)

func (h *histogram) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.buckets = [len(h.mu.buckets)]uint32{}
	h.mu.n, h.mu.max = 0, 0
}

func (h *histogram) add(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.buckets[min(bucket(d), len(h.mu.buckets)-1)]++
	h.mu.n++
	h.mu.max = max(h.mu.max, d)
}

// bucket returns where d is counted: below 64 µs one bucket per microsecond, then 32 per doubling.
func bucket(d time.Duration) int {
	us := uint64(max(0, d.Microseconds()))
	shift := max(0, bits.Len64(us)-bucketBits-1)
	return shift*bucketsPer + int(us>>shift)
}

// upper returns the longest duration counted in bucket i.
func upper(i int) time.Duration {
	shift := max(0, i/bucketsPer-1)
	return time.Duration((uint64(i-shift*bucketsPer)+1)<<shift) * time.Microsecond
}

func (h *histogram) stalls() Stalls {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.n == 0 {
		return Stalls{}
	}
	return Stalls{Clients: h.mu.n, P50: h.atLocked(0.50), P99: h.atLocked(0.99), Max: h.mu.max}
}

// at returns what that part of the durations did not exceed.
func (h *histogram) at(part float64) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.atLocked(part)
}

func (h *histogram) atLocked(part float64) time.Duration {
	rank, seen := int(part*float64(h.mu.n-1)), 0
	for i, n := range h.mu.buckets {
		if seen += int(n); seen > rank {
			return min(upper(i), h.mu.max)
		}
	}
	return h.mu.max
}
