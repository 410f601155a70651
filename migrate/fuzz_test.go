package migrate

import (
	"bytes"
	"testing"
	"time"
)

// lines is a journal in memory, one record a line.
type lines [][]byte

func (l *lines) Append(record []byte) error {
	*l = append(*l, bytes.Clone(record))
	return nil
}

func (l *lines) Scan(fn func(record []byte) error) error {
	for _, record := range *l {
		if err := fn(record); err != nil {
			return err
		}
	}
	return nil
}

// FuzzReplay folds journals, one record a line. What does not belong into one is an error, and
// folding a record twice is no worse than folding it once.
//
// It fails when a promotion's record is believed to have a promotion in it: take the test of it away
// in replay.
func FuzzReplay(f *testing.F) {
	f.Add([]byte(`{"seq":1,"time":"2026-11-21T10:00:00Z","type":"phase","phase":"copying","message":"copying"}
{"seq":2,"time":"2026-11-21T10:00:01Z","type":"step","phase":"copying","message":"load: started","data":{"step":"load","state":"started"}}
{"seq":3,"time":"2026-11-21T10:00:02Z","type":"step","phase":"copying","message":"load: done","data":{"step":"load","state":"done","copied":{}}}
{"seq":4,"time":"2026-11-21T10:00:03Z","type":"gate","phase":"following","message":"promote","data":{"gate":"promote","open":true}}
{"seq":5,"time":"2026-11-21T10:00:04Z","type":"command","phase":"following","message":"approve","data":{"verb":"approve","gate":"promote"}}
{"seq":6,"time":"2026-11-21T10:00:05Z","type":"proof","phase":"verifying","message":"proof","data":{"proof":{"kind":"exact"},"owner":"source"}}
{"seq":7,"time":"2026-11-21T10:00:06Z","type":"step","phase":"promoting","message":"own","data":{"step":"own","state":"started","attempt":2}}
{"seq":8,"time":"2026-11-21T10:00:06Z","type":"owner","phase":"promoting","message":"owner","data":{"owner":"target","epoch":2}}
{"seq":9,"time":"2026-11-21T10:00:07Z","type":"promotion","phase":"promoted","message":"promoted","data":{"promotion":{"epoch":2}}}
{"seq":10,"time":"2026-11-21T10:00:08Z","type":"error","phase":"failed","message":"error","data":{"error":"x","hint":"y","failed_in":"following"}}`))
	f.Add([]byte(`{"seq":1,"type":"promotion"}`))
	f.Add([]byte(`{"seq":-1,"type":"command","data":{"verb":"no such verb"}}`))
	f.Add([]byte(`{"data":null}` + "\n" + `{"data":{}}`))
	f.Add([]byte("null\n[]\n{"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var j lines
		for line := range bytes.Lines(text) {
			if err := j.Append(line); err != nil {
				t.Fatal(err)
			}
		}
		s, err := replay(&j)
		phase, phaseErr := PhaseOf(&j)
		if (err == nil) != (phaseErr == nil) || phase != s.phase {
			t.Fatalf("phase %s, %v; the fold's %s, %v", phase, phaseErr, s.phase, err)
		}
		if n := len(s.phases) + len(s.promotions) + len(s.done) + len(s.approvals); n > 4*len(j) {
			t.Fatalf("%d things in a state out of %d records", n, len(j))
		}
		if err != nil {
			return
		}
		c := s.clone()
		c.apply(record{Event: Event{Seq: s.seq + 1, Time: time.Now(), Type: eventPhase, Phase: Cancelled}})
	})
}
