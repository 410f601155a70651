package verify

import "time"

// A Pace turns what Config.Progress is told into a rate and the time that is left.
type Pace struct {
	Done, Total int64
	Rate        float64       // rows per second, of both sides together
	Left        time.Duration // 0 while it is not known
}

// NewPace returns what a comparison that began at start has come to.
func NewPace(start time.Time, done, total int64) Pace {
	p := Pace{Done: done, Total: total}
	if took := time.Since(start).Seconds(); took > 0 {
		p.Rate = float64(done) / took
	}
	if p.Rate > 0 && total > done {
		p.Left = time.Duration(float64(total-done) / p.Rate * float64(time.Second))
	}
	return p
}
