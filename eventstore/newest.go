package eventstore

import (
	"encoding/binary"
	"fmt"

	"github.com/ficus-migrate/ficus/change"
)

// A Newest tells the newest transaction of a stream from whatever a source with another past may have
// at the same position.
type Newest struct {
	End    change.LSN // the stream's head
	Commit change.LSN // where its commit record begins
	Time   uint64     // of its commit, as the source writes it
	XID    uint32
	// Asked is what the source was asked for when it sent the transaction. Asked for something else, it
	// may have nothing to send of it.
	Asked string
}

// newestBytes is the size of a record without Asked.
const newestBytes = 28

func (n *Newest) encode() []byte {
	b := make([]byte, 0, newestBytes+len(n.Asked))
	b = binary.BigEndian.AppendUint64(b, uint64(n.End))
	b = binary.BigEndian.AppendUint64(b, uint64(n.Commit))
	b = binary.BigEndian.AppendUint64(b, n.Time)
	b = binary.BigEndian.AppendUint32(b, n.XID)
	return append(b, n.Asked...)
}

// Newest returns which transaction the stream's head is the end of, however much was trimmed, and
// whether that is known: of an empty stream it is not, nor when the transaction was stored without it,
// as releases did that knew no such record.
func (st *Stream) Newest() (n Newest, known bool, err error) {
	if err := st.enter(); err != nil {
		return Newest{}, false, err
	}
	defer st.store.leave()
	b, ok, err := get(st.store.db, st.keys.key(tagNewest))
	if err != nil || !ok {
		return Newest{}, false, err
	}
	if len(b) < newestBytes {
		return Newest{}, false, fmt.Errorf("stream %q: malformed record of its newest transaction: %d bytes", st.name, len(b))
	}
	n = Newest{
		End: change.LSN(binary.BigEndian.Uint64(b)), Commit: change.LSN(binary.BigEndian.Uint64(b[8:])),
		Time: binary.BigEndian.Uint64(b[16:]), XID: binary.BigEndian.Uint32(b[24:]), Asked: string(b[newestBytes:]),
	}
	return n, n.End == st.Head(), nil
}
