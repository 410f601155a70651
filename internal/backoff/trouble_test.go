package backoff_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ficus-migrate/ficus/internal/backoff"
)

// TestTrouble: the newest failure is told, since the first one; it ends when it is over, or when nothing has
// failed for long enough.
func TestTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var trouble backoff.Trouble
		first, second := errors.New("first"), errors.New("second")
		began := time.Now()
		if since := trouble.Note(first); !since.Equal(began) {
			t.Errorf("since %s, want %s", since, began)
		}
		time.Sleep(time.Minute)
		trouble.Note(second)
		if since, err := trouble.Now(); err != second || !since.Equal(began) { //nolint:errorlint // it is kept as it is
			t.Errorf("%v since %s, want %v since %s", err, since, second, began)
		}
		time.Sleep(time.Second)
		trouble.OverAfter(2 * time.Second)
		if _, err := trouble.Now(); err == nil {
			t.Error("it is over too early")
		}
		time.Sleep(2 * time.Second)
		trouble.OverAfter(2 * time.Second)
		if since, err := trouble.Now(); err != nil || !since.IsZero() {
			t.Errorf("%v since %s, and nothing failed for 3 s", err, since)
		}
		trouble.Note(first)
		trouble.Over()
		if _, err := trouble.Now(); err != nil {
			t.Error(err)
		}
	})
}
