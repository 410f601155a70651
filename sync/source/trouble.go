package source

import (
	"sync"
	"time"
)

// steadyAfter is how long after a failure a reader counts as well again that receives: a server that
// cannot decode sends a little before it says so, each time.
const steadyAfter = 5 * time.Second

// A trouble is what keeps the reader from receiving, though it tries again.
type trouble struct {
	mu struct {
		sync.Mutex
		err   error
		since time.Time
		last  time.Time
	}
}

// Trouble returns why nothing can be received at present and since when; nil while all is well.
func (r *Reader) Trouble() (err error, since time.Time) { //nolint:revive,staticcheck // a state, not a failure of this call
	r.pos.trouble.mu.Lock()
	defer r.pos.trouble.mu.Unlock()
	return r.pos.trouble.mu.err, r.pos.trouble.mu.since
}

// troubled takes note of an error that will be tried again.
func (t *trouble) troubled(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.last = time.Now()
	if t.mu.err == nil {
		t.mu.since = t.mu.last
	}
	t.mu.err = err
}

// heard takes note that the server sends.
func (t *trouble) heard(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.err != nil && now.Sub(t.mu.last) > steadyAfter {
		t.mu.err = nil
	}
}

// over forgets a trouble when nobody tries any more.
func (t *trouble) over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.err = nil
}
