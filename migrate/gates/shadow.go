package gates

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/migrate"
)

// Shadow is open once at least least shadow reads were compared, of which no more than that share was
// answered otherwise.
func Shadow(before migrate.Phase, least int64, share float64) migrate.Gate {
	return &gate{
		name: "shadow", before: before, timeout: time.Second, wanted: fmt.Sprintf("at least %d reads compared, at most %g %% answered otherwise", least, 100*share),
		measure: func(_ context.Context, s migrate.Status) (open bool, measured string, err error) {
			if s.Traffic == nil || s.Traffic.Shadow == nil {
				return false, "", errors.New("the router runs no shadow reads")
			}
			f := s.Traffic.Shadow
			measured = fmt.Sprintf("%d compared, %d answered otherwise", f.Compared, f.Mismatched)
			if len(f.Mismatches) > 0 {
				measured += ", for example " + shorten(f.Mismatches[0].Query)
			}
			return f.Compared >= least && float64(f.Mismatched) <= share*float64(f.Compared), measured, nil
		},
	}
}
