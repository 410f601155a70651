package web_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/ficus-migrate/ficus/api"
)

// inbox is a shop whose clients send commands.
type inbox struct {
	*shop

	mu   sync.Mutex
	dead bool
}

func (s *inbox) ListCommands(string, api.ListCommandsRequest) ([]api.CommandEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := api.CommandEntry{Seq: 7, Key: "jo/17 <b>", Order: "jo", Type: "place-order", State: "waiting", Accepted: time.Now()}
	if s.dead {
		e.State, e.Error = "dead", "answered 500"
	}
	return []api.CommandEntry{e}, nil
}

func (s *inbox) ShowCommand(context.Context, string, string, bool) (api.CommandEntry, error) {
	list, err := s.ListCommands("", api.ListCommandsRequest{})
	return list[0], err
}

func (s *inbox) RequeueCommand(_ context.Context, _, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = s.dead && key != "jo/17 <b>"
	return nil
}

func (s *inbox) DropCommand(context.Context, string, string) error { return api.ErrCommandState }

// Commands of clients are shown as long as they are not over, and a dead one is sent again by a button.
func TestInbox(t *testing.T) {
	t.Parallel()
	service := &inbox{shop: newShop(), dead: true}
	url := serve(t, service)
	ctx, ok := browser(t)
	if !ok {
		t.Log("no Chromium or Chrome here")
		return
	}
	run(t, ctx, chromedp.Navigate(url), chromedp.WaitVisible(chromedp.CSS("#inbox table")))
	for _, want := range []string{"jo/17 <b>", "answered 500", "place-order", "dead"} {
		eventually(t, ctx, "#inbox", want)
	}
	run(t, ctx, chromedp.Click(chromedp.CSS("#inbox button")))
	eventually(t, ctx, "#inbox", "waiting")
}
