package router

import "github.com/ficus-migrate/ficus/migrate"

// A Kind is a way of leading clients, as a playbook names it.
type Kind string

// The kinds.
const (
	KindGateway   Kind = "gateway"
	KindHTTP      Kind = "http"
	KindPgBouncer Kind = "pgbouncer"
	KindHooks     Kind = "hooks"
	KindNone      Kind = "none"
)

// Kinds returns all of them, the default first.
func Kinds() []Kind { return []Kind{KindGateway, KindHTTP, KindPgBouncer, KindHooks, KindNone} }

// What routers may promise.
const (
	Leads   = "leads"   // clients reach the owner without anybody's doing
	Holds   = "holds"   // clients wait at a switch, and none fails
	Drains  = "drains"  // transactions in flight end before the fence closes
	Epochs  = "epochs"  // an order that comes late cannot stop the clients of a later time
	Reads   = "reads"   // reads move by percentage
	Stalls  = "stalls"  // what clients waited is measured
	Outlive = "outlive" // clients go on when Ficus ends
)

// Options are what a router's promises depend on.
type Options struct {
	Bouncers  int  // how many PgBouncers there are
	Reads     bool // PgBouncer, hooks: reads are led, too
	HoldsHook bool // hooks: there is one for holding
}

// Guarantees says what a kind of router promises, each promise once and in the same order.
func Guarantees(k Kind, o Options) []migrate.Guarantee {
	g := func(name string, given bool, how string) migrate.Guarantee {
		return migrate.Guarantee{Name: name, Given: given, How: how}
	}
	reads := g(Reads, false, "there is nothing that leads reads")
	switch k {
	case KindGateway:
		return []migrate.Guarantee{
			g(Leads, true, "each session is moved, with its settings and prepared statements; what cannot move ends with 57P01"),
			g(Holds, true, "clients wait in order of arrival, at most 30 s, then a retryable error"),
			g(Drains, true, "a switch waits for transactions in flight, within its budget"),
			g(Epochs, true, "the gateway refuses orders of an older epoch"),
			g(Reads, true, "sessions of the read-only door, by percentage"),
			g(Stalls, true, "every wait: p50, p99, max"),
			g(Outlive, false, "the doors of ficus run and serve close with the process: clients connect again when it is back"),
		}
	case KindHTTP:
		return []migrate.Guarantee{
			g(Leads, true, "each request goes to the data server of the owner"),
			g(Holds, true, "writes wait in order of arrival, at most router.http.hold_wait, then 503; commands wait for as long as it takes"),
			g(Drains, true, "a switch waits for writes and commands at the data server, within its budget"),
			g(Epochs, true, "the door refuses orders of an older epoch"),
			g(Reads, true, "requests, by route and percentage"),
			g(Stalls, true, "every wait: p50, p99, max"),
			g(Outlive, false, "the door of ficus run and serve closes with the process; commands that it accepted are sent when it is back"),
		}
	case KindPgBouncer:
		if o.Reads {
			reads = g(Reads, true, "whole PgBouncers: of several, as many move as the percentage allows; a single one moves at 100")
		}
		return []migrate.Guarantee{
			g(Leads, true, "the database's line in PgBouncer's configuration is changed, and the change looked for in SHOW DATABASES"),
			g(Holds, true, "PAUSE: clients wait until RESUME, or PgBouncer's query_wait_timeout; needs transaction or statement pooling"),
			g(Drains, true, "PAUSE waits for transactions in flight, within the budget of the switch"),
			g(Epochs, false, "only within one process of Ficus: PgBouncer knows no epochs"),
			reads,
			g(Stalls, true, "an upper bound: how many waited, and how long the longest"),
			g(Outlive, true, "PgBouncer goes on; one that is paused stays so until Ficus is back, or somebody says RESUME"),
		}
	case KindHooks:
		if o.Reads {
			reads = g(Reads, true, "as far as your hook does it")
		}
		how := "your hook for it returns when clients wait and transactions in flight have ended; a status other than 0 stops the switch"
		if !o.HoldsHook {
			how = "there is no hook for it: writes fail with 25006 until clients are led to the owner"
		}
		return []migrate.Guarantee{
			g(Leads, true, "your hook is called, and again until it succeeds"),
			g(Holds, o.HoldsHook, how), g(Drains, o.HoldsHook, how),
			g(Epochs, false, "only within one process of Ficus; your hooks are told the epoch"),
			reads,
			g(Stalls, false, "a hook does not see clients wait"),
			g(Outlive, true, "what your hooks lead to goes on as they left it"),
		}
	case KindNone:
		return []migrate.Guarantee{
			g(Leads, false, "you are asked to move the clients; ficus status says when and where to"),
			g(Holds, false, "from the switch on, writes to the old database fail with 25006 until you have moved them"),
			g(Drains, false, "the fence waits for transactions that write, and nobody holds back new ones"),
			g(Epochs, false, "there is nothing to be ordered"),
			reads,
			g(Stalls, false, "nobody sees clients wait"),
			g(Outlive, true, "clients do not depend on Ficus"),
		}
	}
	return nil
}
