package eventstore

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// Stored layout. Numbers are big-endian, so that keys sort as numbers do. n is the length (one
// byte) of the name that follows it.
//
//	v                                  layout version(1)
//	b n bucket l seq(8)                a record of the bucket's log, in order of Append
//	b n bucket k key                   a record under a key (Put); all of b goes with DropBucket
//	s n stream a                       tail(8): the stream exists; everything up to tail is trimmed
//	s n stream c end(8)                'd' chunk: packed transactions, end is the last one's
//	                                   'x' spill(8) count(4): a large transaction; goes with Trim
//	s n stream e end(8)                spill(8): the same large transaction, for Trim to find
//	s n stream n                       end(8) commit(8) time(8) xid(4) asked: see Newest; what counts
//	                                   is that end is the head, and none may be there; survives Trim
//	s n stream o spill(8)              xid(4): a spill without a commit; removed by its commit
//	s n stream p k(2) key at(8)        pinned value; goes with Trim when a newer one is old enough
//	s n stream t k(2) table key        at(8): the row was last touched there; goes with Forget
//	s n stream u cursor                lsn(8)
//	s n stream x spill(8) chunk(4)     a chunk of a large transaction; spill is a number of ours,
//	                                   since xids come round again; all of s goes with DropStream
const layoutVersion = 1

// ErrInUse says that another process (or this one) has the directory open.
var ErrInUse = errors.New("directory is in use by another process")

// ErrClosed is returned by every method after Close.
var ErrClosed = errors.New("event store is closed")

// Config says where the store is.
type Config struct {
	// Dir is the data directory, made when absent. The store's files are in its folder "events".
	// Required.
	Dir string
	// Log receives what the storage engine has to say. Default: discard.
	Log *slog.Logger
	// CacheBytes bounds the block cache. Default 8 MiB: readers go forward, so a large cache would
	// only hold what nobody reads twice.
	CacheBytes int64
	// RecentBytes bounds the newest chunks of each stream that are kept for readers who keep up with
	// it: they need not ask the storage engine. Default 8 MiB: what a source sends in a few
	// tenths of a second.
	RecentBytes int

	// Fatal is called, on whatever goroutine, when the disk is full. It ends the process, after saying
	// why; the error has a hint. Nobody can say any more what of the last writes is durable, but what
	// was said to be is there when the directory is opened again. Default: the write fails, and a
	// failed write of the log panics.
	Fatal func(error)

	// FS is where Dir is; tests bring a file system that loses what was not synced. Default: the
	// machine's.
	FS vfs.FS
}

// A Store is an open data directory.
type Store struct {
	db   *pebble.DB
	lock *pebble.Lock

	recentBytes int // see Config

	mu struct {
		sync.Mutex
		closed  bool
		streams map[string]*Stream
		buckets map[string]*Bucket
	}
	opening sync.Mutex     // one stream is opened or dropped at a time; taken before mu
	users   sync.WaitGroup // calls that use db; Close waits for them
}

// Open locks the directory and opens the store in it. The error is ErrInUse, with a hint, when
// somebody else has it open.
func Open(cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("open event store: no directory given")
	}
	log := cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.FS == nil {
		dir, err := filepath.Abs(cfg.Dir)
		if err != nil {
			return nil, fmt.Errorf("open event store: %w", err)
		}
		cfg.Dir, cfg.FS = dir, vfs.Default
	}
	if fatal := cfg.Fatal; fatal != nil {
		// Before Pebble sees the error, which panics in the middle of what it locks.
		cfg.FS = vfs.OnDiskFull(cfg.FS, func() { fatal(diskFull(syscall.ENOSPC)) })
	}
	dir := cfg.FS.PathJoin(cfg.Dir, "events")

	lock, err := lockDir(cfg.FS, dir)
	if err != nil {
		return nil, fmt.Errorf("open event store in %s: %w", cfg.Dir, err)
	}
	db, err := pebble.Open(dir, options(cfg, lock, log))
	if err != nil {
		return nil, fmt.Errorf("open event store in %s: %w", cfg.Dir, errors.Join(err, lock.Close()))
	}
	s := &Store{db: db, lock: lock, recentBytes: cmp.Or(cfg.RecentBytes, 8<<20)}
	s.mu.streams = map[string]*Stream{}
	s.mu.buckets = map[string]*Bucket{}
	if err := s.checkLayout(); err != nil {
		return nil, fmt.Errorf("open event store in %s: %w", cfg.Dir, errors.Join(err, s.Close()))
	}
	return s, nil
}

// lockDir makes the directory and takes its lock before Pebble does, to tell "in use" from other
// errors. Row values are in there, so it is the owner's alone.
func lockDir(files vfs.FS, dir string) (*pebble.Lock, error) {
	err := files.MkdirAll(dir, 0o700)
	// A directory survives power loss when the one that lists it was synced.
	for parent, n := files.PathDir(dir), 0; err == nil && n < 2; parent, n = files.PathDir(parent), n+1 {
		err = syncDir(files, parent)
	}
	if err != nil {
		return nil, hint.Wrap(err, "choose a directory that can be written with --data-dir")
	}
	lock, err := pebble.LockDirectory(dir, files)
	if _, ok := errors.AsType[*fs.PathError](err); ok { // the lock file could not be made
		return nil, hint.Wrap(err, "choose a directory that can be written with --data-dir")
	} else if err != nil {
		return nil, hint.Wrap(fmt.Errorf("%w (%w)", ErrInUse, err),
			"stop the other ficus process, talk to it with --api, or choose another directory with --data-dir")
	}
	return lock, nil
}

func syncDir(files vfs.FS, dir string) error {
	d, err := files.OpenDir(dir)
	if errors.Is(err, fs.ErrPermission) { // nothing of ours to sync: we could not have written there
		return nil
	} else if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// options are Pebble's, for a log that is written once, read forward soon after, and cut from its
// beginning.
func options(cfg Config, lock *pebble.Lock, log *slog.Logger) *pebble.Options {
	o := &pebble.Options{
		FS:   cfg.FS,
		Lock: lock,
		// Named, so that upgrading the library does not silently make the directory unreadable to
		// the release before.
		FormatMajorVersion: pebble.FormatTableFormatV6,
		CacheSize:          cmp.Or(cfg.CacheBytes, 8<<20),
		// Two of them bound what is held, because writers wait for the third; a reader that keeps up
		// needs none of them (see recent). 64 MB were no faster, with 230 MB of one transaction.
		MemTableSize:                16 << 20,
		MemTableStopWritesThreshold: 2,
		// Written in key order and mostly deleted soon, L0 files overlap little: compacting them
		// late saves rewriting what Trim is about to remove.
		L0CompactionThreshold: 16,
		L0StopWritesThreshold: 64,
		LBaseMaxBytes:         1 << 30, // one level is enough for the usual backlog
		// Values are chunks of a quarter of a megabyte: small files would hold a handful each.
		// The levels below double it.
		TargetFileSizes: [7]int64{16 << 20},
		// Callers that sync at the same time share one fsync, and half a millisecond gathers them:
		// less than a disk needs.
		WALMinSyncInterval: func() time.Duration { return 500 * time.Microsecond },
		// Bytes are handed to the disk as they come, so that a sync finds little left to do.
		WALBytesPerSync: 1 << 20,
		BytesPerSync:    1 << 20,
		Logger:          logger{log},
		EventListener:   listener(log),
	}
	// Fresh files are cheap to write and soon gone; only a backlog that sinks below them is worth
	// the processor time of (fast) compression.
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings {
		c := pebble.DBCompressionFastest
		c.Levels[0] = pebble.DBCompressionNone.Levels[0]
		return c
	})
	return o
}

// checkLayout refuses a directory that another release wrote in another way.
func (s *Store) checkLayout() error {
	v, ok, err := get(s.db, []byte{'v'})
	switch {
	case err != nil:
		return err
	case !ok:
		return s.db.Set([]byte{'v'}, []byte{layoutVersion}, pebble.Sync)
	case len(v) != 1 || v[0] != layoutVersion:
		return hint.Wrap(fmt.Errorf("layout version %d, this release reads %d", v, layoutVersion),
			"the directory was written by another release of ficus: use that release, or another --data-dir")
	}
	return nil
}

// Close waits for calls in progress, wakes blocked readers with ErrClosed, and releases the
// directory. What was committed is durable afterwards.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return nil
	}
	s.mu.closed = true
	streams := s.mu.streams
	s.mu.Unlock()

	for _, st := range streams {
		st.stop(ErrClosed)
	}
	s.users.Wait()
	if err := errors.Join(s.db.Close(), s.lock.Close()); err != nil {
		return fmt.Errorf("close event store: %w", err)
	}
	return nil
}

// enter begins a call that uses db, and leave ends it: Pebble panics when used after Close.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return ErrClosed
	}
	s.users.Add(1)
	return nil
}

func (s *Store) leave() { s.users.Done() }
