package gates

import (
	"context"
	"fmt"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/ficus-migrate/ficus/migrate"
)

// Window is open for a while after every instant that a cron expression names: "0 2 * * 6" with 2h is
// Saturdays from two to four, in the machine's time zone; "CRON_TZ=Europe/Berlin 0 2 * * 6" in that one.
func Window(before migrate.Phase, expression string, length time.Duration) (migrate.Gate, error) {
	schedule, err := cron.ParseStandard(expression)
	if err != nil {
		return nil, fmt.Errorf("window %q: %w", expression, err)
	}
	if length <= 0 {
		return nil, fmt.Errorf("window %q: it is %s long", expression, length)
	}
	return &gate{
		name: "window", before: before, timeout: time.Second,
		wanted: fmt.Sprintf("within %s of %s", length, expression),
		measure: func(context.Context, migrate.Status) (bool, string, error) {
			open, text := within(schedule, length, time.Now())
			return open, text, nil
		},
	}, nil
}

// within says whether now lies in a window, and when the present one ends or the next one begins.
func within(schedule cron.Schedule, length time.Duration, now time.Time) (open bool, text string) {
	began := schedule.Next(now.Add(-length))
	for at := schedule.Next(began); !began.IsZero() && !at.IsZero() && !at.After(now); at = schedule.Next(at) {
		began = at // the newest of those that overlap
	}
	switch {
	case began.IsZero():
		return false, "it never opens"
	case began.After(now):
		return false, "opens at " + began.Format(time.RFC3339)
	}
	return true, "closes at " + began.Add(length).Format(time.RFC3339)
}
