package backoff

import (
	"sync"
	"time"
)

// A Trouble is what keeps something from working, though it tries again. The zero value is none.
// Safe for concurrent use.
type Trouble struct {
	mu struct {
		sync.Mutex
		err         error
		since, last time.Time // of the first failure and of the newest
	}
}

// Now returns since when there is trouble, and which; nil while all is well.
func (t *Trouble) Now() (since time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mu.since, t.mu.err
}

// Note takes note of a failure that will be tried again, and returns since when there is trouble.
func (t *Trouble) Note(err error) (since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.last = time.Now()
	if t.mu.err == nil {
		t.mu.since = t.mu.last
	}
	t.mu.err = err
	return t.mu.since
}

// Over forgets the trouble.
func (t *Trouble) Over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.err, t.mu.since = nil, time.Time{}
}

// OverAfter forgets the trouble when nothing has failed for so long.
func (t *Trouble) OverAfter(quiet time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.err != nil && time.Since(t.mu.last) > quiet {
		t.mu.err, t.mu.since = nil, time.Time{}
	}
}
