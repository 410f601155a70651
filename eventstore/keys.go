package eventstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/ficus-migrate/ficus/change"
)

// The families of keys below a stream and a bucket; see the layout.
const (
	famStream = 's'
	famBucket = 'b'

	tagTail      = 'a'
	tagCommitted = 'c'
	tagLarge     = 'e'
	tagNewest    = 'n'
	tagOpen      = 'o'
	tagPin       = 'p'
	tagTouch     = 't'
	tagCursor    = 'u'
	tagSpill     = 'x'

	tagLog    = 'l'
	tagRecord = 'k'

	valueChunk = 'd' // of tagCommitted: the chunk follows
	valueSpill = 'x' // of tagCommitted: spill(8) count(4) follow
)

// A prefix begins every key of one stream or bucket.
type prefix []byte

func newPrefix(family byte, name string) (prefix, error) {
	if name == "" || len(name) > 255 {
		return nil, fmt.Errorf("name %q: want 1 to 255 bytes", name)
	}
	return append(prefix{family, byte(len(name))}, name...), nil
}

// key returns a fresh key: the prefix, a tag and the parts.
func (p prefix) key(tag byte, parts ...[]byte) []byte {
	k := make([]byte, 0, len(p)+32)
	k = append(append(k, p...), tag)
	for _, part := range parts {
		k = append(k, part...)
	}
	return k
}

func (p prefix) at(tag byte, lsn change.LSN) []byte { return p.key(tag, u64(uint64(lsn))) }

func (p prefix) spill(id uint64, chunk uint32) []byte { return p.key(tagSpill, u64(id), u32(chunk)) }

// span returns the half-open range of all keys that begin with k.
func span(k []byte) (lower, upper []byte) {
	upper = bytes.Clone(k)
	for i := len(upper) - 1; i >= 0; i-- {
		if upper[i]++; upper[i] != 0 {
			return k, upper[:i+1]
		}
	}
	return k, nil // every byte is 0xff: to the end
}

func within(k []byte) *pebble.IterOptions {
	lower, upper := span(k)
	return &pebble.IterOptions{LowerBound: lower, UpperBound: upper}
}

func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// sized puts the length of s (two bytes) before it.
func sized(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

// tailLSN reads the eight bytes at the end of a key or value; 0 when there are fewer.
func tailLSN(b []byte) change.LSN {
	if len(b) < 8 {
		return 0
	}
	return change.LSN(binary.BigEndian.Uint64(b[len(b)-8:]))
}

// get returns a copy of a value, and whether there is one.
func get(db pebble.Reader, key []byte) ([]byte, bool, error) {
	v, closer, err := db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	} else if err != nil {
		return nil, false, fmt.Errorf("read: %w", err)
	}
	v = bytes.Clone(v)
	return v, true, closer.Close()
}

// scan calls fn with each key and value in the range, which live until fn returns. fn may stop it
// with errStop.
func scan(db pebble.Reader, o *pebble.IterOptions, fn func(key, value []byte) error) (err error) {
	it, err := db.NewIter(o)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if err := fn(it.Key(), v); errors.Is(err, errStop) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return it.Error()
}

var errStop = errors.New("stop the scan")

// last returns a copy of the last key in the range, or nil.
func last(db pebble.Reader, o *pebble.IterOptions) (key []byte, err error) {
	it, err := db.NewIter(o)
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.Last() {
		return bytes.Clone(it.Key()), nil
	}
	return nil, it.Error()
}

// names lists the streams or buckets there are, jumping from one to the next.
func names(db pebble.Reader, family byte) (list []string, err error) {
	it, err := db.NewIter(within([]byte{family}))
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; {
		k := it.Key()
		if len(k) < 2 || len(k) < 2+int(k[1]) {
			return nil, fmt.Errorf("read: malformed key %x", k)
		}
		own := bytes.Clone(k[:2+int(k[1])])
		list = append(list, string(own[2:]))
		_, next := span(own)
		ok = it.SeekGE(next)
	}
	return list, it.Error()
}
