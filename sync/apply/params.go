package apply

import (
	"encoding/binary"

	"github.com/ficus-migrate/ficus/change"
)

const textOID = 25

// arrayHeader is the size of a one-dimensional array's header in binary form.
const arrayHeader = 20

// textArrays encodes the parameters of a statement, in one piece of memory. Each is a text[] in
// binary form, of one element per row:
//
//	| dimensions int32 = 1 | has nulls int32 | element type int32 | length int32 | lower bound int32 = 1 |
//	then per element | length int32, -1 for NULL | bytes |
//
// Text needs no quoting in it, and what the stream sent goes out unread.
// Source: PostgreSQL source, array_recv in src/backend/utils/adt/arrayfuncs.c.
func textArrays(args []arg, rows []imagePair) [][]byte {
	size := 0
	for _, a := range args {
		size += arrayHeader + 4*len(rows)
		for i := range rows {
			size += len(a.value(&rows[i]).Data)
		}
	}
	buf := make([]byte, 0, size)
	params := make([][]byte, len(args))
	for n, a := range args {
		start := len(buf)
		buf = binary.BigEndian.AppendUint32(buf, 1)
		buf = binary.BigEndian.AppendUint32(buf, 1)
		buf = binary.BigEndian.AppendUint32(buf, textOID)
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(rows)))
		buf = binary.BigEndian.AppendUint32(buf, 1)
		for i := range rows {
			v := a.value(&rows[i])
			if v.Kind != change.Text {
				buf = binary.BigEndian.AppendUint32(buf, ^uint32(0))
				continue
			}
			buf = binary.BigEndian.AppendUint32(buf, uint32(len(v.Data)))
			buf = append(buf, v.Data...)
		}
		params[n] = buf[start:len(buf):len(buf)]
	}
	return params
}
