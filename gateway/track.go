package gateway

// A tracker knows from message types alone whether a session is inside a transaction.
//
// A unit is what the server answers with one ReadyForQuery: a Query, a FunctionCall, or extended
// messages up to their Sync. Units may be pipelined.
type tracker struct {
	pending int  // units sent whose ReadyForQuery has not come
	open    bool // extended messages were sent since the last Sync
	status  byte // of the last ReadyForQuery

	// The server ignores a Sync that it reads while it takes COPY data, and the client sends
	// another one afterwards. syncs counts those since the last Execute.
	executed bool
	syncs    int
}

// border reports whether nothing is going on: a new message would begin a transaction.
func (t *tracker) border() bool { return t.pending == 0 && !t.open && t.status == statusIdle }

// sent notes a message that goes to the server.
func (t *tracker) sent(typ byte) {
	switch typ {
	case msgQuery, msgFunctionCall:
		t.pending++
		t.open, t.executed, t.syncs = false, false, 0
	case msgSync:
		t.pending++
		t.open = false
		if t.executed {
			t.syncs++
		}
	case msgExecute:
		t.open, t.executed, t.syncs = true, true, 0
	case msgCopyDone, msgCopyFail:
		if t.executed && t.syncs > 0 {
			t.pending = max(0, t.pending-t.syncs)
			t.open, t.syncs = true, 0
		}
	case msgParse, msgBind, msgDescribe, msgClose, msgFlush:
		t.open = true
	}
}

// ready notes a ReadyForQuery.
func (t *tracker) ready(status byte) {
	t.pending = max(0, t.pending-1)
	t.status = status
	if t.pending == 0 {
		t.executed, t.syncs = false, 0
	}
}
