package apply

import "time"

const (
	// mostLinger bounds how long a batch waits for company while the stream catches up.
	mostLinger = 100 * time.Millisecond
	// leastGain is what transactions come closer together by chance.
	leastGain = 5 * time.Millisecond
)

// A pace tells whether the stream is catching up: then the commits that arrive within a second were
// made over more than a second. No clock is compared with another one, only how far each has moved.
//
// While it catches up, small batches gain nobody anything and cost the destination, which may share
// its cores with the source and with us, several times as much per row.
type pace struct {
	seen, made time.Time // of the transaction looked at last: here, at the source
	gain       time.Duration
}

// look takes note of a transaction, the last of a batch that leaves now.
func (p *pace) look(now, made time.Time) {
	p.gain = 0
	if !p.seen.IsZero() {
		p.gain = made.Sub(p.made) - now.Sub(p.seen)
	}
	p.seen, p.made = now, made
}

// linger is how long the next batch may wait for company: a part of what the stream has gained
// since the batch before, so that it comes to nothing when the stream has caught up.
func (p *pace) linger() time.Duration {
	if p.gain < leastGain {
		return 0
	}
	return min(p.gain/2, mostLinger)
}
