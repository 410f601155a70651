package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/hooks"
)

// HooksConfig holds what a Hooks router calls. A call that fails, is refused or takes too long is an
// error: for Hold that takes the switch back, for Release that it is called again.
type HooksConfig struct {
	Migration string
	// Hold returns once clients wait and transactions in flight have ended. Default: nobody is held.
	Hold *hooks.Action
	// Release leads clients to the owner and lets them go on. It may be called again with the same order.
	Release *hooks.Action
	// Reads sends a percentage of reads to the side that does not own. Default: reads stay on the owner.
	Reads *hooks.Action
	// Places are the two databases; hooks are told the one that matters, without its password.
	Places map[migrate.Side]pg.DSN
}

// Hooks leads clients by commands and webhooks.
type Hooks struct {
	cfg    HooksConfig
	orders orders
}

// An Order is what a hook is told: as JSON, and as variables FICUS_ORDER, FICUS_MIGRATION and so on.
type Order struct {
	Order     string       `json:"order"` // hold, release, reads
	Migration string       `json:"migration"`
	Epoch     int64        `json:"epoch,omitempty"`    // hold, release
	Owner     migrate.Side `json:"owner,omitempty"`    // release, reads
	Percent   int          `json:"percent"`            // reads
	Host      string       `json:"host,omitempty"`     // release: of the owner; reads: of the other side
	Port      uint16       `json:"port,omitempty"`     // likewise
	Database  string       `json:"database,omitempty"` // likewise
}

// NewHooks checks cfg. It calls nothing.
func NewHooks(cfg HooksConfig) (*Hooks, error) {
	if cfg.Release == nil {
		return nil, errors.New("router hooks: release is missing: nothing would lead clients to the owner")
	}
	for name, c := range map[string]*hooks.Action{"hold": cfg.Hold, "release": cfg.Release, "reads": cfg.Reads} {
		if c != nil && (len(c.Command) == 0) == (c.URL == "") {
			return nil, fmt.Errorf("router hooks: %s needs one of command and http", name)
		}
	}
	return &Hooks{cfg: cfg}, nil
}

// Hold implements [migrate.Router].
func (r *Hooks) Hold(ctx context.Context, epoch int64) error {
	if err := r.orders.hold(epoch); err != nil {
		return err
	}
	return r.call(ctx, r.cfg.Hold, Order{Order: "hold", Epoch: epoch})
}

// Release implements [migrate.Router].
func (r *Hooks) Release(ctx context.Context, owner migrate.Side, epoch int64) error {
	if _, err := r.orders.release(owner, epoch); err != nil {
		return err
	}
	return r.call(ctx, r.cfg.Release, r.at(owner, Order{Order: "release", Epoch: epoch, Owner: owner}))
}

// Reads implements [migrate.Router].
func (r *Hooks) Reads(ctx context.Context, percent int) error {
	owner, err := r.orders.reads(percent)
	if err != nil {
		return err
	}
	if owner == "" {
		owner = migrate.Source
	}
	return r.call(ctx, r.cfg.Reads, r.at(owner.Other(), Order{Order: "reads", Owner: owner, Percent: percent}))
}

// Stalls implements [migrate.Router]: a hook does not see clients wait.
func (r *Hooks) Stalls() migrate.StallStats { return migrate.StallStats{} }

func (r *Hooks) at(side migrate.Side, o Order) Order {
	if p, ok := r.cfg.Places[side]; ok {
		o.Host, o.Port, o.Database = p.Host(), p.Port(), p.Database()
	}
	return o
}

func (r *Hooks) call(ctx context.Context, c *hooks.Action, o Order) error {
	if c == nil {
		return nil
	}
	o.Migration = r.cfg.Migration
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	err = c.Send(ctx, []string{
		"FICUS_ORDER=" + o.Order, "FICUS_MIGRATION=" + o.Migration, "FICUS_EPOCH=" + strconv.FormatInt(o.Epoch, 10),
		"FICUS_OWNER=" + string(o.Owner), "FICUS_PERCENT=" + strconv.Itoa(o.Percent),
		"FICUS_HOST=" + o.Host, fmt.Sprintf("FICUS_PORT=%d", o.Port), "FICUS_DBNAME=" + o.Database,
	}, body)
	if err != nil {
		return hint.Wrap(fmt.Errorf("router hook %s: %w", o.Order, err), "mend what the hook complains of")
	}
	return nil
}
