package killtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/migrate"
)

// A victim is what a kill ends.
type victim struct {
	ficus   bool
	disk    bool // the data directory of ficus goes, too
	gateway bool // the one that is a process of its own
	source  bool
	target  bool
}

func (v victim) String() string {
	switch v {
	case victim{gateway: true}:
		return "gateway"
	case victim{ficus: true, gateway: true}:
		return "ficus and gateway"
	case victim{gateway: true, source: true}:
		return "gateway and source"
	case victim{gateway: true, target: true}:
		return "gateway and target"
	case victim{ficus: true, gateway: true, source: true, target: true}:
		return "everything, and the gateway"
	case victim{ficus: true}:
		return "ficus"
	case victim{ficus: true, disk: true}:
		return "ficus and its disk"
	case victim{source: true}:
		return "source"
	case victim{target: true}:
		return "target"
	case victim{source: true, target: true}:
		return "source and target"
	case victim{ficus: true, source: true}:
		return "ficus and source"
	case victim{ficus: true, target: true}:
		return "ficus and target"
	case victim{ficus: true, source: true, target: true}:
		return "everything"
	}
	return fmt.Sprintf("%#v", v)
}

// apart reports whether the gateway is a process of its own in the life with that seed: in every other pair, so that
// both kinds are completed and cancelled.
func apart(seed uint64) bool { return (seed+1)/2%2 == 1 }

func victims(apart bool) []victim {
	all := []victim{
		{ficus: true},
		{source: true},
		{target: true},
		{ficus: true, disk: true},
		{ficus: true, source: true},
		{ficus: true, target: true},
		{source: true, target: true},
		{ficus: true, source: true, target: true},
	}
	if !apart {
		return all
	}
	return []victim{
		{gateway: true},
		{ficus: true},
		{ficus: true, gateway: true},
		{gateway: true, source: true},
		{source: true},
		{gateway: true, target: true},
		{ficus: true, disk: true},
		{gateway: true},
		{ficus: true, gateway: true, source: true, target: true},
	}
}

// A point is a boundary of a step.
type point struct {
	Phase migrate.Phase
	Step  string
	State string // "started" or "done"
	Back  bool   // of a rollback
}

// message is what ficus prints there.
func (p point) message() string { return p.Step + ": " + p.State }

func (p point) String() string {
	phase := p.Phase
	if p.Back && phase == migrate.Promoting {
		phase = migrate.RollingBack
	}
	return string(phase) + " " + p.message()
}

// A kill is one row of the matrix.
type kill struct {
	at     point
	victim victim
	// after is how long after the point, or, with any set, after the command: any instant.
	after time.Duration
	any   bool
	down  time.Duration // how long what was killed stays away
}

func (k kill) String() string {
	if k.any {
		return fmt.Sprintf("%s, %s after the command", k.victim, k.after.Round(time.Millisecond))
	}
	return fmt.Sprintf("%s at %s, %s later", k.victim, k.at, k.after.Round(time.Millisecond))
}

// decks are all points, by the part of a life in which they lie.
type decks struct{ begin, forth, back, complete, cancel []point }

func newDecks() decks {
	var d decks
	for _, s := range migrate.Steps(migrate.Settings{}) {
		both := []point{{Phase: s.Phase, Step: s.Name, State: "started"}, {Phase: s.Phase, Step: s.Name, State: "done"}}
		switch s.Phase {
		case migrate.Preparing, migrate.Copying, migrate.CatchingUp, migrate.Following:
			d.begin = append(d.begin, both...)
		case migrate.Verifying, migrate.ReadsSwitched:
			d.forth = append(d.forth, both...)
		case migrate.Promoting:
			d.forth = append(d.forth, both...)
			for _, p := range both {
				p.Back = true
				d.back = append(d.back, p)
			}
		case migrate.Promoted: // whose step ends with the next rollback only
			d.forth = append(d.forth, both[0])
		case migrate.RolledBack:
			both[0].Back = true
			d.back = append(d.back, both[0])
		case migrate.Completed:
			d.complete = append(d.complete, both...)
		case migrate.Cancelled:
			d.cancel = append(d.cancel, both...)
		case migrate.Pending, migrate.RollingBack, migrate.Failed:
		}
	}
	return d
}

func (d decks) all() []point { return slices.Concat(d.begin, d.forth, d.back, d.complete, d.cancel) }

// longestDown is how long a server stays away at most: less than clients have patience.
const longestDown = 1500 * time.Millisecond

// A plan is the kills of one life.
type plan struct {
	begin, switches []kill
	end             *kill
	complete        bool // how it ends, where the owner lets it; else it is cancelled
}

// newPlan deals kills to the life with a seed. Lives with seeds that follow one another share out what there
// is: point after point of a shuffled deck, victim after victim.
func newPlan(seed uint64, kills int) plan {
	r := rand.New(rand.NewPCG(seed, 0))
	d := newDecks()
	p := plan{complete: seed%2 == 0}
	begins, ends := min(2, kills/4), min(1, kills/4)
	// Each deck counts for itself, so that its points take turns.
	deal := func(deck []point, number uint64, can func(victim) bool) kill {
		points := shuffled(deck)
		who := slices.DeleteFunc(victims(apart(seed)), func(v victim) bool { return !can(v) })
		n := uint64(len(points))
		k := kill{at: points[number%n], victim: who[(number+number/n)%uint64(len(who))], down: time.Duration(r.Int64N(int64(longestDown)))}
		switch r.IntN(4) {
		case 0: // at once
		case 1, 2:
			k.after = time.Duration(r.Int64N(int64(20 * time.Millisecond)))
		case 3:
			k.after = time.Duration(r.Int64N(int64(300 * time.Millisecond)))
		}
		return k
	}
	keepsDisk := func(v victim) bool { return !v.disk }
	for i := range uint64(begins) {
		p.begin = append(p.begin, deal(d.begin, seed*uint64(begins)+i, keepsDisk))
	}
	slices.SortStableFunc(p.begin, func(a, b kill) int { return slices.Index(d.begin, a.at) - slices.Index(d.begin, b.at) })
	each := uint64(kills-begins-ends+1) / 2
	for i := range uint64(kills - begins - ends) {
		deck := d.forth
		if i%2 == 1 {
			deck = d.back
		}
		k := deal(deck, seed*each+i/2, func(victim) bool { return true })
		if r.IntN(5) == 0 {
			k.any, k.after = true, time.Duration(r.Int64N(int64(4*time.Second)))
		}
		p.switches = append(p.switches, k)
	}
	if ends > 0 {
		deck := d.cancel
		if p.complete {
			deck = d.complete
		}
		p.end = new(deal(deck, seed/2, keepsDisk))
	}
	return p
}

// shuffled returns points in an order that is the same for every life.
func shuffled(points []point) []point {
	points = slices.Clone(points)
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
	return points
}
