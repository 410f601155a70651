package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// closeTimeout bounds how long Close waits for servers that do not answer.
const closeTimeout = 5 * time.Second

// A Follower applies the source's changes to the target.
type Follower interface {
	// StopAt returns once the target holds everything that committed on the source up to lsn and
	// nothing after it. Applying stands still until release is called. An lsn of 0 is wherever the
	// target stands; StopAt is then called again, before that is released, with an LSN to move on to.
	StopAt(ctx context.Context, lsn change.LSN) (release func(), err error)
}

// Keys calls yield for each key of a source table that was touched since the last proof: the text
// forms of the mapping's key columns, in the order of Mapping.Key. A nil key stands for the whole
// table (it was truncated, or has no key). A key that comes twice is counted twice. An error of yield
// ends the iteration and is returned.
type Keys func(table schema.Name, yield func(key []string) error) error

// Config holds what a comparison needs. Fields without a stated default are required.
type Config struct {
	Source, Target pg.DSN
	Mappings       []transform.Mapping

	// Sequences are compared for being ahead. Default: none.
	Sequences []schema.Sequence
	// Definitions makes an exact comparison compare the tables' definitions, too: columns,
	// constraints, indexes, triggers, grants.
	Definitions bool

	// Follower stops the target at the source's instant. Default: none; both sides are taken as
	// they are.
	Follower Follower
	// Keys makes Run compare only these. Default: everything.
	Keys Keys

	// Workers is the number of connections to each side. Default: the number of cores, at least 2.
	Workers int
	// ChunkRows is about how many rows one query reads. Default 200,000.
	ChunkRows int64
	// WholeRows is up to how many (estimated) rows a delta compares a table as a whole when keys
	// will not do. Default 200,000.
	WholeRows int64
	// MaxSamples is how many differing rows of each table the report shows. Default 10.
	MaxSamples int
	// Name and Program are put into reports: the migration's name; who compares, with the version.
	Name, Program string
	// ShowValues adds the differing values to the samples. They may be anybody's private data.
	ShowValues bool

	// Save makes an exact comparison one that can be interrupted: it is called whenever a part has
	// been compared, with all that have, and large tables are cut into ranges of their key of about
	// RangeRows rows, which reads them less fast. Default: nothing is saved.
	Save func(Checkpoint) error
	// Resume is the checkpoint to go on from. Parts that it does not have, or has of other tables
	// or rules, are compared. Default: none.
	Resume *Checkpoint
	// RangeRows is about how many rows a part has. Default 5,000,000.
	RangeRows int64

	// Held lets an exact comparison be paused. It is asked between queries, and returns nil, or what is
	// closed when the pause may be over. Default: it is never paused.
	Held func() <-chan struct{}
	// HoldSnapshots is how long a pause keeps the snapshots, which holds VACUUM back on both sides.
	// In a longer one they are let go: what is compared counts, and the rest is compared at another
	// instant. Default 1 minute.
	HoldSnapshots time.Duration

	// Repairs is up to how many differing rows of a table the SQL is written that mends them; see
	// Report.Repairs. More are an error. Default 0: none.
	Repairs int
	// Mark is SQL that a transaction begins with that mends rows, so that who watches for writes of
	// strangers knows it for ours. Default: none.
	Mark string

	// Progress is called after each chunk with the rows read on both sides and the estimate of all.
	// Default: nothing.
	Progress func(done, total int64)
	// Log receives what an operator may want to know. Default: nothing.
	Log *slog.Logger
}

// A Session holds open connections to both sides, ready to compare as often as wanted: for a short
// comparison at a fence, run one like it shortly before. One runs at a time.
// After an error its connections may be gone: close it and open another.
type Session struct {
	cfg     Config
	methods []Method // to try
	seed    int64
	nodes   [2]*node // by side
	tables  []*table
	hurry   bool // a delta runs: somebody may wait for it
	atRest  bool // the two sides' snapshots may show different instants

	known  Checkpoint // what an exact comparison need not read again
	before int64      // rows of that, on both sides, for Progress
}

// Run opens a session, compares the keys of Config.Keys or everything, and closes it.
// A nil error and Report.Differences == 0 is a proof.
func Run(ctx context.Context, cfg Config) (report *Report, err error) {
	s, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:contextcheck // it says goodbye although ctx is done
	if cfg.Keys != nil {
		return s.Delta(ctx, cfg.Keys)
	}
	return s.Exact(ctx)
}

// Open connects to both sides and learns the tables and types of the mappings there. A comparison
// made later, at a moment when every millisecond counts, then has only its queries to run.
func Open(ctx context.Context, cfg Config) (*Session, error) {
	return open(ctx, cfg, []Method{MethodRecord, MethodText, MethodSHA256})
}

// open is Open with a choice of the methods to try.
func open(ctx context.Context, cfg Config, methods []Method) (*Session, error) {
	if cfg.Source.IsZero() || cfg.Target.IsZero() {
		return nil, errors.New("verify: source and target are required")
	}
	cfg.Workers = cmp.Or(cfg.Workers, max(2, runtime.NumCPU()))
	cfg.ChunkRows = cmp.Or(cfg.ChunkRows, 200_000)
	cfg.WholeRows = cmp.Or(cfg.WholeRows, 200_000)
	cfg.MaxSamples = cmp.Or(cfg.MaxSamples, 10)
	cfg.RangeRows = cmp.Or(cfg.RangeRows, 5_000_000)
	cfg.HoldSnapshots = cmp.Or(cfg.HoldSnapshots, time.Minute)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))

	s := &Session{cfg: cfg, methods: methods, seed: rand.Int64()}
	if err := s.attach(ctx); err != nil {
		s.Close() //nolint:contextcheck // as in Run
		return nil, err
	}
	return s, nil
}

// attach connects to both sides and learns what is there.
func (s *Session) attach(ctx context.Context) error {
	err := both(func(sd side) (err error) {
		dsn := s.cfg.Source
		if sd == target {
			dsn = s.cfg.Target
		}
		s.nodes[sd], err = connect(ctx, sd, dsn, s.cfg.Workers)
		return err
	})
	if err != nil {
		return err
	}
	h, err := s.chooseHash(ctx, s.methods)
	if err != nil {
		return err
	}
	s.tables, err = describe(ctx, s.nodes, s.cfg.Mappings, h)
	return err
}

// Close ends the session's connections.
func (s *Session) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	for _, n := range s.nodes {
		if n != nil {
			n.close(ctx)
		}
	}
}

// limit is how many of a table's differing rows are kept.
func (s *Session) limit() int { return max(s.cfg.MaxSamples, s.cfg.Repairs) }

// newReport starts a report of the instant that was frozen.
func (s *Session) newReport(kind Kind, at instant) *Report {
	return &Report{
		Kind: kind, Following: s.cfg.Follower != nil, LSN: at.lsn, At: at.time, SameInstant: at.same, Paused: at.paused, Seed: s.seed,
		Source: s.nodes[source].describe(), Target: s.nodes[target].describe(),
		Program: s.cfg.Program, Name: s.cfg.Name, Workers: s.cfg.Workers, ChunkRows: s.cfg.ChunkRows, Masked: !s.cfg.ShowValues,
		Tables: []TableReport{}, Uncovered: []string{},
	}
}

// both runs fn for the two sides at once.
func both(fn func(side) error) error {
	var g errgroup.Group
	for _, sd := range sides() {
		g.Go(func() error { return fn(sd) })
	}
	return g.Wait()
}

// A side is one of the two databases.
type side int

const (
	source side = iota
	target
)

func sides() []side { return []side{source, target} }

// String returns the side as a word.
func (s side) String() string {
	switch s {
	case source:
		return "source"
	case target:
		return "target"
	}
	return fmt.Sprintf("side %d", int(s))
}
