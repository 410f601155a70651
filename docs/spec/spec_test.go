package spec

import (
	"flag"
	"fmt"
	"testing"
)

var (
	startsFlag = flag.Uint("starts", 2, "how many processes may be started, restarts included")
	faultsFlag = flag.Uint("faults", 2, "how many faults may happen")
)

// TestPromotion goes through every state that the machine can reach, in every order in which its parts can act,
// and asserts of each: never both gates open, never an open gate on the side that does not own, never a write
// committed where it would be lost, never a point of no return before the target has everything. From every
// state, whatever processes died there, one that starts anew and knows nothing but the databases brings the
// owner's gate to be open.
func TestPromotion(t *testing.T) {
	t.Parallel()
	starts, faults := uint8(min(*startsFlag, 9)), uint8(min(*faultsFlag, 9))
	seen, broken := explore(initial(starts, faults), sound, true)
	if broken != "" {
		t.Fatal(broken)
	}
	t.Logf("%d processes, %d faults: %d states", starts, faults, seen)
}

// TestFlaws makes each mistake and wants it found: what the machine does not notice it does not prove.
func TestFlaws(t *testing.T) {
	t.Parallel()
	for f, name := range map[flaw]string{
		noToken:           "a replaced process is not refused",
		noBurn:            "the epoch is not burnt when a commit's reply is lost",
		noWait:            "writers are not waited for",
		waitFirst:         "writers are waited for before the gate closes",
		nonceFirst:        "the nonce is written before the gate closes",
		openBlindly:       "a late request to open the gate opens it",
		gateBeforeLock:    "a statement reads the gate before it takes its lock",
		epochsOverwritten: "a row takes an epoch again",
		openFirst:         "the new gate opens before the epoch",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seen, broken := explore(initial(2, 2), f, true)
			if broken == "" {
				t.Fatalf("not noticed in %d states", seen)
			}
			t.Logf("after %d states: %s", seen, broken)
		})
	}
}

// explore visits every state, breadth first, and returns how many there are and what is broken in the
// first bad one.
func explore(from machine, f flaw, recovers bool) (visited int, broken string) {
	seen := map[machine]struct{}{from: {}}
	for queue := []machine{from}; len(queue) > 0; queue = queue[1:] {
		m := queue[0]
		if recovers {
			if broken := recovered(m, f); broken != "" {
				return len(seen), fmt.Sprintf("%s, from %+v", broken, m)
			}
		}
		for _, s := range next(m, f) {
			if s.broken != "" {
				return len(seen), fmt.Sprintf("%s, from %+v", s.broken, m)
			}
			if _, ok := seen[s.to]; !ok {
				seen[s.to] = struct{}{}
				queue = append(queue, s.to)
			}
		}
	}
	return len(seen), ""
}

// recovered kills every process, lets what is on its way arrive and writers end, starts one process anew and
// says what it does not put right.
func recovered(m machine, f flaw) (broken string) {
	m.procs, m.lock, m.starts, m.faults = [2]proc{}, [2]uint8{}, 1, 0
	m.writers[2] = writerOver
	for range 200 {
		steps := next(m, f)
		if len(steps) == 0 {
			break
		}
		if steps[0].broken != "" {
			return "while it is put right: " + steps[0].broken
		}
		m = steps[0].to
	}
	o := m.newest().owner
	if m.procs[0].at != over || !open(m.gate[o]) {
		return fmt.Sprintf("stuck: owner %d, gates %v, process at %d", o, m.gate, m.procs[0].at)
	}
	if open(m.gate[1-o]) {
		return "both gates are open in the end"
	}
	return ""
}
