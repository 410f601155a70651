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
		buf = appendArrayHeader(buf, asText, len(rows))
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

// appendTyped appends the array of an arg; ok is false where a value does not have the arg's form.
func appendTyped(b []byte, a arg, rows []imagePair) (_ []byte, ok bool) {
	b = appendArrayHeader(b, a.form, len(rows))
	for i := range rows {
		v := a.value(&rows[i])
		if v.Kind != change.Text {
			b = binary.BigEndian.AppendUint32(b, ^uint32(0))
		} else if b, ok = a.form.append(b, v.Data); !ok {
			return b, false
		}
	}
	return b, true
}

func appendArrayHeader(b []byte, f form, elements int) []byte {
	_, oid := f.typ()
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, uint32(oid))
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

// appendField appends a value as COPY reads it.
func appendField(b []byte, v change.Value) []byte {
	if v.Kind != change.Text {
		return append(b, `\N`...)
	}
	plain := 0
	for i, c := range v.Data {
		if c > '\\' {
			continue
		}
		switch c {
		case '\\':
		case '\n':
			c = 'n'
		case '\r':
			c = 'r'
		case '\t':
			c = 't'
		default:
			continue
		}
		b = append(append(b, v.Data[plain:i]...), '\\', c)
		plain = i + 1
	}
	return append(b, v.Data[plain:]...)
}
