package apply

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

const (
	controlSchema  = "ficus"
	signalTable    = "signal"
	ownershipTable = "ownership"
)

const (
	// rowOverhead is about what a row costs in memory besides its bytes in the stream.
	rowOverhead = 256
	// ripeAfter is how long a batch grows while another one is on its way, before it follows that one.
	ripeAfter = 10 * time.Millisecond
)

// A collector turns chunks into batches of whole transactions.
type collector struct {
	limits  limits
	from    change.LSN // the destination stands here: what ends at or before is dropped
	targets map[schema.Name]*target
	sources map[schema.Name]*transform.Mapping

	bases bases // what the copies of tables hold already

	// awaiting is the epoch before which everything is ignored; 0 when nothing is.
	awaiting int64

	decoder *change.Decoder
	bound   map[uint32]*binding
	out     handover

	batch   *batch
	since   time.Time // when the first transaction of batch was complete
	pace    pace
	tx      txn        // the open transaction
	commits change.LSN // where its commit record begins
	xid     uint32
	txSize  int // bytes of it that batch holds
	state   txState
}

// A handover is where batches go from the collector to the lane. The lane takes what there is when it
// has nothing to do, and else what has grown.
type handover struct {
	any  chan *batch // a transaction or more
	full chan *batch // limits are reached, or it has waited for ripeAfter
}

func newHandover() handover { return handover{any: make(chan *batch), full: make(chan *batch)} }

type limits struct {
	rows, bytes int
	delay       time.Duration
}

// A binding is what a relation of the stream means to us; table is nil where it means nothing.
type binding struct {
	rel   *change.Relation
	table *table
}

type txState uint8

const (
	between  txState = iota // no transaction is open
	skipping                // the open one is at the destination already
	ignoring                // the open one belongs to an epoch before ours
	taking                  // the open one is collected
	parting                 // as taking, and some of it was sent off in parts
)

// newCollector returns a collector for a destination that stands at p.
func newCollector(a *Applier, p progress, b bases, targets map[schema.Name]*target, out handover) *collector {
	c := &collector{
		limits: a.limits, from: p.lsn, targets: targets, sources: a.sources, bases: b, out: out,
		decoder: change.NewDecoder(), bound: map[uint32]*binding{}, batch: &batch{},
	}
	if p.epoch < a.cfg.AfterEpoch {
		c.awaiting = a.cfg.AfterEpoch
	}
	return c
}

// run collects until ctx is done. It hands over what it has as soon as the lane is free.
func (c *collector) run(ctx context.Context, pins [][]byte, chunks <-chan eventstore.Chunk) error {
	for _, pin := range pins {
		if _, err := c.decoder.Decode(pin); err != nil {
			return fmt.Errorf("decode a pinned relation: %w", err)
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		anyone, full, wait := c.offers()
		if wait > 0 {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case anyone <- c.batch:
			c.left(c.batch)
			c.batch = &batch{}
		case full <- c.batch:
			c.left(c.batch)
			c.batch = &batch{}
		case <-timer.C:
		case chunk := <-chunks:
			if err := c.chunk(ctx, chunk); err != nil {
				return c.fail(ctx, err)
			}
		}
	}
}

// offers returns where the batch may go now, and when to ask again; 0: when there is more of it.
func (c *collector) offers() (anyone, full chan<- *batch, wait time.Duration) {
	if c.state != between || len(c.batch.txns) == 0 {
		return nil, nil, 0
	}
	age := time.Since(c.since)
	linger := max(c.limits.delay, c.pace.linger())
	if age >= linger {
		anyone = c.out.any
	}
	if age >= max(linger, ripeAfter) {
		return anyone, c.out.full, 0
	}
	if age >= linger {
		return anyone, nil, ripeAfter - age
	}
	return nil, nil, linger - age
}

// fail lets the writer have the transactions before the one that cannot be taken, and then the error.
func (c *collector) fail(ctx context.Context, err error) error {
	if c.state != parting && len(c.batch.txns) > 0 {
		before, _ := c.split()
		if err := c.hand(ctx, before); err != nil {
			return err
		}
	}
	return c.hand(ctx, &batch{err: err})
}

// chunk takes all messages of a chunk.
func (c *collector) chunk(ctx context.Context, chunk eventstore.Chunk) error {
	var msg []byte
	var err error
	for rest := chunk.Data; len(rest) > 0; {
		if msg, rest, err = change.NextFrame(rest); err != nil {
			return fmt.Errorf("chunk that ends at %s: %w", chunk.End, err)
		}
		m, err := c.decoder.Decode(msg)
		if err != nil {
			return fmt.Errorf("chunk that ends at %s: %w", chunk.End, err)
		}
		if err := c.message(ctx, &m, chunk); err != nil {
			return err
		}
		if (c.state == taking || c.state == parting) && m.Kind != change.KindSubtransaction {
			c.batch.size += len(msg)
			c.txSize += len(msg)
			if err := c.makeRoom(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// message takes one message.
func (c *collector) message(ctx context.Context, m *change.Message, chunk eventstore.Chunk) error {
	switch m.Kind {
	case change.KindBegin:
		c.begin(&m.Begin, chunk)
	case change.KindCommit:
		return c.commit(ctx, &m.Commit)
	case change.KindInsert, change.KindUpdate, change.KindDelete:
		return c.row(&m.Row)
	case change.KindTruncate:
		return c.truncate(&m.Truncate)
	case change.KindRelation: // the decoder keeps it; it is looked at when a row needs it
	case change.KindOrigin, change.KindType, change.KindMessage, change.KindSubtransaction: // nothing to write
	}
	return nil
}

func (c *collector) begin(b *change.Begin, chunk eventstore.Chunk) {
	// A commit record begins where the one before it ended, or later.
	c.tx = txn{end: b.CommitLSN + 1, at: b.CommitTime}
	if chunk.Spilled {
		c.tx.end = chunk.End
	}
	c.txSize = 0
	c.commits, c.xid = b.CommitLSN, b.XID
	c.bases.pass(b.CommitLSN)
	switch {
	case b.CommitLSN < c.from:
		c.state = skipping
	case c.awaiting > 0:
		c.state = ignoring
	default:
		c.state = taking
	}
}

func (c *collector) commit(ctx context.Context, m *change.Commit) error {
	state := c.state
	c.state = between
	if state == skipping {
		return nil
	}
	if c.tx.epoch >= c.awaiting {
		c.awaiting = 0
	}
	c.tx.end = m.EndLSN
	if len(c.batch.txns) == 0 {
		c.since = time.Now()
	}
	c.batch.txns = append(c.batch.txns, c.tx)
	if state != parting && !c.full() {
		return nil
	}
	b := c.batch
	c.batch = &batch{}
	return c.hand(ctx, b)
}

func (c *collector) full() bool {
	return len(c.batch.ops) >= c.limits.rows || len(c.batch.txns) >= c.limits.rows || c.batch.size+len(c.batch.ops)*rowOverhead >= c.limits.bytes
}

// makeRoom sends off what the batch has when it is full in the middle of a transaction: first the
// transactions before, then the open one in parts.
func (c *collector) makeRoom(ctx context.Context) error {
	if !c.full() {
		return nil
	}
	if len(c.batch.txns) > 0 {
		before, open := c.split()
		c.batch = open
		if err := c.hand(ctx, before); err != nil || !c.full() {
			return err
		}
	}
	c.state = parting
	c.batch.txns = append(c.batch.txns, c.tx)
	c.batch.part, c.batch.more = true, true
	err := c.hand(ctx, c.batch)
	c.batch = &batch{part: true}
	c.tx.ops, c.txSize = 0, 0
	return err
}

// split separates the complete transactions of the batch from the open one.
func (c *collector) split() (complete, open *batch) {
	b := *c.batch
	mine := len(b.ops) - c.tx.ops
	open = &batch{ops: slices.Clone(b.ops[mine:]), size: c.txSize}
	b.ops, b.size = b.ops[:mine], b.size-c.txSize
	return &b, open
}

func (c *collector) hand(ctx context.Context, b *batch) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case c.out.full <- b:
		c.left(b)
		return nil
	}
}

// left takes note of a batch that the writer has.
func (c *collector) left(b *batch) {
	if n := len(b.txns); n > 0 {
		c.pace.look(time.Now(), b.txns[n-1].at)
	}
}

// row takes one change of a row.
func (c *collector) row(r *change.Row) error {
	if c.state == skipping {
		return nil
	}
	if r.Rel.Namespace == controlSchema {
		return c.control(r)
	}
	// Before the relation is looked at: it may be of a shape that the table had before its copy.
	if c.state == ignoring || c.bases.holds(r.Rel, c.commits, c.xid) {
		return nil
	}
	t, err := c.table(r.Rel)
	if err != nil || t == nil {
		return err
	}
	if r.Op != change.Insert && (len(t.key) == 0 && !t.whole || t.whole && r.Old == nil) {
		return hint.Wrap(fmt.Errorf("table %s: %s of a row without replica identity", t.mapping.Source.Name.Display(), r.Op),
			"ALTER TABLE %s REPLICA IDENTITY FULL on the source, and start this migration again", t.mapping.Source.Name)
	}
	if i := slices.IndexFunc(r.New, func(v change.Value) bool { return v.Kind == change.Binary }); i >= 0 {
		return fmt.Errorf("table %s: column %q came in binary, which is not supported", t.mapping.Source.Name.Display(), r.Rel.Columns[i].Name)
	}
	o := c.batch.row(t, r)
	if o.kind == opUpdate && t.computed {
		for i, p := range t.params {
			if p.read && o.row[i].Kind == change.Unchanged {
				return hint.Wrap(fmt.Errorf("table %s: an update left out the large value of column %q, which a rule needs", t.mapping.Source.Name.Display(), p.name),
					"ALTER TABLE %s REPLICA IDENTITY FULL on the source, and start this migration again", t.mapping.Source.Name)
			}
		}
	}
	c.batch.ops = append(c.batch.ops, o)
	c.tx.ops++
	return nil
}

// control takes a row of our own tables at the source.
func (c *collector) control(r *change.Row) error {
	text := func(column string) string {
		i := slices.IndexFunc(r.Rel.Columns, func(col change.Column) bool { return col.Name == column })
		if i < 0 || r.New == nil {
			return ""
		}
		return string(r.New[i].Data)
	}
	switch r.Rel.Name {
	case signalTable:
		if nonce := text("nonce"); nonce != "" && c.state != ignoring {
			c.tx.signals = append(c.tx.signals, nonce)
		}
	case ownershipTable:
		value := text("epoch")
		if value == "" {
			return nil
		}
		epoch, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return fmt.Errorf("ficus.ownership: epoch: %w", err)
		}
		c.tx.epoch = max(c.tx.epoch, epoch)
	}
	return nil
}

func (c *collector) truncate(m *change.Truncate) error {
	if c.state == skipping || c.state == ignoring {
		return nil
	}
	tr := &truncation{restart: m.RestartIdentity}
	for _, rel := range m.Relations {
		if c.bases.holds(rel, c.commits, c.xid) {
			tr.half = true
			continue
		}
		t, err := c.table(rel)
		if err != nil {
			return err
		}
		if t != nil {
			tr.tables = append(tr.tables, t)
		}
	}
	if len(tr.tables) == 0 {
		return nil
	}
	c.batch.ops = append(c.batch.ops, op{kind: opTruncate, table: tr.tables[0], truncate: tr})
	c.tx.ops++
	return nil
}

// table returns the table that a relation is bound to, nil when no mapping wants it.
func (c *collector) table(rel *change.Relation) (*table, error) {
	b := c.bound[rel.ID]
	if b != nil && b.rel == rel {
		return b.table, nil
	}
	if b != nil && sameRelation(b.rel, rel) { // said again, as after a reconnect
		b.rel = rel
		return b.table, nil
	}
	b = &binding{rel: rel}
	m, err := c.mapping(rel)
	if err != nil {
		return nil, err
	}
	if m != nil {
		t, err := bind(rel, m, c.targets[m.Target])
		if err != nil {
			return nil, err
		}
		b.table = t
	}
	c.bound[rel.ID] = b
	return b.table, nil
}

// mapping returns the mapping that wants a relation's rows, nil for none. A table is known by its OID
// where both sides of the comparison have one: two tables may have swapped their names, and one that
// was renamed would be taken for one that does not move.
func (c *collector) mapping(rel *change.Relation) (*transform.Mapping, error) {
	name := schema.Name{Schema: rel.Namespace, Name: rel.Name}
	named := c.sources[name]
	if named != nil && (named.Source.OID == rel.ID || named.Source.OID == 0 || rel.ID == 0) {
		return named, nil
	}
	for _, m := range c.sources {
		switch {
		case m.Source.OID != rel.ID || rel.ID == 0:
		case m.Called(name):
			return m, nil
		default:
			return nil, hint.Wrap(&SchemaChange{Table: m.Source.Name, Relation: rel, Renamed: true}, "resume takes the new name")
		}
	}
	if named != nil {
		return nil, hint.Wrap(&SchemaChange{Table: name, Relation: rel, Other: true}, "rename it back at the source, then resume")
	}
	return nil, nil
}
