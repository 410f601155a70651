package buffer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/ficus-migrate/ficus/eventstore"
)

// Stored layout, in a bucket of the event store. seq and time are 16 hexadecimal digits, so that
// they sort; time is in nanoseconds.
//
//	k key          the command's record, JSON: written by Accept, by each attempt without an answer,
//	               and with the answer
//	q seq          the command itself, JSON; goes when it is over
//	x time seq     size(8 hexadecimal digits) key: it was over at time; goes with k when Keep has passed
//	n              the highest seq of the commands that were removed since: seq never falls back
const (
	tagRecord  = "k"
	tagCommand = "q"
	tagOver    = "x"
	tagHighest = "n"
)

// overhead is what a record takes on disk besides the texts that are counted.
const overhead = 400

// OnDead says what becomes of the commands behind a dead one with the same Order.
type OnDead string

// The choices.
const (
	DeadStops OnDead = "stop" // they wait until the dead one was requeued or dropped
	DeadSkips OnDead = "skip" // they go on without it
)

// CommandsConfig says how commands are kept and sent. A field without a stated default is required.
type CommandsConfig struct {
	Bucket *eventstore.Bucket // where they are kept, and nothing else is
	// Send makes one attempt to get the data server's answer; the same command may come again, also
	// after it was done. attempt counts from 1. An error that is no *AttemptError counts as spent.
	Send func(ctx context.Context, c Command, attempt int) (Answer, error)

	// MaxCommands is how many may wait, dead ones included (default 100,000).
	MaxCommands int
	// MaxBytes is how much all commands and the answers that are kept may take. A command is refused
	// beyond it; the answers of commands that were accepted before may pass it (default 1 GiB).
	MaxBytes int64
	// MaxPayload is the size of the largest command, headers included (default 1 MiB).
	MaxPayload int
	// Parallel is how many commands are at the data server at a time (default 32).
	Parallel int
	// Timeout bounds one attempt (default 10 s).
	Timeout time.Duration
	// BackoffMin and BackoffMax are the first and the longest pause between attempts (defaults 100 ms, 30 s).
	BackoffMin, BackoffMax time.Duration
	// Attempts is how often the data server may fail at a command until it is dead (default 10).
	Attempts int
	// GiveUp is how long a command is tried until it is dead, however it failed (default 24 h).
	GiveUp time.Duration
	// Keep is how long answers are kept: so long the same key gets the same answer (default 24 h).
	Keep time.Duration
	// OnDead is DeadStops by default.
	OnDead OnDead
	// StopTimeout is how long attempts may go on once Run's context ended (default 5 s).
	StopTimeout time.Duration
	// Stalled is told how long a command waited because of a hold, when it goes on. Default: nobody.
	Stalled func(time.Duration)

	// Log gets what an operator should know (default: discarded).
	Log *slog.Logger
}

func (c CommandsConfig) withDefaults() CommandsConfig {
	c.MaxCommands = cmp.Or(c.MaxCommands, 100_000)
	c.MaxBytes = cmp.Or(c.MaxBytes, 1<<30)
	c.MaxPayload = cmp.Or(c.MaxPayload, 1<<20)
	c.Parallel = cmp.Or(c.Parallel, 32)
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	c.BackoffMin = cmp.Or(c.BackoffMin, 100*time.Millisecond)
	c.BackoffMax = cmp.Or(c.BackoffMax, 30*time.Second)
	c.Attempts = cmp.Or(c.Attempts, 10)
	c.GiveUp = cmp.Or(c.GiveUp, 24*time.Hour)
	c.Keep = cmp.Or(c.Keep, 24*time.Hour)
	c.OnDead = cmp.Or(c.OnDead, DeadStops)
	c.StopTimeout = cmp.Or(c.StopTimeout, 5*time.Second)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.Stalled == nil {
		c.Stalled = func(time.Duration) {}
	}
	return c
}

// Commands is a durable log of commands. See the package documentation.
type Commands struct {
	cfg CommandsConfig

	mu struct {
		sync.Mutex
		entries map[string]*entry // by key: what is not over, and what is being looked up
		lanes   map[string]*lane  // by Order, or by seq where there is none
		ready   []*lane           // their first may be sent, in the order in which they became so
		delayed lanesByTime       // their first may be sent later
		wake    chan struct{}     // closed and replaced when ready or delayed gained something

		seq      uint64 // of the newest command
		active   int    // that are not over
		bytes    int64
		kept     int // that are over
		inFlight int
		count    counters

		held    time.Time     // since when nothing is sent; zero: it is
		idle    chan struct{} // closed while inFlight is 0
		stopped bool          // Run has ended, and has not begun again
		ended   chan struct{} // closed when it has
	}
}

// counters start at 0 with the process.
type counters struct{ accepted, repeated, mismatched, refused, attempts, failed, answered, died int64 }

// CommandStats are the figures of a log. Counters start at 0 with the process.
type CommandStats struct {
	Waiting, Sending, Dead int   // now
	Kept                   int   // that are over, now
	Bytes                  int64 // of all these
	Held                   bool
	Oldest                 time.Time // when the oldest that is neither over nor dead was accepted; zero: there is none

	Accepted   int64 // new keys
	Repeated   int64 // keys that were known, with the same command
	Mismatched int64 // with another one
	Refused    int64 // because the log was full
	Attempts   int64 // to get an answer
	Failed     int64 // of them, without one
	Answered   int64 // commands
	Died       int64
}

// OpenCommands reads what an earlier process left. Nothing is sent before Run.
func OpenCommands(cfg CommandsConfig) (*Commands, error) {
	if cfg.Bucket == nil || cfg.Send == nil {
		return nil, errors.New("open the command log: no bucket, or nowhere to send to")
	}
	l := &Commands{cfg: cfg.withDefaults()}
	l.mu.entries, l.mu.lanes = map[string]*entry{}, map[string]*lane{}
	l.mu.wake, l.mu.idle, l.mu.ended = make(chan struct{}), make(chan struct{}), make(chan struct{})
	close(l.mu.idle)
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("open the command log: %w", err)
	}
	return l, nil
}

// load fills mu from the bucket. Nobody else knows the log yet.
func (l *Commands) load() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	highest, ok, err := l.cfg.Bucket.Get(tagHighest)
	if err != nil {
		return err
	}
	if ok {
		if l.mu.seq, err = strconv.ParseUint(string(highest), 16, 64); err != nil {
			return fmt.Errorf("read the highest number: %w", err)
		}
	}
	err = l.cfg.Bucket.Each(tagOver, func(r eventstore.Record) (bool, error) {
		o, err := parseOver(r)
		l.mu.seq = max(l.mu.seq, o.seq)
		l.mu.kept++
		l.mu.bytes += o.size
		return true, err
	})
	if err != nil {
		return err
	}
	var waiting []string
	err = l.cfg.Bucket.Each(tagCommand, func(r eventstore.Record) (bool, error) {
		var c struct {
			Key string `json:"key"`
		}
		err := json.Unmarshal(r.Value, &c)
		waiting = append(waiting, c.Key)
		return true, err
	})
	if err != nil {
		return err
	}
	for _, key := range waiting {
		rec, ok, err := l.read(key)
		if err != nil {
			return err
		} else if !ok {
			return fmt.Errorf("command %q has no record", key)
		}
		e := &entry{rec: rec, durable: true, settled: make(chan struct{}), done: make(chan struct{})}
		close(e.settled)
		if rec.State == Dead {
			close(e.done)
		}
		l.mu.seq = max(l.mu.seq, rec.Seq)
		l.mu.active++
		l.mu.bytes += e.size()
		l.mu.entries[key] = e
		l.appendLocked(e)
	}
	for _, lane := range l.mu.lanes {
		l.offerLocked(lane)
	}
	return nil
}

// read returns the stored record of a key.
func (l *Commands) read(key string) (rec record, ok bool, err error) {
	data, ok, err := l.cfg.Bucket.Get(tagRecord + key)
	if err == nil && ok {
		err = json.Unmarshal(data, &rec)
	}
	return rec, ok, err
}

// encode returns a record as it is stored.
func (rec *record) encode() (eventstore.Record, error) {
	data, err := json.Marshal(rec)
	return eventstore.Record{Key: tagRecord + rec.Key, Value: data}, err
}

// size is what a record that is not over counts for, its command included.
func (rec *record) size() int64 {
	return overhead + rec.Payload + int64(2*len(rec.Key)+2*len(rec.Order)+2*len(rec.Type))
}

// sizeOver is what it counts for once it is over: the command has gone.
func (rec *record) sizeOver() int64 {
	n := rec.size() - rec.Payload
	if a := rec.Answer; a != nil {
		n += int64(len(a.Body)) * 4 / 3 // base64
		for k, v := range a.Headers {
			n += int64(len(k) + len(v))
		}
	}
	return n
}

func hex64(n uint64) string { return fmt.Sprintf("%016x", n) }

// An over is a command that is over, as found under tagOver.
type over struct {
	at   time.Time
	seq  uint64
	size int64
	key  string
}

func (o over) record() eventstore.Record {
	return eventstore.Record{Key: tagOver + hex64(uint64(o.at.UnixNano())) + hex64(o.seq), Value: fmt.Appendf(nil, "%08x%s", o.size, o.key)}
}

func parseOver(r eventstore.Record) (o over, err error) {
	k, v := r.Key[len(tagOver):], string(r.Value)
	if len(k) != 32 || len(v) < 8 {
		return o, fmt.Errorf("malformed record %q", r.Key)
	}
	at, err1 := strconv.ParseInt(k[:16], 16, 64)
	seq, err2 := strconv.ParseUint(k[16:], 16, 64)
	size, err3 := strconv.ParseInt(v[:8], 16, 64)
	return over{time.Unix(0, at), seq, size, v[8:]}, errors.Join(err1, err2, err3)
}

// Stats returns the present figures.
func (l *Commands) Stats() CommandStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.mu.count
	s := CommandStats{
		Sending: l.mu.inFlight, Kept: l.mu.kept, Bytes: l.mu.bytes, Held: !l.mu.held.IsZero(),
		Accepted: c.accepted, Repeated: c.repeated, Mismatched: c.mismatched, Refused: c.refused,
		Attempts: c.attempts, Failed: c.failed, Answered: c.answered, Died: c.died,
	}
	for _, e := range l.mu.entries {
		switch {
		case !e.durable: // not accepted yet
		case e.rec.State == Dead:
			s.Dead++
		default:
			s.Waiting++
			if s.Oldest.IsZero() || e.rec.Accepted.Before(s.Oldest) {
				s.Oldest = e.rec.Accepted
			}
		}
	}
	s.Waiting -= s.Sending
	return s
}
