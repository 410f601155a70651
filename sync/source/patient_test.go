package source

import (
	"bytes"
	"net"
	"testing"
	"time"
)

// loopback returns the two ends of a TCP connection.
func loopback(t *testing.T) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it answers at once
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			close(accepted)
			return
		}
		accepted <- conn
	}()
	if here, err = net.Dial("tcp", l.Addr().String()); err != nil { //nolint:noctx // likewise
		t.Fatal(err)
	}
	there, ok := <-accepted
	if !ok {
		t.Fatal("nobody accepted")
	}
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	return here, there
}

// TestPatient: of a flood of small messages many are read at a time, all of them, and the last ones as soon
// as the ones of a trickle, however few bytes they are.
//
// It fails when the kernel is left to wait for much where little comes, and when the connection never naps.
func TestPatient(t *testing.T) {
	t.Parallel()
	here, there := loopback(t)
	p := newPatient(here)
	flood := bytes.Repeat([]byte("a change of a hundred bytes, more or less, as a walsender sends one after another, for ever and a day"), 400_000)
	go func() {
		for b := flood; len(b) > 0; {
			n, err := there.Write(b[:min(100, len(b))])
			if err != nil {
				return
			}
			b = b[n:]
		}
	}()
	got, reads, naps := 0, 0, 0
	buf := make([]byte, readBuffer)
	if err := here.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for got < len(flood) {
		if p.naps {
			naps++
		}
		n, err := p.Read(buf)
		if err != nil {
			t.Fatalf("after %d of %d bytes: %v", got, len(flood), err)
		}
		if !bytes.Equal(buf[:n], flood[got:got+n]) {
			t.Fatalf("other bytes after %d", got)
		}
		got += n
		reads++
	}
	if naps == 0 || len(flood)/reads < napBytes/2 {
		t.Errorf("%d reads, %d of them after a nap: %d bytes at a time", reads, naps, len(flood)/reads)
	}
	for range 20 {
		if _, err := there.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := p.Read(buf); err != nil || n != 1 {
			t.Fatalf("after the flood: %d bytes, %v", n, err)
		}
	}
	if p.naps {
		t.Error("it naps when little comes")
	}
}
