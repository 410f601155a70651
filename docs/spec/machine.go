package spec

// The two databases.
const (
	source = 0
	target = 1
)

// A row is the ownership row of one database.
type row struct{ epoch, owner uint8 }

// A machine is one state of everything. It is comparable, so that visited states can be kept in a map.
type machine struct {
	gate  [2]uint8 // even: open
	row   [2]row
	token [2]uint8 // of the process that claimed last
	lock  [2]uint8 // process that holds the session lock, counted from 1; 0: nobody

	writers   [3]writer // the last one writes to the target
	committed uint8     // by writers of the source
	applied   uint8     // of these, on the target

	procs  [2]proc
	late   [2]message // requests that are still on their way
	claims uint8      // tokens given out
	starts uint8      // processes that may still be started
	faults uint8      // that may still happen
}

// A writer is one transaction: it takes its table lock, its trigger reads the gate, it commits.
type writer uint8

const (
	writerIdle writer = iota
	writerLocked
	writerPassed
	writerOver
)

// A proc is one process that drives.
type proc struct {
	at    place
	epoch uint8
	token [2]uint8
	nonce uint8 // how many writes were committed before it
	seen  uint8 // value of the gate that is to be opened
	waits uint8 // set of writers
	again bool  // it has undone one attempt and may try another
}

// A place is the step that a process is about to take.
type place uint8

const (
	atStart place = iota
	claimSource
	claimTarget
	look
	closeGate
	findWriters
	waitWriters
	signal
	drain
	own
	seeTarget
	openTarget
	record
	burn
	seeSource
	openSource
	over
	gone // crashed, or replaced
)

// A message is a request to a database.
type message struct {
	kind  request
	to    uint8
	token uint8
	epoch uint8 // setOwner
	owner uint8 // setOwner
	seen  uint8 // setOpen
}

type request uint8

const (
	noRequest request = iota
	setClosed
	setOpen
	setOwner
)

// A flaw is a mistake in the algorithm, made on purpose.
type flaw uint8

const (
	sound flaw = iota
	noToken
	noBurn
	noWait
	nonceFirst
	openBlindly
	gateBeforeLock
	epochsOverwritten
	openFirst
	waitFirst
)

// initial is a migration that is ready to promote.
func initial(starts, faults uint8) machine {
	m := machine{gate: [2]uint8{0, 1}, starts: starts, faults: faults}
	m.row = [2]row{{1, source}, {1, source}}
	return m
}

func open(gate uint8) bool { return gate%2 == 0 }

// newest is the ownership row that counts.
func (m *machine) newest() row {
	if m.row[target].epoch > m.row[source].epoch {
		return m.row[target]
	}
	return m.row[source]
}

// take lets a request take effect. refused says that the database did not want it.
func (m *machine) take(r message, f flaw) (refused bool, broken string) {
	if r.token != m.token[r.to] && f != noToken {
		return true, ""
	}
	g := &m.gate[r.to]
	switch r.kind {
	case noRequest:
	case setClosed:
		*g += 1 + *g%2
	case setOpen:
		if m.row[r.to].owner != r.to && f != openFirst || *g != r.seen && f != openBlindly {
			return true, ""
		}
		*g += *g % 2
		if m.newest().owner != r.to {
			return false, "a gate opens on the side that does not own"
		}
	case setOwner:
		o := &m.row[r.to]
		switch {
		case *o == row{r.epoch, r.owner}:
		case o.epoch >= r.epoch && f != epochsOverwritten:
			return true, ""
		default:
			*o = row{r.epoch, r.owner}
			if r.to == target && r.owner == target {
				broken = m.atTheReturn()
			}
		}
	}
	if broken == "" && open(m.gate[source]) && open(m.gate[target]) {
		broken = "both gates are open"
	}
	return false, broken
}

// atTheReturn is what must hold when the target becomes the owner.
func (m *machine) atTheReturn() string {
	switch {
	case m.applied != m.committed:
		return "the target becomes the owner without an acknowledged write"
	case open(m.gate[source]):
		return "the target becomes the owner while the source is open"
	}
	return ""
}
