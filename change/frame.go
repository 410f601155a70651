package change

import (
	"encoding/binary"
	"errors"
)

// ErrFrame says that a chunk is cut short or its lengths do not add up.
var ErrFrame = errors.New("malformed chunk")

// AppendFrame appends one raw message to a chunk and returns the longer chunk:
//
//	| length uint32 big-endian | message, length bytes |
func AppendFrame(chunk, msg []byte) []byte {
	chunk = binary.BigEndian.AppendUint32(chunk, uint32(len(msg)))
	return append(chunk, msg...)
}

// NextFrame cuts the first message off a chunk. It returns io-free views of chunk, and ErrFrame
// when the chunk is malformed. An empty chunk has no next frame: test for it before the call.
func NextFrame(chunk []byte) (msg, rest []byte, err error) {
	if len(chunk) < 4 {
		return nil, nil, ErrFrame
	}
	n := binary.BigEndian.Uint32(chunk)
	chunk = chunk[4:]
	if uint64(n) > uint64(len(chunk)) {
		return nil, nil, ErrFrame
	}
	return chunk[:n:n], chunk[n:], nil
}
