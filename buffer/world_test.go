package buffer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ficus-migrate/ficus/eventstore"
)

// A dataServer makes each command's change once, whatever it is sent, as docs/commands.md asks of one,
// and forgets nothing. Its answers tell that, and how often it was sent something before.
type dataServer struct {
	mu     sync.Mutex
	made   map[string]int      // by key: which answer it got
	byLine map[string][]string // keys by Order, as their changes were made
	sent   int
	before func(c Command) error // what goes wrong before the change
	after  func(c Command) error // and after it
	atOnce map[string]int        // commands here now, by Order
	crowd  int                   // the most there were in one line
}

func newDataServer() *dataServer {
	return &dataServer{made: map[string]int{}, byLine: map[string][]string{}, atOnce: map[string]int{}}
}

func (d *dataServer) send(ctx context.Context, c Command, _ int) (Answer, error) {
	d.mu.Lock()
	d.sent++
	time := d.sent
	if c.Order != "" {
		d.atOnce[c.Order]++
		d.crowd = max(d.crowd, d.atOnce[c.Order])
		defer func() {
			d.mu.Lock()
			d.atOnce[c.Order]--
			d.mu.Unlock()
		}()
	}
	before, after := d.before, d.after
	d.mu.Unlock()
	if before != nil {
		if err := before(c); err != nil {
			return Answer{}, err
		}
	}
	if ctx.Err() != nil {
		return Answer{}, context.Cause(ctx)
	}
	d.mu.Lock()
	n, ok := d.made[c.Key]
	if !ok {
		n = len(d.made) + 1
		d.made[c.Key] = n
		d.byLine[c.Order] = append(d.byLine[c.Order], c.Key)
	}
	d.mu.Unlock()
	if after != nil {
		if err := after(c); err != nil {
			return Answer{}, err
		}
	}
	return Answer{Status: 201, Headers: map[string]string{"Content-Type": "application/json"}, Body: fmt.Appendf(nil, `{"number":%d,"time":%d}`, n, time)}, nil
}

func openBucket(t testing.TB, files *vfs.MemFS) *eventstore.Bucket {
	t.Helper()
	s, err := eventstore.Open(eventstore.Config{Dir: "data", FS: files, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.Bucket("commands")
}

func openCommands(t testing.TB, cfg CommandsConfig) *Commands {
	t.Helper()
	if cfg.Bucket == nil {
		cfg.Bucket = openBucket(t, vfs.NewCrashableMem())
	}
	if cfg.BackoffMin == 0 {
		cfg.BackoffMin, cfg.BackoffMax = time.Millisecond, 5*time.Millisecond
	}
	l, err := OpenCommands(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// run runs a log until the returned function is called, or the test ends.
func run(t testing.TB, l *Commands) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel(errEnough)
		if err := <-ended; !errors.Is(err, errEnough) {
			t.Errorf("run ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

var errEnough = errors.New("the test has seen enough")

func accept(t testing.TB, l *Commands, c Command) Entry {
	t.Helper()
	e, fresh, err := l.Accept(t.Context(), c)
	if err != nil || !fresh {
		t.Fatalf("accept %s: fresh %v, %v", c.Key, fresh, err)
	}
	return e
}

// await waits until a command is in a state.
func await(t testing.TB, l *Commands, key string, want State) Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	e, err := l.Wait(ctx, key)
	if err != nil || e.State != want {
		t.Fatalf("command %s: %+v, %v; want it %s", key, e, err, want)
	}
	return e
}

// A client sends commands of one Order, the next when the one before is acknowledged, and tries again
// what was refused or got no answer.
type client struct {
	order string
	acked []string
	err   error
}

// TestCrashes lets clients send through a log whose machine crashes again and again, with a data server
// that fails before and after it has made a change. What was acknowledged is made once, in its order;
// a key that is sent again gets the answer that it got before.
//
// It fails when Accept does not sync, when an acknowledged command is not loaded, when a lane goes on with
// its second command while the first is delayed, and when commands are numbered anew after a crash.
func TestCrashes(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			crashes(t, rand.New(rand.NewPCG(seed, 1)))
		})
	}
}

func crashes(t *testing.T, rng *rand.Rand) {
	t.Helper()
	const lives, lines, each = 5, 6, 60
	server := newDataServer()
	server.before, server.after = flaky(rng.Uint64(), 8), flaky(rng.Uint64(), 8)
	files := vfs.NewCrashableMem()
	var power sync.RWMutex // held to read while a client notes an answer: none is noted after the crash that undid it
	answers := map[string]string{}
	var noted sync.Mutex
	clients := make([]*client, lines)
	for i := range clients {
		clients[i] = &client{order: fmt.Sprintf("line-%d", i)}
	}
	for life := range lives {
		l := openCommands(t, CommandsConfig{Bucket: openBucket(t, files), Send: server.send, Attempts: 1000, StopTimeout: time.Millisecond})
		stop := run(t, l)
		crashed := make(chan struct{})
		var work sync.WaitGroup
		for i, c := range clients {
			work.Go(func() {
				note := func(key string, e Entry) bool {
					power.RLock()
					defer power.RUnlock()
					select {
					case <-crashed:
						return false
					default:
					}
					if e.State != Answered {
						return true
					}
					noted.Lock()
					defer noted.Unlock()
					if before, ok := answers[key]; ok && before != string(e.Answer.Body) {
						c.err = fmt.Errorf("key %s was answered %s, and then %s", key, before, e.Answer.Body)
					}
					answers[key] = string(e.Answer.Body)
					return true
				}
				c.work(t.Context(), l, note, (life+1)*each/lives, i%2 == 0)
			})
		}
		var after time.Duration
		if life < lives-1 {
			after = time.Duration(rng.IntN(150)) * time.Millisecond
			<-time.After(after)
			power.Lock()
			close(crashed)
			files = files.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			power.Unlock()
			stop()
		}
		work.Wait()
		if life == lives-1 {
			for _, c := range clients {
				for _, key := range c.acked {
					await(t, l, key, Answered)
				}
			}
		}
	}
	check(t, server, clients)
	if len(answers) == 0 {
		t.Error("no client got an answer")
	}
}

// work sends commands up to the n-th. note says whether what the client was told still holds.
func (c *client) work(ctx context.Context, l *Commands, note func(string, Entry) bool, n int, waits bool) {
	for len(c.acked) < n {
		key := fmt.Sprintf("%s-%03d", c.order, len(c.acked))
		_, _, err := l.Accept(ctx, Command{Key: key, Order: c.order, Type: "count", Payload: []byte(`{"n":1}`)})
		if err != nil || !note(key, Entry{}) {
			return // crashed, or about to
		}
		c.acked = append(c.acked, key)
		if waits || len(c.acked)%7 == 0 {
			if e, err := l.Wait(ctx, key); err != nil || !note(key, e) {
				return
			}
		}
	}
}

// flaky returns what fails one time in n.
func flaky(seed uint64, n int) func(Command) error {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 2))
	return func(Command) error {
		mu.Lock()
		defer mu.Unlock()
		switch rng.IntN(2 * n) {
		case 0:
			return &AttemptError{Err: errors.New("no connection")}
		case 1:
			return errors.New("answered 500")
		}
		return nil
	}
}

func check(t *testing.T, server *dataServer, clients []*client) {
	t.Helper()
	server.mu.Lock()
	defer server.mu.Unlock()
	for _, c := range clients {
		if c.err != nil {
			t.Error(c.err)
		}
		if made := server.byLine[c.order]; !slices.Equal(made, c.acked) {
			t.Errorf("%s: changes were made in the order %v, acknowledged in the order %v", c.order, made, c.acked)
		}
	}
	if server.crowd > 1 {
		t.Errorf("%d commands of one line were at the data server at a time", server.crowd)
	}
}
