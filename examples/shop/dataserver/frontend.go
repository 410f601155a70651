package dataserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// A FrontEnd sends commands and looks at their orders, for several customers at a time. It keeps what was
// acknowledged.
type FrontEnd struct {
	// URL is where it sends them.
	URL func() string
	// Customers is how many there are. The orders of one are placed one after the other.
	Customers int

	mu struct {
		sync.Mutex
		acked   map[string][]string // sku of each acknowledged command, by customer
		ids     map[string]int64    // order numbers that were told, by command
		reads   int
		refused int // answers that asked to come again
		wrong   []error
	}
}

// Run sends commands until ctx ends, and no customer leaves one unacknowledged: a command is sent, with its
// key, until somebody has taken it.
func (f *FrontEnd) Run(ctx context.Context) {
	f.mu.acked, f.mu.ids = map[string][]string{}, map[string]int64{}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: f.Customers}, Timeout: 40 * time.Second}
	defer client.CloseIdleConnections()
	var customers sync.WaitGroup
	for n := range f.Customers {
		customers.Go(func() {
			name := fmt.Sprintf("customer-%02d", n)
			for i := 0; ctx.Err() == nil; i++ {
				f.order(context.WithoutCancel(ctx), client, name, i)
			}
		})
	}
	customers.Wait()
}

// order places one order; every third waits for its answer and looks at the order.
func (f *FrontEnd) order(ctx context.Context, client *http.Client, customer string, i int) {
	sku := fmt.Sprintf("fig-%05d", i)
	key := customer + "/" + sku
	command := fmt.Sprintf(`{"key":%q,"order":%q,"type":"place-order","payload":{"customer":%q,"sku":%q,"quantity":%d,"total":%d.5}}`,
		key, customer, customer, sku, 1+i%5, 1+i%100)
	prefer := ""
	if i%3 == 0 {
		prefer = "wait=30"
	}
	for {
		status, body, err := f.send(ctx, client, http.MethodPost, "/v1/commands", command, prefer)
		switch {
		case err != nil || status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
			f.note(func() { f.mu.refused++ })
			timer := time.NewTimer(20 * time.Millisecond)
			<-timer.C
			continue
		case status == http.StatusAccepted:
			f.note(func() { f.mu.acked[customer] = append(f.mu.acked[customer], sku) })
			return
		case status != http.StatusOK:
			f.note(func() { f.mu.wrong = append(f.mu.wrong, fmt.Errorf("command %s: %d %s", key, status, body)) })
			return
		}
		var done struct {
			ID int64 `json:"id"`
		}
		if err := json.Unmarshal(body, &done); err != nil || done.ID == 0 {
			f.note(func() { f.mu.wrong = append(f.mu.wrong, fmt.Errorf("command %s: answer %s", key, body)) })
			return
		}
		f.note(func() {
			f.mu.acked[customer] = append(f.mu.acked[customer], sku)
			f.mu.ids[key] = done.ID
		})
		f.look(ctx, client, done.ID)
		return
	}
}

// look reads an order. It may be on its way to the data server that is asked.
func (f *FrontEnd) look(ctx context.Context, client *http.Client, id int64) {
	status, body, err := f.send(ctx, client, http.MethodGet, fmt.Sprintf("/orders/%d", id), "", "")
	if err == nil && status != http.StatusOK && status != http.StatusNotFound {
		f.note(func() { f.mu.wrong = append(f.mu.wrong, fmt.Errorf("read order %d: %d %s", id, status, body)) })
	}
	f.note(func() { f.mu.reads++ })
}

func (f *FrontEnd) send(ctx context.Context, client *http.Client, method, path, body, prefer string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, f.URL()+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if prefer != "" {
		req.Header.Set("Prefer", prefer)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, data, err
}

func (f *FrontEnd) note(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

// Acknowledged returns how many commands were.
func (f *FrontEnd) Acknowledged() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, list := range f.mu.acked {
		n += len(list)
	}
	return n
}

// Check compares what was acknowledged with a database: each command done once, those of a customer in their
// order, and orders found under the numbers that were told.
func (f *FrontEnd) Check(ctx context.Context, g Generation, dsn string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	query := `SELECT id, customer, item FROM till.orders ORDER BY customer, id`
	if g == Successor {
		query = `SELECT id, customer, sku FROM sales.orders ORDER BY customer, id`
	}
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return err
	}
	placed, ids := map[string][]string{}, map[string]int64{}
	var id int64
	var customer, sku string
	if _, err := pgx.ForEachRow(rows, []any{&id, &customer, &sku}, func() error {
		placed[customer] = append(placed[customer], sku)
		ids[customer+"/"+sku] = id
		return nil
	}); err != nil {
		return err
	}
	wrong := f.mu.wrong
	for name, acked := range f.mu.acked {
		if got := placed[name]; strings.Join(got, " ") != strings.Join(acked, " ") {
			wrong = append(wrong, fmt.Errorf("%s: %d commands acknowledged, %d orders placed, or not in their order", name, len(acked), len(got)))
		}
	}
	for key, told := range f.mu.ids {
		if ids[key] != told {
			wrong = append(wrong, fmt.Errorf("%s: told number %d, placed as %d", key, told, ids[key]))
		}
	}
	return errors.Join(wrong...)
}
