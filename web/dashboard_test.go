package web_test

import (
	"context"
	"flag"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/web"
)

var pictures = flag.String("pictures", "", "write pictures of the dashboard to this folder")

// Everything that the page asks for is in the folder, and nothing of it would need another host or
// be refused by the Content-Security-Policy.
func TestFiles(t *testing.T) {
	t.Parallel()
	page := file(t, "index.html")
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"#]+)"`).FindAllStringSubmatch(page, -1) {
		if m[1] == "openapi.yaml" || m[1] == "metrics" {
			continue // the API has them
		}
		if _, err := fs.Stat(web.FS(), m[1]); err != nil {
			t.Errorf("index.html asks for %s: %v", m[1], err)
		}
	}
	if regexp.MustCompile(`<script>|<style|\son[a-z]+=|\sstyle=`).MatchString(page) {
		t.Error("index.html has an inline script or style, which its Content-Security-Policy forbids")
	}
	for _, name := range []string{"index.html", "style.css", "app.js"} {
		text := strings.ReplaceAll(file(t, name), "http://www.w3.org/2000/svg", "")
		if found := regexp.MustCompile(`https?://|@import|url\(|innerHTML|insertAdjacentHTML|\beval\(`).FindString(text); found != "" {
			t.Errorf("%s has %s", name, found)
		}
	}
	script := file(t, "app.js")
	for _, m := range regexp.MustCompile(`\$\("([a-z-]+)"\)`).FindAllStringSubmatch(script, -1) {
		if !strings.Contains(page, `id="`+m[1]+`"`) && m[1] != "lag" {
			t.Errorf("app.js looks for id %s, which index.html does not have", m[1])
		}
	}
	for _, verb := range []migrate.Verb{migrate.Approve, migrate.Pause, migrate.Resume, migrate.Promote, migrate.Rollback, migrate.Complete, migrate.Cancel} {
		if !strings.Contains(script, "  "+string(verb)+": { label:") {
			t.Errorf("app.js has no button %s", verb)
		}
	}
}

func file(t *testing.T, name string) string {
	t.Helper()
	b, err := fs.ReadFile(web.FS(), name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestDashboard(t *testing.T) { //nolint:tparallel // its parts share one page, in order
	t.Parallel()
	service := newShop()
	url := serve(t, service)
	ctx, ok := browser(t)
	if !ok {
		t.Log("no Chromium or Chrome here: only the files were checked (TestFiles)")
		return
	}
	console := chromedp.Console(ctx)

	t.Run("shows", func(t *testing.T) {
		run(t, ctx, chromedp.Navigate(url), chromedp.WaitVisible(chromedp.CSS("#track .now")))
		for id, want := range map[string][]string{
			"name": {"shop", "upgrade"}, "phase": {"following"}, "track": {"copying", "4 min 2 s"},
			"route": {"app@old.example:5432/shop", "source, owns the data"},
			"tiles": {"8.0 kB", "1.5 s behind", "epoch 1", "0 differences", "nothing to roll back"},
			"gates": {"lag", "at most 1.0 MiB", "open", "approval", "for a person"},
			"copy":  {"public.order_items", "2,000,412 rows", "binary"}, "proofs": {"16/B374D848"},
			"steps":      {"follow", "now", "waits for the gates of this phase"},
			"promotions": {"None yet"}, "events": {"gate lag is open", "jo"}, "link": {"live"}, "version": {"v0.0.1"},
		} {
			text := textOf(t, ctx, "#"+id)
			for _, w := range want {
				if !strings.Contains(text, w) {
					t.Errorf("%s shows %q, want %q in it", id, text, w)
				}
			}
		}
		if got := attribute(t, ctx, "#verb-rollback", "title"); got != "the source owns the data" {
			t.Errorf("rollback is off because %q", got)
		}
	})
	t.Run("follows", func(t *testing.T) {
		service.happen(migrate.Event{Type: "phase", Phase: migrate.Verifying, Message: "verifying <b>now</b>"}, func(s *migrate.Status) {
			s.Phase, s.Error, s.Hint = migrate.Verifying, "the two databases differ", "ficus verify shows where"
		})
		eventually(t, ctx, "#phase", "verifying")
		eventually(t, ctx, "#alerts", "What to do: ficus verify shows where")
		eventually(t, ctx, "#events", "verifying <b>now</b>")
	})
	t.Run("clients", func(t *testing.T) {
		if got := textOf(t, ctx, "#traffic"); got != "" {
			t.Errorf("a migration without a router shows %q of its clients", got)
		}
		service.happen(migrate.Event{Type: "progress", Message: "reads"}, func(s *migrate.Status) {
			s.Traffic = &migrate.Traffic{
				Percent: 25, Owner: migrate.ReadFigures{Reads: 3000, P50: time.Millisecond, P95: 4 * time.Millisecond}, Other: migrate.ReadFigures{Reads: 1000, Failed: 3, P50: 2 * time.Millisecond, P95: 5 * time.Millisecond},
				Clients: &migrate.ClientFigures{Connected: 200, Held: 12, Transactions: 1_234_567, Moved: 44},
				Shadow:  &migrate.ShadowFigures{Compared: 900, Mismatched: 2, Mismatches: []migrate.ReadMismatch{{Query: "SELECT <b> FROM t WHERE id = $1", Kind: "values", Columns: []string{"b"}, Count: 2}}},
			}
		})
		for _, want := range []string{"200 clients connected", "12 wait for the switch", "1,234,567", "44 moved", "other, 25 %", "2 ms / 5 ms", "2 answered differently", "SELECT <b> FROM t WHERE id = $1", "values: b"} {
			eventually(t, ctx, "#traffic", want)
		}
	})
	t.Run("pauses", func(t *testing.T) {
		run(t, ctx, chromedp.Click(chromedp.CSS("#verb-pause")))
		eventually(t, ctx, "#answer", "pause is on record")
		if got := service.last(); got.Verb != migrate.Pause || got.Actor != "dashboard" {
			t.Errorf("arrived: %+v", got)
		}
	})
	t.Run("compares", func(t *testing.T) {
		comparing := func(held *migrate.Hold) {
			service.happen(migrate.Event{Type: "progress", Message: "compared"}, func(s *migrate.Status) {
				s.Checked, s.ComparisonPaused = &migrate.Progress{Done: 3_000_000, Total: 4_000_000, Rate: 50_000, Left: 20 * time.Second}, held
			})
		}
		comparing(nil)
		eventually(t, ctx, "#proofs", "3,000,000 of about 4,000,000 rows · 50,000 rows/s · about 20 s left")
		eventually(t, ctx, "#tiles", "comparing")
		run(t, ctx, chromedp.Click(chromedp.CSS("#verb-comparison")))
		eventually(t, ctx, "#answer", "pause-verify is on record")
		comparing(&migrate.Hold{By: "anna", Since: time.Now()})
		eventually(t, ctx, "#proofs", "Comparison paused by anna")
		eventually(t, ctx, "#tiles", "by anna")
		run(t, ctx, chromedp.Click(chromedp.CSS("#verb-comparison")))
		eventually(t, ctx, "#answer", "resume-verify is on record")
		if got := service.last(); got.Verb != migrate.ResumeVerify {
			t.Errorf("arrived: %+v", got)
		}
		service.happen(migrate.Event{Type: "proof", Message: "compared"}, func(s *migrate.Status) {
			s.Checked, s.ComparisonPaused = nil, nil
			s.Proof = &migrate.Proof{Kind: "exact", LSN: 0x16B374D848, Since: 0x16B374D000, Time: time.Now(), Rows: 4_000_000, Tables: 4, Differences: 2, Samples: []string{"public.orders id=5: changed"}}
			s.Promotions = []migrate.Promotion{{Epoch: 2, To: migrate.Target, At: time.Now(), Proof: migrate.Proof{Kind: "delta", Keys: 812, Elapsed: 44 * time.Millisecond}}}
		})
		eventually(t, ctx, "#proofs", "different: 2 rows")
		eventually(t, ctx, "#proofs", "16/B374D000 to 16/B374D848")
		eventually(t, ctx, "#proofs", "public.orders id=5: changed")
		eventually(t, ctx, "#promotions", "812 keys in 44 ms")
		run(t, ctx, chromedp.Click(chromedp.CSS("#verb-pause"))) // what the next part looks back at
		eventually(t, ctx, "#answer", "pause is on record")
	})
	t.Run("asks before it promotes", func(t *testing.T) {
		run(t, ctx, chromedp.Click(chromedp.CSS("#verb-promote")), chromedp.WaitVisible(chromedp.CSS("#confirm")), chromedp.Click(chromedp.CSS("#confirm-back")), chromedp.WaitNotVisible(chromedp.CSS("#confirm")))
		if got := service.last(); got.Verb != migrate.Pause {
			t.Errorf("arrived after going back: %+v", got)
		}
		run(t, ctx, chromedp.Click(chromedp.CSS("#verb-promote")), chromedp.WaitVisible(chromedp.CSS("#confirm")), chromedp.SendKeys(chromedp.CSS("#actor"), "jo"), chromedp.Click(chromedp.CSS("#confirm-yes")))
		eventually(t, ctx, "#answer", "promote is on record")
		if got := service.last(); got.Verb != migrate.Promote || got.Actor != "jo" {
			t.Errorf("arrived: %+v", got)
		}
	})
	t.Run("says why not", func(t *testing.T) {
		before := service.asked()
		run(t, ctx, chromedp.Click(chromedp.CSS("#verb-complete")))
		eventually(t, ctx, "#answer", "the target does not own the data")
		if got := service.asked(); got != before {
			t.Errorf("%d commands arrived, want none", got-before)
		}
		service.refuse(hint.Wrap(migrate.ErrNotNow, "resume it first"))
		run(t, ctx, chromedp.Click(chromedp.CSS("#verb-pause")))
		eventually(t, ctx, "#answer", "resume it first")
	})
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`console.log("`+lastWord+`"), true`)); err != nil {
		t.Fatal(err)
	}
	for _, fault := range faults(console) {
		t.Errorf("browser: %s", fault)
	}
}

func TestDashboardAsksForAToken(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte("0123456789abcdef viewer wall\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	url := serveWith(t, api.Config{Service: newShop(), Tokens: path})
	ctx, ok := browser(t)
	if !ok {
		t.Log("no Chromium or Chrome here: only the files were checked (TestFiles)")
		return
	}
	run(t, ctx, chromedp.Navigate(url), chromedp.WaitVisible(chromedp.CSS("#login")), chromedp.SendKeys(chromedp.CSS("#token"), "0123456789abcdef\n"))
	eventually(t, ctx, "#name", "shop")
	run(t, ctx, chromedp.Click(chromedp.CSS("#verb-pause")))
	eventually(t, ctx, "#answer", "no role operator")
}

// TestPictures draws what docs and reviewers look at: every state, in light and dark, wide and narrow.
func TestPictures(t *testing.T) {
	t.Parallel()
	if *pictures == "" {
		t.Log("-pictures was not given")
		return
	}
	for name, state := range states() {
		service := newShop()
		service.happen(migrate.Event{Type: "phase", Phase: migrate.Following, Message: "following"}, state)
		url := serve(t, service)
		ctx, ok := browser(t)
		if !ok {
			t.Fatal("-pictures needs Chromium or Chrome")
		}
		for _, scheme := range []string{"light", "dark"} {
			for size, width := range map[string]int64{"wide": 1280, "phone": 390} {
				media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}
				if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, media); err != nil {
					t.Fatal(err)
				}
				run(t, ctx, chromedp.EmulateViewport(width, 800), chromedp.Navigate(url), chromedp.WaitVisible(chromedp.CSS("#track li")))
				for i := range 5 {
					service.set(func(s *migrate.Status) {
						if s.Lag != nil {
							s.Lag.Bytes, s.Lag.Rows = []int64{9000, 200_000, 80_000, 300_000, 8192}[i], s.Lag.Rows+900
						}
					})
					run(t, ctx, chromedp.Sleep(time.Second))
				}
				picture(t, ctx, chromedp.FullScreenshot(100), name+"-"+size+"-"+scheme)
				if name == "promoted" {
					run(t, ctx, chromedp.Click(chromedp.CSS("#verb-rollback")), chromedp.WaitVisible(chromedp.CSS("#confirm")))
					picture(t, ctx, chromedp.CaptureScreenshot(), "dialog-"+size+"-"+scheme)
				}
			}
		}
	}
}

func picture(t *testing.T, ctx context.Context, take chromedp.Action[[]byte], name string) { //nolint:revive // chromedp's context is the browser
	t.Helper()
	png, err := chromedp.Run(ctx, take)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*pictures, name+".png"), png, 0o600); err != nil {
		t.Fatal(err)
	}
}

// browser starts a browser of the test's own; ok is false where there is none.
func browser(t *testing.T) (ctx context.Context, ok bool) {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		return nil, false
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.UserDataDir(t.TempDir()),
		chromedp.WSURLReadTimeout(time.Minute), chromedp.WindowSize(1280, 900))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 3*time.Minute) // cleanups come after its end
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, _ = chromedp.NewContext(ctx)
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Logf("stop browser: %v", err)
		}
	})
	run(t, ctx) // starts it
	return ctx, true
}

// faults returns what the console said so far and should not have: exceptions, and what the
// Content-Security-Policy refused. Answers of status 409 are there too, and are no faults.
func faults(messages iter.Seq2[chromedp.ConsoleMessage, error]) []string {
	var all []string
	for m, err := range messages {
		if err != nil || m.Text == lastWord {
			break
		}
		if m.IsException() || m.Type == "error" && m.Source != "network" {
			all = append(all, m.String())
		}
	}
	return all
}

// lastWord is what a test writes to the console to end it.
const lastWord = "no more"

func run(t *testing.T, ctx context.Context, steps ...chromedp.Action[chromedp.Void]) { //nolint:revive // chromedp's context is the browser
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatalf("browser: %v", err)
	}
}

func textOf(t *testing.T, ctx context.Context, selector string) string { //nolint:revive // as above
	t.Helper()
	text, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS(selector)))
	if err != nil {
		t.Fatalf("browser: text of %s: %v", selector, err)
	}
	return strings.Join(strings.Fields(text), " ")
}

func attribute(t *testing.T, ctx context.Context, selector, name string) string { //nolint:revive // as above
	t.Helper()
	got, err := chromedp.Run(ctx, chromedp.AttributeValue(chromedp.CSS(selector), name))
	if err != nil {
		t.Fatalf("browser: %s of %s: %v", name, selector, err)
	}
	return got.Value
}

func eventually(t *testing.T, ctx context.Context, selector, want string) { //nolint:revive // as above
	t.Helper()
	look, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		got := textOf(t, ctx, selector)
		if strings.Contains(got, want) {
			return
		}
		select {
		case <-tick.C:
		case <-look.Done():
			t.Fatalf("%s shows %q, want %q", selector, got, want)
		}
	}
}

func serve(t *testing.T, service api.Service) string {
	t.Helper()
	return serveWith(t, api.Config{Service: service})
}

func serveWith(t *testing.T, cfg api.Config) string {
	t.Helper()
	cfg.Listen, cfg.Web, cfg.Version = "127.0.0.1:0", web.FS(), "v0.0.1"
	server, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	<-server.Listening()
	return server.URL()
}

// shop is a Service with one migration.
type shop struct {
	mu       sync.Mutex
	status   migrate.Status
	events   []migrate.Event
	changed  chan struct{}
	commands []migrate.Command
	refusal  error
}

func (s *shop) List() []migrate.Status { st, _ := s.Get("shop"); return []migrate.Status{st} }

func (s *shop) Get(string) (migrate.Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	if st.Lag != nil {
		l := *st.Lag
		st.Lag = &l
	}
	return st, nil
}

func (s *shop) Events(ctx context.Context, _ string, after int64) (iter.Seq2[migrate.Event, error], error) {
	return func(yield func(migrate.Event, error) bool) {
		for {
			s.mu.Lock()
			news, changed := s.events[after:], s.changed
			s.mu.Unlock()
			for _, e := range news {
				if !yield(e, nil) {
					return
				}
				after = e.Seq
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}, nil
}

func (s *shop) Do(_ context.Context, _ string, c migrate.Command) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commands = append(s.commands, c)
	return s.refusal
}

func (s *shop) Verify(context.Context, string, api.VerifyRequest) (api.Comparison, error) {
	return api.Comparison{}, migrate.ErrNotNow
}

func (s *shop) Steps(string) ([]migrate.Step, error) { return migrate.Steps(migrate.Settings{}), nil }

func (s *shop) Evidence(context.Context, string) ([]byte, error) { return nil, api.ErrNotFound }

func (s *shop) Amend(context.Context, string, api.AmendRequest) error { return migrate.ErrNotNow }

func (s *shop) Start(context.Context, api.StartRequest) (migrate.Status, error) {
	return migrate.Status{}, api.ErrFixed
}

func (s *shop) set(change func(*migrate.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

func (s *shop) happen(e migrate.Event, change func(*migrate.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
	e.Seq, e.Time = int64(len(s.events)+1), time.Now()
	s.status.Seq = e.Seq
	s.events = append(s.events, e)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *shop) refuse(err error) { s.mu.Lock(); defer s.mu.Unlock(); s.refusal = err }

func (s *shop) asked() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.commands) }

func (s *shop) last() migrate.Command {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.commands) == 0 {
		return migrate.Command{}
	}
	return s.commands[len(s.commands)-1]
}
