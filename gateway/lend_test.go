package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// A sink is a server that only listens.
type sink struct {
	net.Conn
	bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) { return s.Buffer.Write(p) }
func (s *sink) Read(p []byte) (int, error)  { return s.Buffer.Read(p) }

// FuzzLend checks that whatever a client says and however it is cut, the server is sent whole messages:
// one for each of the client's, and those that make a statement or close one.
func FuzzLend(f *testing.F) {
	for _, msgs := range [][]pgproto3.Message{
		{&pgproto3.Query{String: "SELECT 1"}, &pgproto3.Sync{}},
		{&pgproto3.Parse{Name: "s", Query: "SELECT $1"}, &pgproto3.Bind{PreparedStatement: "s", Parameters: [][]byte{[]byte("x")}}, &pgproto3.Execute{}, &pgproto3.Sync{}},
		{&pgproto3.Parse{Name: "s", Query: "SELECT 1"}, &pgproto3.Parse{Name: "s", Query: "SELECT 1"}, &pgproto3.Close{ObjectType: 'S', Name: "s"}, &pgproto3.Describe{ObjectType: 'S', Name: "s"}},
		{&pgproto3.Parse{Query: "COPY t FROM STDIN"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{}, &pgproto3.CopyData{Data: []byte("x")}, &pgproto3.CopyDone{}, &pgproto3.Sync{}},
	} {
		var b []byte
		for _, m := range msgs {
			b = appendMessage(b, m)
		}
		f.Add(b, uint64(1))
	}
	f.Add([]byte("B\x00\x00\x00\x04"), uint64(2))
	f.Add([]byte("D\x00\x00\x00\x05S"), uint64(3))
	f.Fuzz(func(t *testing.T, input []byte, seed uint64) {
		out := &sink{}
		s := &borrower{g: &Gateway{cfg: Config{}.withDefaults()}, in: newWindow(16)}
		s.mu.known = map[string]known{}
		s.mu.track.status = statusIdle
		s.mu.srv = &shared{server: &server{conn: out}, made: map[string]int{}}
		rnd := rand.New(rand.NewPCG(seed, 0))
		for rest := input; len(rest) > 0; {
			room := s.in.room()
			n := copy(room[:min(len(room), 1+rnd.IntN(40))], rest)
			rest = rest[n:]
			s.in.filled(n)
			if err := s.forward(context.Background()); err != nil {
				return // the session ends
			}
		}
		said := whole(input)
		sent := whole(out.Bytes())
		ours := 0
		for _, e := range s.mu.expect {
			if e.what == swallow {
				ours++
			}
		}
		// A message of which only the beginning came may have begun to go out.
		if extra := len(sent) - ours - len(said); extra < -1 || extra > 0 {
			t.Errorf("the client said %q, the server was sent %q, %d of them ours", said, sent, ours)
		}
	})
}

// whole returns the types of the messages that are all there.
func whole(b []byte) (types []byte) {
	for len(b) >= headerLen {
		n := int(binary.BigEndian.Uint32(b[1:])) + 1
		if n < headerLen || n > len(b) {
			return types
		}
		types = append(types, b[0])
		b = b[n:]
	}
	return types
}

// Malformed messages end the session with a word about it, and nobody else notices.
// Break that it catches: the end of the server session told to the client before the reason for it.
func TestHostilePooledClients(t *testing.T) {
	t.Parallel()
	b := start(t, pooled(1))
	database := b.dbs[source].DSN.Database()
	other := b.client(t, b.Addr(), "")
	for what, tc := range map[string]struct{ say, want string }{
		"parse without an end":   {"P\x00\x00\x00\x07abc", "invalid message format"},
		"bind without an end":    {"B\x00\x00\x00\x07a\x00b", "invalid message format"},
		"empty describe":         {"D\x00\x00\x00\x04", "invalid message format"},
		"close of nothing":       {"C\x00\x00\x00\x05S", "invalid message format"},
		"parse of 5 MB":          {"P\x00\x4c\x4b\x40", "too long"},
		"unknown message":        {"\x01\x00\x00\x00\x04", "invalid frontend message type 1"},
		"negative length":        {"Q\xff\xff\xff\xff", "invalid length"},
		"copy data from nowhere": {"d\x00\x00\x00\x05x" + "X\x00\x00\x00\x04", ""},
		"half a message":         {"Q\x00\x00\x00\xffSELECT", ""},
	} {
		conn := login(t, b.Addr(), database)
		if _, err := io.WriteString(conn, tc.say); err != nil {
			t.Fatal(err)
		}
		if tc.want == "" {
			_ = conn.Close()
		} else {
			got := make([]byte, 4096)
			n, err := conn.Read(got)
			if !strings.Contains(string(got[:n]), tc.want) {
				t.Errorf("%s: got %q, %v; want %q in it", what, got[:n], err, tc.want)
			}
			_ = conn.Close()
		}
		if got := one[string](t, other, "SELECT name FROM here"); got != "source" {
			t.Errorf("after %s: %q", what, got)
		}
	}
}
