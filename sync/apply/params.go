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
		size += arraySize(a, rows)
	}
	buf := make([]byte, 0, size)
	params := make([][]byte, len(args))
	for n, a := range args {
		start := len(buf)
		buf = appendArrayHeader(buf, len(rows))
		for i := range rows {
			buf = appendElement(buf, a.value(&rows[i]))
		}
		params[n] = buf[start:len(buf):len(buf)]
	}
	return params
}

func arraySize(a arg, rows []imagePair) int {
	size := arrayHeader + 4*len(rows)
	for i := range rows {
		if v := a.value(&rows[i]); v.Kind == change.Text {
			size += len(v.Data)
		}
	}
	return size
}

func appendArrayHeader(b []byte, elements int) []byte {
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, textOID)
	b = binary.BigEndian.AppendUint32(b, uint32(elements))
	return binary.BigEndian.AppendUint32(b, 1)
}

func appendElement(b []byte, v change.Value) []byte {
	if v.Kind != change.Text {
		return binary.BigEndian.AppendUint32(b, ^uint32(0))
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(v.Data)))
	return append(b, v.Data...)
}
