package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/verify"
)

// What "ficus verify NAME --repair" does: the follower's rows are mended while the link runs.

const (
	// maxLiveRepairs is how many rows of a table are mended while applying stands still for it; more are
	// better copied anew.
	maxLiveRepairs = 10_000
	// mendBudget is how long applying may stand still for it. Clients do not notice; the owner keeps its WAL.
	mendBudget = time.Minute
	// markSQL is how the watch over writes of strangers knows a transaction for ours: it changes schema ficus.
	markSQL = "UPDATE ficus.ownership SET changed_at = changed_at"
)

// repair answers with the SQL that mends what differs, and mends it, as far as it was asked for.
func (v *verifier) repair(ctx context.Context, s *verify.Session, report *verify.Report, r api.VerifyRequest, c *api.Comparison) error {
	if r.Repair && len(report.Repairs) > 0 {
		var b strings.Builder
		fmt.Fprintf(&b, "-- for %s while it does not apply (ficus pause %[1]s): the rows below may have changed since.\n-- ficus verify %[1]s --repair FILE --apply does it while it applies\n", v.engine.job.playbook.Name)
		if err := report.WriteRepairs(&b); err != nil {
			return err
		}
		c.SQL, c.Repairs = b.String(), len(report.Repairs)
	}
	if !r.Apply || len(report.Repairs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, mendBudget, fmt.Errorf("applying may stand still for %s for it", mendBudget))
	defer cancel()
	mended, err := s.MendFollowing(ctx, report)
	if err != nil {
		if hint.Of(err) == "" {
			err = hint.Wrap(err, "compare again; where many rows differ, copy the table anew: ficus resync %s TABLE", v.engine.job.playbook.Name)
		}
		return fmt.Errorf("mend the follower: %w", err)
	}
	p, err := v.proof(mended.Again, false)
	if err != nil {
		return err
	}
	v.engine.migration.Mended(r.Actor, len(mended.Repairs), p)
	c.Mended = &api.Mended{Rows: len(mended.Repairs), Proof: p}
	return nil
}
