package link

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pgserver"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

var (
	histories = flag.Int("histories", 0, "how many random histories to run (default 6, or 60 with FICUS_TEST_LONG)")
	lanes     = flag.Int("lanes", 6, "how many of them at a time")
	atMost    = flag.Duration("atmost", 0, "begin no history after this long (default: no bound)")
	seed      = flag.Uint64("seed", 0, "the first one's seed (default: 1, or the time for many); with -histories 0 it runs alone")
	calm      = flag.Bool("calm", false, "let nothing befall the link: to find out whether a failing seed needs it")
	versions  = flag.String("majors", "", "PostgreSQL versions that take part, as 13,18 (default: the oldest and the newest here, or all for many)")
	steps     = flag.Int("steps", 0, "how many steps the writers take (default: what the seed says)")
)

// A campaign is many histories, several at a time, and what they amount to.
type campaign struct {
	majors  []int
	grounds map[int]*ground // by major version
	began   time.Time

	mu struct {
		sync.Mutex
		next      uint64
		last      uint64
		histories int
		commits   int
		rows      int64
		befell    map[string]int
	}
}

// A ground is what the histories on one server begin with.
type ground struct {
	full, empty *pgtest.Database // templates for sources and targets
	mappings    []transform.Mapping
	whole       []schema.Name // tables that need REPLICA IDENTITY FULL
}

// TestMetamorphic lets random histories run on a source while a link copies it, follows it, is ended,
// crashes and is made again, over a network that breaks. In the end both databases hold the same rows,
// whatever the settings were. A seed makes the same choices again, but not the same timing.
//
// Which deliberate mistakes it notices is written in docs/invariants.md.
func TestMetamorphic(t *testing.T) {
	t.Parallel()
	n, first := *histories, cmp.Or(*seed, 1)
	switch {
	case n == 0 && *seed != 0:
		n = 1
	case n == 0 && long():
		n = 60
	case n == 0:
		n = 6
	}
	if n > 6 && *seed == 0 {
		first = uint64(time.Now().UnixMilli())
	}
	c := &campaign{majors: majors(t, n > 6), grounds: map[int]*ground{}}
	for _, major := range c.majors {
		c.grounds[major] = newGround(t, major)
	}
	c.mu.next, c.mu.last, c.mu.befell = first, first+uint64(n), map[string]int{}
	c.began = time.Now()
	var running sync.WaitGroup
	for range min(*lanes, n) {
		running.Go(func() {
			for {
				seed, ok := c.draw()
				if !ok {
					return
				}
				t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { c.run(t, seed) })
			}
		})
	}
	running.Wait()
	fmt.Println(c.summary())
}

// majors returns the versions that take part.
func majors(t *testing.T, many bool) (list []int) {
	t.Helper()
	if *versions != "" {
		for text := range strings.SplitSeq(*versions, ",") {
			major, err := strconv.Atoi(text)
			must(t, err)
			list = append(list, major)
		}
		return list
	}
	installs, err := pgserver.Find()
	must(t, err)
	for _, in := range installs {
		list = append(list, in.Major)
	}
	slices.Sort(list)
	if list = slices.Compact(list); !many && len(list) > 2 {
		return []int{list[0], list[len(list)-1]}
	}
	return list
}

// draw returns the next seed, until there are enough or time is up.
func (c *campaign) draw() (seed uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.next == c.mu.last || *atMost > 0 && time.Since(c.began) > *atMost {
		return 0, false
	}
	c.mu.next++
	return c.mu.next - 1, true
}

func newGround(t *testing.T, major int) *ground {
	t.Helper()
	g := &ground{full: pgtest.DB(t, pgtest.Version(major)), empty: pgtest.DB(t, pgtest.Version(major))}
	g.full.Exec(t, historyTables())
	g.empty.Exec(t, historyTables())
	g.full.Exec(t, historyRows)
	var err error
	g.mappings, g.whole, err = describe(t.Context(), g.full)
	must(t, err)
	return g
}

func (c *campaign) run(t *testing.T, seed uint64) {
	t.Helper()
	// Two sources of choices: what befalls the link may be left out without changing what is written.
	s := newSettings(rand.New(rand.NewPCG(seed, 1)), c.majors)
	h := c.newHistory(t, seed, s)
	h.again = fmt.Sprintf("go test ./sync/link -run TestMetamorphic -seed %d -majors %s", seed, strings.Trim(strings.ReplaceAll(fmt.Sprint(c.majors), " ", ","), "[]"))
	h.live(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.histories++
	c.mu.commits += h.commits
	c.mu.rows += h.rows
	for _, what := range h.log {
		c.mu.befell[what]++
	}
}

func (c *campaign) summary() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var kinds []string
	for _, what := range slices.Sorted(maps.Keys(c.mu.befell)) {
		kinds = append(kinds, fmt.Sprintf("%s %d", what, c.mu.befell[what]))
	}
	took := time.Since(c.began)
	return fmt.Sprintf("metamorphic: %d histories in %s (%.0f a minute), versions %v, %d commits, %d rows at the end; %s",
		c.mu.histories, took.Round(time.Second), float64(c.mu.histories)/took.Minutes(), c.majors, c.mu.commits, c.mu.rows, strings.Join(kinds, ", "))
}
