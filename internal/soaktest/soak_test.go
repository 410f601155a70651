package soaktest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

const (
	shortForm = 75 * time.Second
	// catchUp bounds how long the target may be behind once nobody writes and nothing is broken.
	catchUp = 10 * time.Minute
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// A soak is one run.
type soak struct {
	r              *rand.Rand
	began          time.Time
	program        string
	from, to       *pgtest.Cluster
	source, target *faultpg.Proxy
	db             *pgtest.Database // at the source
	load           *load

	// Of the round.
	copyOf *pgtest.Database
	dir    string
	name   string
	ficus  *process

	faults  map[string]int
	markers int
	checks  int
	wrong   int // tables that were not equal
	rss     int64
}

// TestSoak fails when a change is lost, doubled or changed on its way, whatever breaks: a session that
// is not waited for, a position that is written apart from its rows, a message acknowledged too early.
func TestSoak(t *testing.T) {
	duration, err := howLong()
	if err != nil {
		t.Fatal(err)
	}
	if duration == 0 {
		t.Skip("FICUS_SOAK says for how long")
	}
	s := newSoak(t)
	writing, stopWriting := context.WithCancel(t.Context())
	defer stopWriting()
	s.load.start(writing)
	defer s.load.wait()
	defer stopWriting()

	round := max(duration/4, shortForm)
	reported := make(chan struct{})
	go func() { // ends with the load
		defer close(reported)
		s.reportEveryMinute(writing)
	}()
	defer func() { <-reported }()
	defer stopWriting()
	for n := 1; time.Since(s.began) < duration && s.wrong == 0; n++ {
		s.round(t, n, min(round, duration-time.Since(s.began)))
	}
	fmt.Println(s.summary(t))
}

// howLong reads the wish from the environment; 0: none.
func howLong() (time.Duration, error) {
	if text := os.Getenv("FICUS_SOAK"); text != "" {
		return time.ParseDuration(text)
	}
	if os.Getenv("FICUS_TEST_LONG") != "" {
		return shortForm, nil
	}
	return 0, nil
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	fmt.Println("soak: seed", seed)
	s := &soak{r: rand.New(rand.NewPCG(seed, 0)), program: build(t), faults: map[string]int{}}
	// Crashes are of processes, not of machines: without fsync nothing is lost that the kernel has.
	s.from = pgtest.NewCluster(t, pgtest.Setting("logical_decoding_work_mem", "64kB"))
	s.to = pgtest.NewCluster(t, pgtest.Version(18))
	s.db = s.from.DB(t)
	s.db.Exec(t, schemaSQL)
	s.db.Exec(t, fillSQL)
	s.source, s.target = faultpg.New(t, s.from.DSN), faultpg.New(t, s.to.DSN)
	s.load = newLoad(s.db.DSN, seed)
	s.began = time.Now()
	return s
}

// round copies into a new database, is killed meanwhile, follows while things break, and ends with
// both sides equal and cleaned up.
func (s *soak) round(t *testing.T, n int, lasts time.Duration) {
	t.Helper()
	until := time.Now().Add(lasts)
	s.copyOf, s.dir, s.name = s.to.DB(t), t.TempDir(), fmt.Sprintf("soak%d", n)
	s.load.quiet(func() { s.load.truncates.Store(false) }) // see load.truncates
	s.start(t)
	for range 3 {
		s.ficus.reaches(t, "copying")
		if s.wait(t, between(s.r, 0, 2*time.Second)); s.ficus.phase() != "copying" {
			break
		}
		s.count("kill -9 while copying")
		s.ficus.kill()
		s.start(t)
	}
	s.ficus.reaches(t, "following")
	s.load.truncates.Store(true)

	check := time.Now().Add(5 * time.Minute)
	for time.Now().Before(until) && s.wrong == 0 {
		s.wait(t, between(s.r, time.Second/2, 7*time.Second))
		s.fault(t)
		if time.Now().After(check) {
			s.check(t)
			check = time.Now().Add(5 * time.Minute)
		}
	}
	s.check(t)
	s.end(t)
}

// end stops the round's ficus in order, proves with it once more, and removes what it made.
func (s *soak) end(t *testing.T) {
	t.Helper()
	s.load.quiet(func() {
		s.settle(t)
		pgtest.Eventually(t, "the target's sequences to follow", func() bool {
			next := `SELECT (SELECT last_value + is_called::int FROM public.bulk_id_seq) + (SELECT last_value + is_called::int FROM public.ticket_id_seq)
				+ (SELECT last_value + is_called::int FROM public.ticket_n_seq)`
			return s.copyOf.Int(t, next) >= s.db.Int(t, next)
		})
		if code := s.ficus.interrupt(); code != 0 && code != 130 {
			t.Errorf("ficus ended with status %d when interrupted\n%s", code, s.ficus.tail())
		}
		s.observe()
		databases := []string{"--source", url(s.db.DSN), "--target", url(s.copyOf.DSN)}
		if out, err := s.run(t, append([]string{"verify"}, databases...)...); err != nil {
			t.Errorf("ficus verify: %v\n%s", err, out)
		}
		if out, err := s.run(t, append([]string{"cleanup", "--force"}, databases...)...); err != nil {
			t.Errorf("ficus cleanup: %v\n%s", err, out)
		}
	})
	if err := os.RemoveAll(s.dir); err != nil {
		t.Error(err)
	}
}

// check compares both sides while the writers wait.
func (s *soak) check(t *testing.T) {
	t.Helper()
	s.load.quiet(func() {
		s.settle(t)
		s.checks++
		for _, table := range s.db.Strings(t, `SELECT oid::regclass FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1`) {
			digest := `SELECT count(*), md5(string_agg(md5(r::text), '' ORDER BY md5(r::text))) FROM ` + table + ` r`
			source, target := s.db.Strings(t, digest), s.copyOf.Strings(t, digest)
			if diff := cmp.Diff(source, target); diff != "" {
				s.wrong++
				rows := `SELECT left(r::text, 200) FROM ` + table + ` r`
				t.Errorf("%s after %s (-source +target):\n%s\n%s", table, time.Since(s.began), diff, differing(s.db.Strings(t, rows), s.copyOf.Strings(t, rows)))
			}
		}
		at := s.copyOf.Strings(t, `SELECT max(lsn) FROM ficus.progress`)[0]
		if s.db.Int(t, `SELECT ($1::pg_lsn <= pg_current_wal_insert_lsn())::int`, at) != 1 {
			t.Errorf("the target's progress %s is ahead of the source", at)
		}
	})
}

// differing lists some of the rows that only one side has.
func differing(source, target []string) string {
	count := map[string]int{}
	for _, r := range source {
		count[r]--
	}
	for _, r := range target {
		count[r]++
	}
	maps.DeleteFunc(count, func(_ string, n int) bool { return n == 0 })
	rows := slices.Sorted(maps.Keys(count))
	out := fmt.Sprintf("%d rows differ\n", len(rows))
	for i, r := range rows {
		if i < 20 || i >= len(rows)-20 {
			out += fmt.Sprintf("%+d %s\n", count[r], r)
		}
	}
	return out
}

// settle mends everything and waits until the target has what the source has; nobody writes.
func (s *soak) settle(t *testing.T) {
	t.Helper()
	s.source.Flow()
	s.target.Flow()
	s.load.resolve(t.Context())
	s.markers++
	s.db.Exec(t, `INSERT INTO public.marker VALUES ($1)`, s.markers)
	deadline := time.Now().Add(catchUp)
	for s.copyOf.Int(t, `SELECT count(*) FROM public.marker WHERE id = $1`, s.markers) == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("not caught up within %s; ficus is %s\n%s", catchUp, s.ficus.phase(), s.ficus.tail())
		}
		s.wait(t, 50*time.Millisecond)
	}
}

// wait lets time pass and looks after ficus: one that ended by itself is a finding, and started again.
func (s *soak) wait(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-t.Context().Done():
	case <-timer.C:
	case <-s.ficus.done:
		if s.count("ended by itself"); s.faults["ended by itself"] > 10 {
			t.Fatalf("ficus does not go on:\n%s", s.ficus.tail())
		}
		t.Errorf("after %s ficus ended by itself:\n%s", time.Since(s.began).Round(time.Second), s.ficus.tail())
		s.start(t)
	}
}

func (s *soak) count(what string) { s.faults[what]++ }

func (s *soak) reportEveryMinute(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			fmt.Printf("soak: %s, %d transactions, %d rows\n", time.Since(s.began).Round(time.Second), s.load.commits.Load(), s.load.rows.Load())
		}
	}
}

func (s *soak) summary(t *testing.T) string {
	t.Helper()
	var kinds []string
	for _, what := range slices.Sorted(maps.Keys(s.faults)) {
		kinds = append(kinds, fmt.Sprintf("%s %d", what, s.faults[what]))
	}
	result := fmt.Sprintf("%d differences", s.wrong)
	if t.Failed() {
		result += ", FAILED"
	}
	return fmt.Sprintf("soak: %s, %d transactions, %d rows; %s; compared %d times; most memory of ficus %d MB; %s",
		time.Since(s.began).Round(time.Second), s.load.commits.Load(), s.load.rows.Load(), strings.Join(kinds, ", "), s.checks, s.rss>>20, result)
}

// between returns a time from low to high.
func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)))
}

// url returns a connection string of a server that trusts everybody.
func url(dsn pg.DSN) string {
	return "postgresql://" + dsn.User() + "@" + dsn.Host() + ":" + strconv.Itoa(int(dsn.Port())) + "/" + dsn.Database() + "?sslmode=disable"
}

// errNoModule says that the test does not run in its folder.
var errNoModule = errors.New("no go.mod two folders up")

func moduleRoot() (string, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		return "", errNoModule
	}
	return root, nil
}
