package eventstore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// A Bucket holds small records: an ordered log (Append, Scan) and values under keys (Put, Get).
// A write is durable when its call returns.
type Bucket struct {
	store *Store
	name  string
	mu    struct {
		sync.Mutex // also held while a record is written, so that the log's order is the calls'
		next       uint64
		loaded     bool
	}
}

// Bucket returns the bucket of that name (1 to 255 bytes), which exists once something is written
// to it.
func (s *Store) Bucket(name string) *Bucket {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.mu.buckets[name]
	if b == nil {
		b = &Bucket{store: s, name: name}
		s.mu.buckets[name] = b
	}
	return b
}

// Buckets returns the names of the buckets that hold something, sorted.
func (s *Store) Buckets() ([]string, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	list, err := names(s.db, famBucket)
	slices.Sort(list)
	return list, err
}

// DropBucket removes a bucket with everything in it; no error when there is none.
func (s *Store) DropBucket(name string) error {
	b := s.Bucket(name)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.use("drop", func(p prefix) error {
		b.mu.next, b.mu.loaded = 0, true
		lower, upper := span(p)
		return s.db.DeleteRange(lower, upper, pebble.Sync)
	})
}

// Append adds a record to the end of the bucket's log.
func (b *Bucket) Append(value []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.use("append", func(p prefix) error {
		if !b.mu.loaded {
			k, err := last(b.store.db, within(p.key(tagLog)))
			if err != nil {
				return err
			}
			if k != nil {
				b.mu.next = uint64(tailLSN(k)) + 1
			}
			b.mu.loaded = true
		}
		if err := b.store.db.Set(p.key(tagLog, u64(b.mu.next)), value, pebble.Sync); err != nil {
			return err
		}
		b.mu.next++
		return nil
	})
}

// Scan calls fn with each record of the log in order, until fn returns an error, which Scan
// returns. The record lives until fn returns.
func (b *Bucket) Scan(fn func(value []byte) error) error {
	return b.use("scan", func(p prefix) error {
		return scan(b.store.db, within(p.key(tagLog)), func(_, v []byte) error { return fn(v) })
	})
}

// Put stores value under key, in place of what was there.
func (b *Bucket) Put(key string, value []byte) error {
	return b.use("put", func(p prefix) error {
		return b.store.db.Set(p.key(tagRecord, []byte(key)), value, pebble.Sync)
	})
}

// Get returns the value under key, and whether there is one.
func (b *Bucket) Get(key string) (value []byte, ok bool, err error) {
	err = b.use("get", func(p prefix) error {
		value, ok, err = get(b.store.db, p.key(tagRecord, []byte(key)))
		return err
	})
	return value, ok, err
}

// Delete removes the value under key; no error when there is none.
func (b *Bucket) Delete(key string) error {
	return b.use("delete", func(p prefix) error {
		return b.store.db.Delete(p.key(tagRecord, []byte(key)), pebble.Sync)
	})
}

// Keys returns the keys that begin with keyPrefix, sorted.
func (b *Bucket) Keys(keyPrefix string) (keys []string, err error) {
	err = b.use("list", func(p prefix) error {
		own := p.key(tagRecord)
		return scan(b.store.db, within(append(bytes.Clone(own), keyPrefix...)), func(k, _ []byte) error {
			keys = append(keys, string(k[len(own):]))
			return nil
		})
	})
	return keys, err
}

func (b *Bucket) use(doing string, fn func(prefix) error) error {
	p, err := newPrefix(famBucket, b.name)
	if err == nil {
		err = b.store.enter()
	}
	if err != nil {
		return fmt.Errorf("bucket %q: %w", b.name, err)
	}
	defer b.store.leave()
	if err := fn(p); err != nil {
		return fmt.Errorf("bucket %q: %s: %w", b.name, doing, err)
	}
	return nil
}

// A Record is a value and its key.
type Record struct {
	Key   string
	Value []byte
}

// Update stores and removes records in one step: after a crash all of it is there or nothing.
// Concurrent calls share one fsync.
func (b *Bucket) Update(put []Record, remove []string) error {
	return b.use("update", func(p prefix) error {
		batch := b.store.db.NewBatch()
		var failed error
		for _, key := range remove {
			failed = errors.Join(failed, batch.Delete(p.key(tagRecord, []byte(key)), nil))
		}
		for _, r := range put {
			failed = errors.Join(failed, batch.Set(p.key(tagRecord, []byte(r.Key)), r.Value, nil))
		}
		if failed == nil {
			failed = batch.Commit(pebble.Sync)
		}
		return errors.Join(failed, batch.Close())
	})
}

// Each calls fn with the records whose keys begin with keyPrefix, in their order, until it returns
// false or an error, which Each returns. The record's value lives until fn returns.
func (b *Bucket) Each(keyPrefix string, fn func(Record) (more bool, err error)) error {
	return b.walk(keyPrefix, (*pebble.Iterator).First, (*pebble.Iterator).Next, fn)
}

// EachBack is Each from the last record to the first.
func (b *Bucket) EachBack(keyPrefix string, fn func(Record) (more bool, err error)) error {
	return b.walk(keyPrefix, (*pebble.Iterator).Last, (*pebble.Iterator).Prev, fn)
}

func (b *Bucket) walk(keyPrefix string, first, next func(*pebble.Iterator) bool, fn func(Record) (bool, error)) error {
	return b.use("read", func(p prefix) (err error) {
		own := p.key(tagRecord)
		it, err := b.store.db.NewIter(within(append(bytes.Clone(own), keyPrefix...)))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, it.Close()) }()
		for ok := first(it); ok; ok = next(it) {
			v, err := it.ValueAndErr()
			if err != nil {
				return err
			}
			if more, err := fn(Record{string(it.Key()[len(own):]), v}); err != nil || !more {
				return err
			}
		}
		return it.Error()
	})
}
