package link

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/sync/source"
)

// childEnv tells a process of the test binary to be a link instead of running tests.
const childEnv = "FICUS_TEST_LINK"

// A child is what such a process is to do.
type child struct {
	Name, From, To, Dir string
	Load                bool // instead of following
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		fmt.Fprintln(os.Stderr, follow(text))
		os.Exit(1) // it ends by being killed
	}
	flag.Parse()
	const waiting = 8 // tests at a time: most of them wait for something
	if err := flag.Set("test.parallel", strconv.Itoa(max(waiting, runtime.GOMAXPROCS(0)))); err != nil {
		panic(err)
	}
	pgtest.Main(m, pgtest.CheckLeaks())
}

// follow runs the link that text describes.
func follow(text string) error {
	var c child
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	from, err := pg.Parse(c.From)
	if err != nil {
		return err
	}
	to, err := pg.Parse(c.To)
	if err != nil {
		return err
	}
	ctx := context.Background()
	mappings, full, err := describe(ctx, &pgtest.Database{DSN: from})
	if err != nil {
		return err
	}
	store, err := eventstore.Open(eventstore.Config{Dir: c.Dir})
	if err != nil {
		return err
	}
	l, err := New(ctx, Config{Name: c.Name, From: from, To: to, Mappings: mappings, Full: full, Store: store, Touch: true})
	if err != nil {
		return err
	}
	if c.Load {
		_, err := l.Load(ctx, onePage)
		return err
	}
	return l.Run(ctx)
}

// TestFicusKilled ends the process of a link under load with SIGKILL, again and again, at moments
// that nobody chooses, and lets another process go on.
func TestFicusKilled(t *testing.T) {
	t.Parallel()
	for _, ack := range []source.AckPolicy{source.AckStored, source.AckApplied} {
		t.Run(ack.String(), func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
			f.ack = ack
			f.load(t)
			f.close(t)
			text, err := json.Marshal(child{Name: f.name(), From: f.from.URL, To: f.to.URL, Dir: f.dir})
			must(t, err)
			stopLoad := f.write(t)
			r := rand.New(rand.NewPCG(11, uint64(ack)))
			for range rounds(5) {
				cmd := exec.CommandContext(t.Context(), os.Args[0])
				cmd.Env = append(os.Environ(), childEnv+"="+string(text))
				cmd.Stderr = os.Stderr
				must(t, cmd.Start())
				pause(r, 500*time.Millisecond)
				must(t, cmd.Process.Kill())
				if err := cmd.Wait(); cmd.ProcessState.Exited() {
					t.Fatalf("the link ended by itself: %v", err)
				}
			}
			stopLoad()
			f.open(t)
			stop := run(t, f.link)
			f.equal(t)
			stop()
		})
	}
}
