package buffer

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func reason(err error) Reason {
	var e *Error
	if errors.As(err, &e) && e.Retryable() {
		return e.Reason
	}
	return 0
}

func join(t *testing.T, q *Queue) *Ticket {
	t.Helper()
	tk, err := q.Join()
	if err != nil || tk == nil {
		t.Fatalf("join: got ticket %v, error %v; want a ticket", tk, err)
	}
	return tk
}

func TestOpenQueueLetsPass(t *testing.T) {
	t.Parallel()
	q := New(Config{})
	if tk, err := q.Join(); tk != nil || err != nil {
		t.Errorf("join an open queue: got %v, %v; want nil, nil", tk, err)
	}
	select {
	case <-q.Drained():
	default:
		t.Error("an open queue is not drained")
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := New(Config{MaxHeld: 2, MaxWait: 5 * time.Second})
		q.Hold()
		start := time.Now()
		a, b := join(t, q), join(t, q)
		if _, err := q.Join(); reason(err) != Full {
			t.Errorf("third join: got %v, want reason full", err)
		}
		err := a.Wait(t.Context())
		if got := time.Since(start); reason(err) != Expired || got != 5*time.Second {
			t.Errorf("wait: got %v after %s, want reason expired after 5s", err, got)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("client left")
		cancel(gone)
		if err := b.Wait(ctx); !errors.Is(err, gone) && reason(err) != Expired {
			t.Errorf("wait with ended context: got %v, want its cause", err)
		}
		if q.Len() != 0 {
			t.Errorf("tickets left: got %d, want 0", q.Len())
		}
	})
}

func TestCloseAnswersEverybody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := New(Config{})
		q.Hold()
		var errs [3]error
		var wg sync.WaitGroup
		for i := range errs {
			tk := join(t, q)
			wg.Go(func() { errs[i] = tk.Wait(t.Context()) })
		}
		synctest.Wait()
		q.Close()
		wg.Wait()
		for i, err := range errs {
			if reason(err) != Closed {
				t.Errorf("waiter %d: got %v, want reason closed", i, err)
			}
		}
		if _, err := q.Join(); reason(err) != Closed {
			t.Errorf("join after close: got %v, want reason closed", err)
		}
	})
}

// A slow ticket keeps those behind it for the grace and no longer.
func TestGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := New(Config{Grace: 2 * time.Second})
		q.Hold()
		slow, quick := join(t, q), join(t, q)
		q.Release()
		start := time.Now()
		if err := quick.Turn(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != 2*time.Second {
			t.Errorf("turn behind a slow ticket: got %s, want 2s", got)
		}
		quick.Done()
		slow.Done()
		slow.Done()
		<-q.Drained()
	})
}

// A hold that begins before a released ticket had its turn keeps the ticket's place.
func TestHoldAgainWhileDraining(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := New(Config{})
		q.Hold()
		a, b := join(t, q), join(t, q)
		q.Release()
		if err := a.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		q.Hold()
		waited := make(chan error, 1)
		go func() { waited <- a.Wait(t.Context()) }()
		synctest.Wait()
		select {
		case err := <-waited:
			t.Fatalf("second wait: got %v, want it to block", err)
		default:
		}
		q.Release()
		if err := <-waited; err != nil {
			t.Fatal(err)
		}
		late := join(t, q) // still draining: behind a and b
		if err := a.Turn(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.Done()
		b.Done()
		if err := late.Turn(t.Context()); err != nil {
			t.Fatal(err)
		}
		late.Done()
		<-q.Drained()
	})
}

// TestRandomHistories runs clients that arrive, prepare, go or give up at random times against
// holds and releases at random times, and checks what the package promises.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) { randomHistory(t, seed) })
	}
}

// history is the model: who joined when, and who went when.
type history struct {
	sync.Mutex
	joined, went []int
	answers      map[int]string
}

func randomHistory(t *testing.T, seed uint64) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	cfg := Config{MaxHeld: 5 + rnd.IntN(30), MaxWait: 3 * time.Second, Grace: time.Minute}
	q := New(cfg)
	h := &history{answers: map[int]string{}}
	const clients = 60
	var wg sync.WaitGroup
	for id := range clients {
		arrive := time.Duration(rnd.IntN(8000)) * time.Millisecond
		prepare := time.Duration(rnd.IntN(50)) * time.Millisecond
		patience := time.Duration(rnd.IntN(8000)+1) * time.Millisecond
		wg.Go(func() { h.client(t, q, id, arrive, prepare, patience) })
	}
	for range 4 {
		time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		q.Hold()
		time.Sleep(time.Duration(rnd.IntN(2500)) * time.Millisecond)
		if n := q.Len(); n > cfg.MaxHeld {
			t.Errorf("seed %d: %d tickets, more than %d", seed, n, cfg.MaxHeld)
		}
		q.Release()
	}
	wg.Wait()
	<-q.Drained()

	if len(h.answers) != clients {
		t.Errorf("seed %d: %d of %d clients got an answer", seed, len(h.answers), clients)
	}
	// Whoever held a ticket and went, went in the order of joining.
	want := slices.DeleteFunc(slices.Clone(h.joined), func(id int) bool { return h.answers[id] != "went" })
	if !slices.Equal(h.went, want) {
		t.Errorf("seed %d: went in order %v, joined in order %v", seed, h.went, want)
	}
}

func (h *history) client(t *testing.T, q *Queue, id int, arrive, prepare, patience time.Duration) {
	t.Helper()
	time.Sleep(arrive)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	h.Lock() // joining and noting it are one step of the model
	tk, err := q.Join()
	if tk != nil {
		h.joined = append(h.joined, id)
	}
	h.Unlock()
	answer := "passed"
	if err != nil {
		answer = reason(err).String()
	}
	if tk != nil {
		answer = "went"
		for {
			if err = tk.Wait(ctx); err != nil {
				break
			}
			time.Sleep(prepare)
			if err = tk.Turn(ctx); err != nil {
				break
			}
			if held, _, _, _ := q.state(); !held {
				h.Lock()
				h.went = append(h.went, id)
				h.Unlock()
				tk.Done()
				break
			}
		}
		if err != nil {
			answer = "gave up"
			if r := reason(err); r != 0 {
				answer = r.String()
			}
		}
	}
	h.Lock()
	h.answers[id] = answer
	h.Unlock()
}
