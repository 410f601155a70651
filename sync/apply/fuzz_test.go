package apply

import (
	"bytes"
	"testing"

	"github.com/ficus-migrate/ficus/change"
)

// FuzzTouchedKey takes recorded keys apart, which put together again are the same.
//
// It fails when TouchedKey cuts a key at lengths that it has not checked.
func FuzzTouchedKey(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(change.AppendFrame(nil, []byte("3")))
	f.Add(change.AppendFrame(change.AppendFrame(nil, []byte("a")), nil))
	f.Add([]byte{0, 0, 0, 9, '1'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, key []byte) {
		columns, err := TouchedKey(key)
		if err != nil {
			return
		}
		var again []byte
		for _, c := range columns {
			again = change.AppendFrame(again, []byte(c))
		}
		if !bytes.Equal(again, key) {
			t.Fatalf("%x came back as %x", key, again)
		}
	})
}
