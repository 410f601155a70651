package buffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ficus-migrate/ficus/eventstore"
)

// It fails when print leaves the payload or the type out, and when settle does not look for what is over.
func TestSameKey(t *testing.T) {
	t.Parallel()
	server := newDataServer()
	l := openCommands(t, CommandsConfig{Send: server.send})
	run(t, l)
	first := Command{Key: "k1", Type: "pay", Payload: json.RawMessage(`{"sum": 7}`), Headers: map[string]string{"Traceparent": "1"}}
	accept(t, l, first)
	answered := await(t, l, "k1", Answered)
	again := first
	again.Payload, again.Headers = json.RawMessage(`{ "sum":7 }`), nil
	e, fresh, err := l.Accept(t.Context(), again)
	if err != nil || fresh || e.Answer == nil || string(e.Answer.Body) != string(answered.Answer.Body) {
		t.Errorf("the same command again: %+v, fresh %v, %v; want the first answer", e, fresh, err)
	}
	for what, other := range map[string]Command{
		"payload": {Key: "k1", Type: "pay", Payload: json.RawMessage(`{"sum":8}`)},
		"type":    {Key: "k1", Type: "refund", Payload: first.Payload},
		"order":   {Key: "k1", Type: "pay", Payload: first.Payload, Order: "o"},
	} {
		if _, _, err := l.Accept(t.Context(), other); !errors.Is(err, ErrMismatch) {
			t.Errorf("the key with another %s: %v, want ErrMismatch", what, err)
		}
	}
	if server.sent != 1 {
		t.Errorf("sent %d times", server.sent)
	}
	if s := l.Stats(); s.Accepted != 1 || s.Repeated != 1 || s.Mismatched != 3 || s.Answered != 1 || s.Kept != 1 || s.Waiting != 0 {
		t.Errorf("figures: %+v", s)
	}
}

// Many send the same new key at once: one command, one answer for all. It fails when claim makes an
// entry without looking for one.
func TestSameKeyAtOnce(t *testing.T) {
	t.Parallel()
	server := newDataServer()
	l := openCommands(t, CommandsConfig{Send: server.send})
	run(t, l)
	var fresh atomic.Int64
	var work sync.WaitGroup
	for range 50 {
		work.Go(func() {
			_, isFresh, err := l.Accept(t.Context(), Command{Key: "k", Type: "pay"})
			if isFresh {
				fresh.Add(1)
			}
			e, err2 := l.Wait(t.Context(), "k")
			if err := errors.Join(err, err2); err != nil || e.State != Answered || string(e.Answer.Body) != `{"number":1,"time":1}` {
				t.Errorf("got %+v, %v", e, err)
			}
		})
	}
	work.Wait()
	if fresh.Load() != 1 || server.sent != 1 {
		t.Errorf("accepted %d times, sent %d times", fresh.Load(), server.sent)
	}
}

func TestInvalid(t *testing.T) {
	t.Parallel()
	l := openCommands(t, CommandsConfig{Send: newDataServer().send, MaxPayload: 100})
	for want, c := range map[string]Command{
		"no key":     {Type: "pay"},
		"the key":    {Key: "a\nb", Type: "pay"},
		"no type":    {Key: "k"},
		"the type":   {Key: "k", Type: "../pay"},
		"ordering":   {Key: "k", Type: "pay", Order: strings.Repeat("o", 256)},
		"not JSON":   {Key: "k", Type: "pay", Payload: json.RawMessage(`{`)},
		"more than":  {Key: "k", Type: "pay", Payload: json.RawMessage(`"` + strings.Repeat("x", 100) + `"`)},
		"have 1020 ": {Key: "k", Type: "pay", Headers: map[string]string{strings.Repeat("x", 1000): strings.Repeat("y", 20)}},
	} {
		_, _, err := l.Accept(t.Context(), c)
		var invalid *InvalidError
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

// The log takes so many commands and bytes and no more, whoever comes at the same time; there is room
// again when answers are forgotten. It fails when enter does not count, and when finish or remove does not
// give room back.
func TestCommandBounds(t *testing.T) {
	t.Parallel()
	server := newDataServer()
	l := openCommands(t, CommandsConfig{Send: server.send, MaxCommands: 10, MaxBytes: 20_000, Keep: time.Hour})
	var accepted atomic.Int64
	var work sync.WaitGroup
	for i := range 40 {
		work.Go(func() {
			_, _, err := l.Accept(t.Context(), Command{Key: fmt.Sprint(i), Type: "pay"})
			var full *FullError
			switch {
			case err == nil:
				accepted.Add(1)
			case !errors.As(err, &full) || full.After <= 0 || full.Commands != 10:
				t.Errorf("refused with %v", err)
			}
		})
	}
	work.Wait()
	if accepted.Load() != 10 || l.Stats().Refused != 30 {
		t.Errorf("accepted %d, refused %d", accepted.Load(), l.Stats().Refused)
	}
	stop := run(t, l)
	deadline := time.After(20 * time.Second)
	for n := 100; ; n++ { // until answers fill it
		_, _, err := l.Accept(t.Context(), Command{Key: fmt.Sprint(n), Type: "pay", Payload: json.RawMessage(`"` + strings.Repeat("x", 500) + `"`)})
		var full *FullError
		if errors.As(err, &full) && full.Commands == 0 {
			if full.After < 30*time.Second {
				t.Errorf("answers fill the log: try again in %s", full.After)
			}
			break
		} else if err != nil && !errors.As(err, &full) {
			t.Fatal(err)
		}
		select {
		case <-deadline:
			t.Fatalf("never full: %+v", l.Stats())
		default:
		}
	}
	if b := l.Stats().Bytes; b > 21_000 {
		t.Errorf("%d bytes", b)
	}
	stop()
	if err := l.forget(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.Bytes != 0 || s.Kept != 0 {
		t.Errorf("after everything was forgotten: %+v", s)
	}
	if _, err := l.Look(t.Context(), "100"); !errors.Is(err, ErrUnknown) {
		t.Errorf("look for a forgotten one: %v", err)
	}
}

// Numbers and figures are the same after the directory was opened again, also when all commands with
// high numbers were forgotten. It fails when remove does not store the highest number.
func TestReopened(t *testing.T) {
	t.Parallel()
	files := vfs.NewCrashableMem()
	server := newDataServer()
	server.before = func(c Command) error {
		if c.Type == "bad" {
			return errors.New("answered 500")
		}
		return nil
	}
	cfg := CommandsConfig{Bucket: openBucket(t, files), Send: server.send, Attempts: 2}
	l := openCommands(t, cfg)
	stop := run(t, l)
	accept(t, l, Command{Key: "dead", Type: "bad", Order: "o"})
	accept(t, l, Command{Key: "behind", Type: "good", Order: "o"})
	accept(t, l, Command{Key: "fine", Type: "good"})
	await(t, l, "fine", Answered)
	await(t, l, "dead", Dead)
	stop()
	before := l.Stats()

	files = files.CrashClone(vfs.CrashCloneCfg{})
	cfg.Bucket = openBucket(t, files)
	l = openCommands(t, cfg)
	after := l.Stats()
	if after.Waiting != 1 || after.Dead != 1 || after.Kept != 1 || after.Bytes != before.Bytes {
		t.Errorf("figures %+v, before %+v", after, before)
	}
	if err := l.forget(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	cfg.Bucket = openBucket(t, files.CrashClone(vfs.CrashCloneCfg{}))
	l = openCommands(t, cfg)
	run(t, l)
	if e := accept(t, l, Command{Key: "fine", Type: "good"}); e.Seq != 4 {
		t.Errorf("number %d, want 4", e.Seq)
	}
	e, err := l.Look(t.Context(), "dead")
	if err != nil || e.Attempts != 2 || e.Error != "answered 500" || e.Seq != 1 {
		t.Errorf("dead: %+v, %v", e, err)
	}
}

// A dead command keeps those of its Order waiting, and no others, until it is requeued or dropped; the
// waiter of one that died is told. It fails when offerLocked passes a dead command, and when Requeue
// does not give it its attempts back.
func TestDead(t *testing.T) {
	t.Parallel()
	var mended atomic.Bool
	server := newDataServer()
	server.before = func(c Command) error {
		if c.Type == "bad" && !mended.Load() {
			return errors.New("answered 500")
		}
		return nil
	}
	l := openCommands(t, CommandsConfig{Send: server.send, Attempts: 3})
	run(t, l)
	for _, order := range []string{"a", "b"} {
		accept(t, l, Command{Key: order + "1", Type: "bad", Order: order})
		accept(t, l, Command{Key: order + "2", Type: "good", Order: order})
	}
	accept(t, l, Command{Key: "alone", Type: "good"})
	await(t, l, "alone", Answered)
	for _, key := range []string{"a1", "b1"} {
		if e := await(t, l, key, Dead); e.Attempts != 3 {
			t.Errorf("%s died after %d attempts", key, e.Attempts)
		}
	}
	list, err := l.List(Filter{})
	if err != nil || len(list) != 4 || list[0].State != Dead || list[1].State != Waiting {
		t.Errorf("list: %+v, %v", list, err)
	}
	if err := l.Requeue(t.Context(), "a2"); !errors.Is(err, ErrState) {
		t.Errorf("requeue one that waits: %v", err)
	}
	if err := l.Requeue(t.Context(), "nobody"); !errors.Is(err, ErrUnknown) {
		t.Errorf("requeue one that is not there: %v", err)
	}
	mended.Store(true)
	if err := errors.Join(l.Requeue(t.Context(), "a1"), l.Drop(t.Context(), "b1")); err != nil {
		t.Fatal(err)
	}
	await(t, l, "a2", Answered)
	await(t, l, "b2", Answered)
	await(t, l, "b1", Dropped)
	if e := await(t, l, "a1", Answered); e.Attempts != 0 {
		t.Errorf("a1 has %d attempts behind it after requeue", e.Attempts)
	}
	if got := server.byLine["a"]; !slices.Equal(got, []string{"a1", "a2"}) {
		t.Errorf("line a: %v", got)
	}
	if got := server.byLine["b"]; !slices.Equal(got, []string{"b2"}) {
		t.Errorf("line b: %v", got)
	}
	list, err = l.List(Filter{States: []State{Dropped, Answered}, Limit: 3})
	if err != nil || len(list) != 3 {
		t.Errorf("list what is over: %+v, %v", list, err)
	}
}

// With DeadSkips the line goes on, and a requeued command comes next. It fails when failed leaves a dead
// command in its lane.
func TestDeadSkips(t *testing.T) {
	t.Parallel()
	server := newDataServer()
	server.before = func(c Command) error {
		if c.Type == "bad" {
			return &AttemptError{Err: errors.New("no such type"), Hopeless: true}
		}
		return nil
	}
	l := openCommands(t, CommandsConfig{Send: server.send, OnDead: DeadSkips})
	run(t, l)
	accept(t, l, Command{Key: "1", Type: "bad", Order: "o"})
	accept(t, l, Command{Key: "2", Type: "good", Order: "o"})
	await(t, l, "1", Dead)
	await(t, l, "2", Answered)
	server.mu.Lock()
	server.before = nil
	server.mu.Unlock()
	if err := l.Requeue(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	await(t, l, "1", Answered)
}

// What cannot be reached is tried for GiveUp and costs no attempts. It fails when failed counts every
// failure.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	server := newDataServer()
	var tries atomic.Int64
	server.before = func(c Command) error {
		if tries.Add(1) < 20 {
			return &AttemptError{Err: errors.New("no connection")}
		}
		return nil
	}
	l := openCommands(t, CommandsConfig{Send: server.send, Attempts: 3})
	run(t, l)
	accept(t, l, Command{Key: "1", Type: "pay"})
	if e := await(t, l, "1", Answered); e.Attempts != 0 || tries.Load() != 20 {
		t.Errorf("%d attempts counted, %d made", e.Attempts, tries.Load())
	}

	l = openCommands(t, CommandsConfig{Send: func(context.Context, Command, int) (Answer, error) {
		return Answer{}, &AttemptError{Err: errors.New("no connection")}
	}, GiveUp: 30 * time.Millisecond})
	run(t, l)
	accept(t, l, Command{Key: "1", Type: "pay"})
	await(t, l, "1", Dead)
}

// A hold lets what is at the data server end, sends nothing, and accepts; the release sends all in
// order, at once also what was delayed after a failure. It fails when tryTake does not look for a hold,
// when it does not make a new idle channel, and when Release leaves lanes delayed.
func TestHoldCommands(t *testing.T) {
	t.Parallel()
	server := newDataServer()
	entered, leave := make(chan struct{}), make(chan struct{})
	server.before = func(c Command) error {
		if c.Key == "a0" {
			close(entered)
			<-leave
		}
		if c.Key == "delayed" {
			select {
			case <-leave:
			default:
				return &AttemptError{Err: errors.New("no connection"), After: time.Hour}
			}
		}
		return nil
	}
	var stalls atomic.Int64
	l := openCommands(t, CommandsConfig{Send: server.send, Stalled: func(time.Duration) { stalls.Add(1) }})
	run(t, l)
	accept(t, l, Command{Key: "delayed", Type: "pay", Order: "d"})
	accept(t, l, Command{Key: "a0", Type: "pay", Order: "a"})
	<-entered
	l.Hold()
	select {
	case <-l.Idle():
		t.Fatal("idle with one in flight")
	default:
	}
	for i := 1; i < 20; i++ {
		accept(t, l, Command{Key: fmt.Sprintf("a%d", i), Type: "pay", Order: "a"})
		accept(t, l, Command{Key: fmt.Sprintf("b%d", i), Type: "pay", Order: "b"})
	}
	close(leave)
	<-l.Idle()
	await(t, l, "a0", Answered)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if e, err := l.Wait(ctx, "b1"); err != nil || e.State != Waiting {
		t.Errorf("held: %+v, %v", e, err)
	}
	if s := l.Stats(); !s.Held || s.Waiting != 39 || s.Sending != 0 {
		t.Errorf("held: %+v", s)
	}
	l.Release()
	for _, key := range []string{"a19", "b19", "delayed"} {
		await(t, l, key, Answered)
	}
	if a, b := server.byLine["a"], server.byLine["b"]; len(a) != 20 || len(b) != 19 || a[19] != "a19" || b[0] != "b1" || server.crowd != 1 {
		t.Errorf("lines %v %v, %d at a time", a, b, server.crowd)
	}
	if stalls.Load() != 39 {
		t.Errorf("%d stalls told, want 39", stalls.Load())
	}
}

// A line that waits does not keep others from going on, and no more than Parallel are sent at a time.
func TestParallel(t *testing.T) {
	t.Parallel()
	server := newDataServer()
	var now, most atomic.Int64
	var met sync.WaitGroup
	met.Add(4)
	server.before = func(c Command) error {
		if c.Type == "meet" { // four at a time, or never
			met.Done()
			met.Wait()
			return nil
		}
		most.Store(max(most.Load(), now.Add(1)))
		now.Add(-1)
		return nil
	}
	l := openCommands(t, CommandsConfig{Send: server.send, Parallel: 4})
	run(t, l)
	for i := range 4 {
		accept(t, l, Command{Key: fmt.Sprint(i), Type: "meet", Order: fmt.Sprint(i)})
	}
	for i := range 4 {
		await(t, l, fmt.Sprint(i), Answered)
	}
	for i := range 200 {
		accept(t, l, Command{Key: fmt.Sprintf("free-%d", i), Type: "count"})
	}
	for i := range 200 {
		await(t, l, fmt.Sprintf("free-%d", i), Answered)
	}
	if most.Load() > 4 {
		t.Errorf("%d at a time", most.Load())
	}
}

// Whoever waits gets an answer when the log stops: where the command stands. Run again, it goes on. It
// fails when Wait does not watch for the end of Run, and when attempt does not offer what it was stopped at.
func TestStopAnswersWaiters(t *testing.T) {
	t.Parallel()
	l := openCommands(t, CommandsConfig{Send: func(ctx context.Context, _ Command, _ int) (Answer, error) {
		<-ctx.Done()
		return Answer{}, context.Cause(ctx)
	}, StopTimeout: 10 * time.Millisecond})
	stop := run(t, l)
	accept(t, l, Command{Key: "k", Type: "pay"})
	told := make(chan Entry, 1)
	go func() {
		e, _ := l.Wait(context.WithoutCancel(t.Context()), "k")
		told <- e
	}()
	for l.Stats().Sending == 0 {
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("never sent")
		}
	}
	stop()
	select {
	case e := <-told:
		if e.State != Waiting || e.Attempts != 0 {
			t.Errorf("told %+v", e)
		}
	case <-time.After(10 * time.Second):
		t.Error("the waiter was told nothing")
	}
	var closed *Error
	if _, _, err := l.Accept(t.Context(), Command{Key: "k2", Type: "pay"}); !errors.As(err, &closed) || closed.Reason != Closed {
		t.Errorf("accept after the end: %v", err)
	}
	stop = run(t, l) // again
	for l.Stats().Sending == 0 {
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("never sent again")
		}
	}
	accept(t, l, Command{Key: "k3", Type: "pay"})
	stop()
}

// Keys that come again while their answers are forgotten are known or new, never lost, and nothing is left
// behind. It fails when remove leaves a record, and when it does not give room back.
func TestForgetWhileUsed(t *testing.T) {
	t.Parallel()
	server := newDataServer()
	l := openCommands(t, CommandsConfig{Send: server.send, Keep: time.Nanosecond})
	stop := run(t, l)
	var work sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	for i := range 4 {
		work.Go(func() {
			key := fmt.Sprint(i % 2)
			for ctx.Err() == nil {
				if _, _, err := l.Accept(context.WithoutCancel(ctx), Command{Key: key, Type: "pay"}); err != nil {
					t.Errorf("accept: %v", err)
					return
				}
				if _, err := l.Wait(context.WithoutCancel(ctx), key); err != nil && !errors.Is(err, ErrUnknown) {
					t.Errorf("wait: %v", err)
					return
				}
			}
		})
	}
	work.Wait()
	stop()
	if err := l.forget(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.Kept != 0 || s.Bytes != 0 || s.Waiting != 0 || s.Accepted < 2 {
		t.Errorf("left over: %+v", s)
	}
	err := l.cfg.Bucket.Each("", func(r eventstore.Record) (bool, error) {
		if r.Key != tagHighest {
			t.Errorf("left behind: %s", r.Key)
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
