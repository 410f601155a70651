package spec

// A step is one of the things that may happen next.
type step struct {
	to     machine
	broken string // what it breaks
}

// next returns everything that may happen in a state.
func next(m machine, f flaw) []step {
	var all []step
	for i := range m.writers {
		all = appendWriter(all, m, i, f)
	}
	if m.applied < m.committed {
		n := m
		n.applied++
		all = append(all, step{to: n})
	}
	for i, r := range m.late {
		if r.kind == noRequest {
			continue
		}
		n := m
		n.late[i] = message{}
		_, broken := n.take(r, f)
		all = append(all, step{n, broken})
	}
	for i := range m.procs {
		all = appendProc(all, m, i, f)
	}
	return all
}

func appendWriter(all []step, m machine, i int, f flaw) []step {
	side := source
	if i == len(m.writers)-1 {
		side = target
	}
	w := &m.writers[i]
	first := *w == writerIdle
	switch {
	case *w == writerOver:
		return all
	case f == gateBeforeLock && first: // as a trigger would that fires before the lock
		*w = writerOver
		if open(m.gate[side]) {
			*w = writerPassed // and holds nothing that anybody could wait for: see findWriters
		}
	case first:
		*w = writerLocked
	case *w == writerLocked && open(m.gate[side]):
		*w = writerPassed
	case *w == writerLocked:
		*w = writerOver // refused
	default:
		*w = writerOver
		if int(m.newest().owner) != side {
			return append(all, step{m, "a write is committed on the side that does not own"})
		}
		if side == source {
			m.committed++
		}
	}
	return append(all, step{to: m})
}

// appendProc adds what one process may do, and what may happen to it.
func appendProc(all []step, m machine, i int, f flaw) []step {
	p := m.procs[i]
	if p.at == atStart {
		if m.starts > 0 {
			m.starts--
			m.procs[i] = proc{at: claimSource}
			all = append(all, step{to: m})
		}
		return all
	}
	if p.at == gone {
		return all
	}
	if m.faults > 0 {
		all = appendMisfortune(all, m, i)
	}
	if r, ok := p.request(); ok {
		return appendRequest(all, m, i, r, f)
	}
	if n, ok := local(m, i, f); ok {
		all = append(all, step{to: n})
	}
	return all
}

// appendMisfortune adds the death of a process, after which another one may start, and the end of its sessions
// without its knowledge.
func appendMisfortune(all []step, m machine, i int) []step {
	m.faults--
	for side := range m.lock {
		if m.lock[side] == uint8(i+1) {
			m.lock[side] = 0
		}
	}
	all = append(all, step{to: m})
	m.procs[i] = proc{}
	return append(all, step{to: m})
}

// request is what a process asks of a database at its place.
func (p proc) request() (message, bool) {
	r := message{epoch: p.epoch, seen: p.seen}
	switch p.at { //nolint:exhaustive // the other places ask for nothing
	case closeGate:
		r.kind, r.to = setClosed, source
	case own:
		r.kind, r.to, r.owner = setOwner, target, target
	case openTarget:
		r.kind, r.to = setOpen, target
	case record:
		r.kind, r.to, r.owner = setOwner, source, target
	case burn:
		r.kind, r.to, r.owner = setOwner, target, source
	case openSource:
		r.kind, r.to = setOpen, source
	default:
		return message{}, false
	}
	r.token = p.token[r.to]
	return r, true
}

// appendRequest adds the fates of a request: answered, lost on the way there or back, late.
func appendRequest(all []step, m machine, i int, r message, f flaw) []step {
	n := m
	refused, broken := n.take(r, f)
	n.procs[i].at = after(&n, i, r, refused, f)
	all = append(all, step{n, broken})
	if m.faults == 0 {
		return all
	}
	m.faults--
	lost, answered := m, m
	_, broken = answered.take(r, f)
	for _, n := range []machine{lost, answered} {
		n.procs[i].at = failed(m.procs[i].at, f)
		all = append(all, step{n, broken})
	}
	for j := range m.late {
		if m.late[j].kind == noRequest {
			m.late[j] = r
			m.procs[i].at = failed(m.procs[i].at, f)
			return append(all, step{to: m})
		}
	}
	return all
}

// after is where a process goes on once a request was answered.
func after(m *machine, i int, r message, refused bool, f flaw) place {
	at := m.procs[i].at
	if refused && r.token != m.token[r.to] && f != noToken {
		return gone // deposed
	}
	switch {
	case at == burn && refused && m.row[target].owner == target:
		return seeTarget // the attempt had won
	case at == burn:
		return seeSource
	case refused && at == openSource:
		return look
	case refused:
		return failed(at, f)
	case at == own && f == openFirst:
		return record
	case at == openTarget && f == openFirst:
		return own
	case at == closeGate && f == waitFirst:
		return signal
	case at == openTarget:
		return record
	case at == openSource && !m.procs[i].again && m.starts == 0:
		m.procs[i].again = true
		return look
	case at == record, at == openSource:
		return over
	}
	return at + 1
}

// failed is where a process goes on when a step before the point of no return failed; a later one is tried
// again.
func failed(at place, f flaw) place {
	switch {
	case at >= closeGate && at < own:
		return seeSource
	case at == own && f == noBurn:
		return seeSource
	case at == own:
		return burn
	case at == openSource: // asks anew for the value that it wants to move
		return seeSource
	}
	return at
}

// local is a step without a request that could get lost: reading, waiting, claiming.
func local(m machine, i int, f flaw) (machine, bool) {
	p := &m.procs[i]
	switch p.at { //nolint:exhaustive // the other places make a request
	case claimSource, claimTarget:
		side := p.at - claimSource
		if m.lock[side] != 0 {
			return m, false // it waits
		}
		m.claims++
		m.lock[side], m.token[side], p.token[side] = uint8(i+1), m.claims, m.claims
		p.at++
	case look:
		m.decide(p, f)
	case findWriters:
		p.waits = 0
		for w, at := range m.writers[:2] {
			if at == writerLocked || at == writerPassed && f != gateBeforeLock {
				p.waits |= 1 << w
			}
		}
		p.at++
	case waitWriters:
		for w, at := range m.writers[:2] {
			if p.waits&(1<<w) != 0 && at != writerOver && f != noWait {
				return m, false
			}
		}
		p.at++
		switch f { //nolint:exhaustive // the other flaws are elsewhere
		case waitFirst:
			p.at = closeGate
		case nonceFirst:
			p.at = drain
		}
	case signal:
		p.nonce = m.committed
		p.at++
		if f == nonceFirst {
			p.at = closeGate
		}
	case drain:
		if m.applied < p.nonce {
			return m, false
		}
		p.at++
		if f == openFirst {
			p.at = seeTarget
		}
	case seeTarget, seeSource:
		side := target
		if p.at == seeSource {
			side = source
		}
		p.seen = m.gate[side]
		p.at++
	default:
		return m, false
	}
	return m, true
}

// decide is what a process makes of what the databases say after its start.
func (m *machine) decide(p *proc, f flaw) {
	p.epoch = max(m.row[source].epoch, m.row[target].epoch) + 1
	switch {
	case m.newest().owner == target:
		p.epoch, p.at = m.newest().epoch, seeTarget
	case !open(m.gate[source]):
		p.at = burn
	case f == nonceFirst:
		p.at = signal
	case f == waitFirst:
		p.at = findWriters
	default:
		p.at = closeGate
	}
}
