package shop

import (
	"slices"
	"sync"
	"time"
)

// A Kind is a kind of transaction of the load.
type Kind string

// The kinds.
const (
	Place   Kind = "place"   // an order of one to three items
	Pay     Kind = "pay"     // an order of one's own
	Cancel  Kind = "cancel"  // the same, unpaid; its items go back to the stock
	Restock Kind = "restock" // a delivery, in one statement
	Move    Kind = "move"    // a customer to another address
	Reprice Kind = "reprice" // a product
)

// An Answer is what the database said about a transaction.
type Answer string

// The answers.
const (
	Acknowledged Answer = "acknowledged"
	// InDoubt means that the answer to the commit was lost: it may be there or not.
	InDoubt Answer = "in doubt"
	// Failed means that the database, or what stands before it, refused, and nothing was changed.
	Failed Answer = "failed"
)

// An Entry is one transaction that a client asked for.
type Entry struct {
	Client int
	Seq    int64 // of the client, from 1
	Kind   Kind
	Ref    int64 // order, product or customer
	Answer Answer
	Start  time.Time
	Took   time.Duration // until the answer, as the client saw it
	Err    error         // unless acknowledged
}

// key is what a transaction is known by on both sides.
type key struct {
	client int
	seq    int64
}

// A Ledger is what clients know of their transactions, outside the database. It grows by one Entry
// each. The zero value is ready for use.
type Ledger struct {
	mu struct {
		sync.Mutex
		entries []Entry
		clients int
		totals  Totals
		lost    []error // of the readers; the first few
	}
}

// Totals are a ledger's figures.
type Totals struct {
	Acknowledged int64
	Failed       int64
	InDoubt      int64
	Reads        int64
	ReadsFailed  int64
	// Torn counts orders that a reader saw without all their items. One transaction writes both.
	Torn int64
}

// Totals returns the present figures.
func (l *Ledger) Totals() Totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.totals
}

// Acknowledged returns how many transactions the database acknowledged.
func (l *Ledger) Acknowledged() int64 { return l.Totals().Acknowledged }

// Errors returns what went wrong for writers and readers, the first few.
func (l *Ledger) Errors() []error {
	const few = 5
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for i := range l.mu.entries {
		if e := &l.mu.entries[i]; e.Err != nil && len(errs) < few {
			errs = append(errs, e.Err)
		}
	}
	return append(errs, l.mu.lost...)
}

// record adds what a client learned.
func (l *Ledger) record(e Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.entries = append(l.mu.entries, e)
	switch e.Answer {
	case Acknowledged:
		l.mu.totals.Acknowledged++
	case InDoubt:
		l.mu.totals.InDoubt++
	case Failed:
		l.mu.totals.Failed++
	}
}

// recordRead adds one read; torn is how many orders it saw in part.
func (l *Ledger) recordRead(torn int64, err error) {
	const few = 5
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.totals.Torn += torn
	if err == nil {
		l.mu.totals.Reads++
		return
	}
	l.mu.totals.ReadsFailed++
	if len(l.mu.lost) < few {
		l.mu.lost = append(l.mu.lost, err)
	}
}

// enroll numbers n new clients and returns the first number; none is used twice.
func (l *Ledger) enroll(n int) (first int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first = l.mu.clients + 1
	l.mu.clients += n
	return first
}

// Latency says how long transactions took, as their clients saw it.
type Latency struct {
	Transactions  int
	P50, P99, Max time.Duration
}

// Latency measures the transactions that were under way at some moment from first to last, whatever
// their answer.
func (l *Ledger) Latency(first, last time.Time) Latency {
	var took []time.Duration
	l.mu.Lock()
	for i := range l.mu.entries {
		e := &l.mu.entries[i]
		if !e.Start.After(last) && !e.Start.Add(e.Took).Before(first) {
			took = append(took, e.Took)
		}
	}
	l.mu.Unlock()
	if len(took) == 0 {
		return Latency{}
	}
	slices.Sort(took)
	at := func(part float64) time.Duration { return took[int(part*float64(len(took)-1)+0.5)] }
	return Latency{Transactions: len(took), P50: at(0.50), P99: at(0.99), Max: took[len(took)-1]}
}

// expected returns every transaction of which the database may hold something, by its key.
func (l *Ledger) expected() map[key]Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := make(map[key]Entry, len(l.mu.entries))
	for _, e := range l.mu.entries {
		m[key{e.Client, e.Seq}] = e
	}
	return m
}
