package soaktest

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// fault lets something go wrong, for a while.
func (s *soak) fault(t *testing.T) {
	t.Helper()
	s.observe()
	proxy, cluster, side := s.source, s.from, "source"
	if s.r.IntN(2) == 0 {
		proxy, cluster, side = s.target, s.to, "target"
	}
	away := between(s.r, 0, 8*time.Second)
	switch s.r.IntN(14) {
	case 0, 1, 2:
		s.count("kill -9")
		s.ficus.kill()
		s.start(t)
	case 3:
		s.count("held")
		s.signal(t, syscall.SIGSTOP)
		s.pause(t, away)
		s.signal(t, syscall.SIGCONT)
	case 4:
		s.count("ended in order")
		s.ficus.interrupt()
		s.start(t)
	case 5:
		s.count(side + " crashed")
		s.crash(t, cluster, away/4)
	case 6:
		s.count(side + " cut")
		proxy.Cut()
	case 7:
		s.count(side + " reset")
		proxy.ResetAfter(faultpg.Direction(s.r.IntN(2)), s.r.Int64N(100_000))
	case 8:
		s.count(side + " stalled")
		proxy.Stall(faultpg.Direction(s.r.IntN(2)))
		s.wait(t, away)
		proxy.Flow()
	case 9:
		s.count(side + " slow")
		proxy.Slow(faultpg.Direction(s.r.IntN(2)), 20_000+s.r.IntN(1_000_000))
		s.wait(t, away)
		proxy.Flow()
	case 10:
		s.count(side + " refused")
		proxy.Refuse(true)
		proxy.Reset()
		s.wait(t, away)
		proxy.Refuse(false)
	case 11:
		s.count("target read-only")
		s.readOnly(t, true)
		s.wait(t, away)
		s.readOnly(t, false)
	case 12:
		s.count("sessions ended by an administrator")
		for _, db := range []*pgtest.Database{s.db, s.copyOf} {
			db.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'ficus%'`)
		}
	case 13:
		s.count("checkpoint")
		s.db.Exec(t, `SELECT pg_switch_wal(); CHECKPOINT`)
	}
}

// crash stops a server as a crash would and brings it back.
func (s *soak) crash(t *testing.T, c *pgtest.Cluster, down time.Duration) {
	t.Helper()
	c.Kill(t)
	s.wait(t, down)
	c.Start(t)
}

func (s *soak) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := s.ficus.cmd.Process.Signal(sig); err != nil {
		t.Errorf("%s: %v", sig, err)
	}
}

// pause lets time pass while ficus cannot end.
func (s *soak) pause(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-t.Context().Done():
	case <-timer.C:
	}
}

// readOnly lets the target refuse writes, or take them again.
func (s *soak) readOnly(t *testing.T, on bool) {
	t.Helper()
	conn, err := s.copyOf.DSN.Connect(t.Context(), "soak", pg.Setting("default_transaction_read_only", "off"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	set := "RESET default_transaction_read_only"
	if on {
		set = "SET default_transaction_read_only = on"
	}
	if _, err := conn.Exec(t.Context(), fmt.Sprintf("ALTER DATABASE %s %s", s.copyOf.Name, set)); err != nil {
		t.Fatal(err)
	}
	s.target.Cut() // sessions keep what they began with
}
