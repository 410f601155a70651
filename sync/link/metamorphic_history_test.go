package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/source"
	"github.com/ficus-migrate/ficus/transform"
	"github.com/ficus-migrate/ficus/verify"
)

// settings are what a seed chooses besides what is written.
type settings struct {
	From, To          int // major versions
	Ack               source.AckPolicy
	Streaming         source.Streaming
	MaxRows, MaxBytes int
	Workers           int
	Load              LoadConfig
	Small             bool // logical_decoding_work_mem: transactions are streamed, or spilled by the server, early
	Own               bool // servers of its own, which crash
	Sessions, Steps   int
	r                 *rand.Rand // chooses what befalls
}

func newSettings(r *rand.Rand, majors []int) settings {
	pick := func(n ...int) int { return n[r.IntN(len(n))] }
	s := settings{
		From: majors[r.IntN(len(majors))], To: majors[r.IntN(len(majors))],
		Ack: source.AckPolicy(r.IntN(2)), Streaming: source.Streaming(r.IntN(2)),
		MaxRows: pick(1, 7, 30, 200, 0), MaxBytes: pick(2000, 50_000, 0, 0), Workers: pick(1, 1, 2, 4),
		Load:  LoadConfig{Workers: 1 + r.IntN(3), ChunkBytes: int64(pick(8<<10, 64<<10, 0))},
		Small: r.IntN(2) == 0, Own: len(majors) > 2 && r.IntN(30) == 0, Sessions: 2 + r.IntN(3), Steps: pick(20, 60, 60, 150, 150, 400), r: r,
	}
	if *steps > 0 {
		s.Steps = *steps
	}
	return s
}

// A history is what one seed makes happen: sessions that write, and what befalls the link.
type history struct {
	settings

	from, to       *pgtest.Database
	servers        [2]*pgtest.Cluster // of from and to, where they are the history's own
	source, target *faultpg.Proxy
	disk           *vfs.MemFS // loses what was not synced when it crashes
	store          *eventstore.Store
	link           *Link
	cancel         context.CancelCauseFunc // ends the running link; nil when there is none
	ended          chan error              // gets what it returned

	mappings []transform.Mapping
	whole    []schema.Name // tables that need REPLICA IDENTITY FULL
	altered  []string      // at the source, and not yet at the target
	columns  int           // that were added

	w        *rand.Rand // chooses what is written
	sessions []*session
	// truncate lets tables be truncated: not before the copy is done. A copy that comes after a
	// TRUNCATE that its snapshot does not see finds nothing (PostgreSQL manual, "Caveats" of MVCC),
	// and a slot made while one is open cannot always be decoded ("could not map filenode").
	truncate bool
	prepared int // transactions of this history that wait prepared, and how many there were
	commits  int
	rows     int64
	log      []string // of what befell
	again    string   // the command that repeats the choices
}

func (c *campaign) newHistory(t *testing.T, seed uint64, s settings) *history {
	t.Helper()
	h := &history{settings: s, w: rand.New(rand.NewPCG(seed, 0)), disk: vfs.NewCrashableMem()}
	if s.Own {
		for i, major := range []int{s.From, s.To} {
			h.servers[i] = smallCluster(t, pgtest.Version(major))
		}
		h.from, h.to = h.servers[0].DB(t), h.servers[1].DB(t)
		h.from.Exec(t, historyTables()+historyRows)
		h.to.Exec(t, historyTables())
		var err error // a table made anew is another one, and known by its number
		h.mappings, h.whole, err = describe(t.Context(), h.from)
		must(t, err)
	} else {
		h.mappings, h.whole = c.grounds[s.From].mappings, c.grounds[s.From].whole
		h.from = pgtest.DB(t, pgtest.Version(s.From), pgtest.Template(c.grounds[s.From].full))
		h.to = pgtest.DB(t, pgtest.Version(s.To), pgtest.Template(c.grounds[s.To].empty))
	}
	h.source, h.target = faultpg.New(t, h.from.DSN), faultpg.New(t, h.to.DSN)
	if s.Small {
		h.from.Exec(t, `DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET logical_decoding_work_mem = ''64kB''', current_database()); END$$`)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("again: %s\n%+v\n%s", h.again, s, strings.Join(h.log, ", "))
		}
		h.end(t)
	})
	return h
}

// live is the whole history.
func (h *history) live(t *testing.T) {
	t.Helper()
	h.connect(t)
	h.steps(t, h.Steps/6) // the slot may begin in the middle of these transactions
	h.open(t)
	h.copy(t, func(ctx context.Context) error {
		_, err := h.link.Load(ctx, h.Load)
		return err
	}, h.Steps/3)
	h.truncate = true
	h.follow(t)
	for done := 0; done < h.Steps; done += 15 {
		h.steps(t, 15)
		h.tend(t)
		if !*calm {
			h.befall(t)
		}
	}
	h.rest(t)
	h.equal(t)
	if h.r.IntN(20) == 0 {
		h.proven(t)
	}
	h.stop(t)
	h.closed(t)
}

// connect opens the sessions that write.
func (h *history) connect(t *testing.T) {
	t.Helper()
	h.sessions = nil
	for range h.Sessions {
		conn, err := h.from.DSN.Connect(t.Context(), "test", func(c *pgx.ConnConfig) {
			c.RuntimeParams["search_path"] = "public"
			c.RuntimeParams["lock_timeout"] = "10ms" // sessions of one goroutine must not wait for each other
		})
		must(t, err)
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
		h.sessions = append(h.sessions, &session{conn, -1})
	}
}

// copy runs one of the link's copies while the writers take n steps, which it may outlast. It is cut
// short by crashes sometimes, and begun again.
func (h *history) copy(t *testing.T, copying func(context.Context) error, n int) {
	t.Helper()
	for {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() { done <- copying(ctx) }()
		crash := !*calm && h.r.IntN(3) == 0
		before := n
		if crash {
			before = h.r.IntN(n + 1)
		}
		h.steps(t, before)
		n -= before
		if crash {
			h.crash(t, "crash while copying", func() {
				cancel(errCrash)
				if err := <-done; err == nil {
					n = 0 // it was quicker; what comes now begins again all the same
				}
			})
			continue
		}
		// A slot waits for every open transaction to end.
		h.commit(t)
		err := <-done
		cancel(nil)
		if err != nil {
			t.Fatalf("copy: %v", err)
		}
		return
	}
}

// follow runs the link until stop.
func (h *history) follow(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	ended, link := make(chan error, 1), h.link
	go func() { ended <- link.Run(ctx) }()
	h.cancel, h.ended = cancel, ended
}

// stop ends the running link.
func (h *history) stop(t *testing.T) {
	t.Helper()
	if h.cancel == nil {
		return
	}
	h.cancel(errStopHistory)
	err := <-h.ended
	h.cancel = nil
	altered := h.altered != nil && errors.Is(err, apply.ErrSchemaChanged)
	if !altered && !errors.Is(err, errStopHistory) {
		t.Errorf("run ended with %v", err)
	}
}

// tend looks whether the link has stopped because of what the source's tables have become, and then
// does what an operator would do.
func (h *history) tend(t *testing.T) {
	t.Helper()
	select {
	case err := <-h.ended:
		h.cancel(nil)
		h.cancel = nil
		if h.altered == nil || !errors.Is(err, apply.ErrSchemaChanged) {
			t.Fatalf("run ended with %v", err)
		}
		h.mend(t)
	default:
	}
}

// mend alters the target as the source was altered and gives the link mappings of both.
func (h *history) mend(t *testing.T) {
	t.Helper()
	h.flow()
	h.commit(t) // for which Remap waits
	for _, sql := range h.altered {
		h.to.Exec(t, sql)
	}
	h.altered = nil
	var err error
	h.mappings, h.whole, err = describe(t.Context(), h.from)
	must(t, err)
	must(t, h.link.Remap(t.Context(), h.mappings, h.whole, nil))
	h.follow(t)
	h.log = append(h.log, "table altered")
}

// open makes the link of this process, prepared or not, on what is on disk.
func (h *history) open(t *testing.T) {
	t.Helper()
	var err error
	h.store, err = eventstore.Open(eventstore.Config{Dir: "/data", FS: h.disk})
	must(t, err)
	h.link, err = New(context.WithoutCancel(t.Context()), Config{
		Name: "ficus_" + h.to.Name, From: h.source.DSN(h.from.Name), To: h.target.DSN(h.to.Name), Mappings: h.mappings, Full: h.whole,
		Store: h.store, Ack: h.Ack, Streaming: h.Streaming, MaxRows: h.MaxRows, MaxBytes: h.MaxBytes, Workers: h.Workers, Touch: true,
	})
	must(t, err)
	h.link.trimEvery = 20 * time.Millisecond
}

func (h *history) close(t *testing.T) {
	t.Helper()
	if h.link == nil {
		return
	}
	h.link.Close()
	must(t, h.store.Close())
	h.link = nil
}

// end removes what the link left, whatever came of the history.
func (h *history) end(t *testing.T) {
	t.Helper()
	for _, s := range h.sessions { // a slot cannot be dropped while a transaction builds another one
		_ = s.conn.Close(context.WithoutCancel(t.Context()))
	}
	h.flow()
	h.stop(t)
	h.close(t)
	h.open(t)
	must(t, h.link.Drop(context.WithoutCancel(t.Context())))
	h.close(t)
}

func (h *history) flow() {
	for _, p := range []*faultpg.Proxy{h.source, h.target} {
		p.Flow()
		p.Refuse(false)
	}
}

// rest ends every transaction and waits until the target has everything.
func (h *history) rest(t *testing.T) {
	t.Helper()
	h.commit(t)
	h.flow()
	h.mark(t)
	if h.altered != nil { // and no row has come from those tables since
		h.stop(t)
		h.mend(t)
		h.mark(t)
	}
}

// mark waits until the target has everything that is committed.
func (h *history) mark(t *testing.T) {
	t.Helper()
	h.from.Exec(t, `INSERT INTO public.marker SELECT count(*) + 1 FROM public.marker`)
	want := h.from.Int(t, `SELECT count(*) FROM public.marker`)
	pgtest.Eventually(t, "the target to catch up", func() bool {
		h.tend(t)
		return h.to.Int(t, `SELECT count(*) FROM public.marker`) == want
	})
}

// equal compares every table, row by row in an order that needs no key, and the progress. It asks
// nothing of Ficus.
func (h *history) equal(t *testing.T) {
	t.Helper()
	tables := h.from.Strings(t, `SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
		ORDER BY relname COLLATE "C"`)
	var digests []string
	for _, table := range tables {
		digests = append(digests, fmt.Sprintf(`SELECT '%[1]s' COLLATE "C", count(*), md5(string_agg(r::text, E'\n' ORDER BY r::text COLLATE "C")) FROM public.%[1]s r`, table))
	}
	digest := strings.Join(digests, " UNION ALL ") + ` ORDER BY 1`
	source, target := h.from.Strings(t, digest), h.to.Strings(t, digest)
	for i, table := range tables {
		if source[i] == target[i] {
			continue
		}
		sql := `SELECT left(r::text, 100), count(*) FROM public.` + table + ` r GROUP BY r::text ORDER BY r::text COLLATE "C"`
		t.Errorf("%s (-source +target):\n%s", table, gocmp.Diff(h.from.Strings(t, sql), h.to.Strings(t, sql)))
	}
	var now change.LSN
	must(t, now.UnmarshalText([]byte(h.from.Strings(t, `SELECT pg_current_wal_insert_lsn()`)[0])))
	at, ok, err := apply.Progress(t.Context(), h.to.Conn(t), h.link.cfg.Name)
	if err != nil || !ok || at == 0 || at > now {
		t.Errorf("progress %s (%t, %v), the source stands at %s", at, ok, err, now)
	}
	if left := h.to.Strings(t, `SELECT table_name FROM ficus.manifest WHERE base = '' OR parts > (SELECT count(*) FROM ficus.manifest_part p
		WHERE p.link = manifest.link AND p.table_name = manifest.table_name)`); len(left) != 0 {
		t.Errorf("the manifest says that these are not complete: %q", left)
	}
	h.rows = h.to.Int(t, `SELECT sum(n) FROM (`+strings.ReplaceAll(strings.Join(counts(tables), " UNION ALL "), "\n", " ")+`) x`)
}

func counts(tables []string) (list []string) {
	for _, table := range tables {
		list = append(list, "SELECT count(*) n FROM public."+table)
	}
	return list
}

// proven compares once more, by the verification of Ficus itself.
func (h *history) proven(t *testing.T) {
	t.Helper()
	report, err := verify.Run(t.Context(), verify.Config{Source: h.from.DSN, Target: h.to.DSN, Mappings: h.mappings, Workers: 1})
	must(t, err)
	if report.Differences != 0 {
		t.Errorf("verify finds %d differences where the text of all rows is equal", report.Differences)
	}
}

// closed closes the link and looks at what it left on disk: no transaction that has not ended.
func (h *history) closed(t *testing.T) {
	t.Helper()
	name := h.link.cfg.Name
	h.close(t)
	if n, err := openSpills(h.disk, name); err != nil || n != 0 {
		t.Errorf("%d transactions without an end are left in the event store, %v", n, err)
	}
}

var (
	errCrash       = errors.New("crash")                      // the cause with which a copy is cut short
	errStopHistory = errors.New("the history stops its link") // the cause with which a link is
)
