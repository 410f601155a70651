package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/ficus-migrate/ficus/migrate"
)

// A story tells what happens: JSON lines, plain lines, or on a terminal lines above one that lives.
// Its methods may be called by several goroutines.
type story struct {
	app      *app
	terminal bool
	began    time.Time
	live     func() string // what the living line says

	stop chan struct{} // ends the living line
	done sync.WaitGroup
	once sync.Once

	mu struct {
		sync.Mutex
		lives bool     // the living line is on the screen
		works bool     // clients are at work, so there is something to show
		spans []window // in which clients were held, in order
		over  bool     // the last JSON line was printed
	}
}

// A window is the time from the beginning of a hold to its release; to is zero while it lasts.
type window struct{ from, to time.Time }

// liveEvery is how often the living line is drawn.
const liveEvery = 250 * time.Millisecond

func newStory(a *app, live func() string) *story {
	s := &story{app: a, live: live, began: time.Now(), stop: make(chan struct{}), terminal: !a.json && isTerminal(a.stdout)}
	if s.terminal {
		s.done.Go(s.draw)
	}
	return s
}

// close takes the living line away.
func (s *story) close() {
	s.once.Do(func() { close(s.stop) })
	s.done.Wait()
}

// draw keeps the last line of the screen up to date.
func (s *story) draw() {
	tick := time.NewTicker(liveEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			s.mu.Lock()
			s.eraseLocked()
			s.mu.Unlock()
			return
		case <-tick.C:
		}
		s.mu.Lock()
		works := s.mu.works
		s.mu.Unlock()
		text := ""
		if works {
			text = s.live()
		}
		s.mu.Lock()
		s.eraseLocked()
		if text != "" {
			fmt.Fprintf(s.app.stdout, "\x1b[2m%s\x1b[0m", fit(text))
			s.mu.lives = true
		}
		s.mu.Unlock()
	}
}

func (s *story) eraseLocked() {
	if s.mu.lives {
		fmt.Fprint(s.app.stdout, "\r\x1b[K")
		s.mu.lives = false
	}
}

// fit cuts a line to the terminal's width: a longer one would stay on the screen.
func fit(text string) string {
	width, _, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	if r := []rune(text); len(r) >= width {
		return string(r[:width-1])
	}
	return text
}

// working says whether clients are at work.
func (s *story) working(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.works = yes
}

// print writes one line above the living one.
func (s *story) print(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eraseLocked()
	fmt.Fprintln(s.app.stdout, text)
}

// title begins a part.
func (s *story) title(text string) {
	if s.app.json {
		return
	}
	s.print("\n" + bold(s.terminal, text) + "\n")
}

// step says what is about to happen.
func (s *story) step(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if s.app.json {
		s.object(map[string]any{"type": "story", "message": text})
		return
	}
	s.print(fmt.Sprintf("%s  %s", s.clock(), bold(s.terminal, text)))
}

// say prints a line without a place in the story.
func (s *story) say(text string) {
	if s.app.json {
		s.object(map[string]any{"type": "story", "message": text})
		return
	}
	s.print(strings.Repeat(" ", len(s.clock())+2) + text)
}

// fact says what came of a step.
func (s *story) fact(typ string, fields map[string]any, text string) {
	if s.app.json {
		object := map[string]any{"type": typ}
		maps.Copy(object, fields)
		s.object(object)
		return
	}
	s.say("  " + text)
}

// object prints one line of JSON, unless the last one was printed.
func (s *story) object(v any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mu.over {
		s.app.object(v)
	}
}

// result prints the last line of JSON.
func (s *story) result(v any) {
	s.object(v)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.over = true
}

func (s *story) clock() string { return fmt.Sprintf("%5.1f s", time.Since(s.began).Seconds()) }

// event takes one event of the migration. Most of the story is told by the script; here is what
// comes unexpected.
func (s *story) event(e migrate.Event) {
	switch {
	case e.Type == "step" && e.Message == "hold: started":
		s.mu.Lock()
		s.mu.spans = append(s.mu.spans, window{from: e.Time})
		s.mu.Unlock()
	case e.Type == "step" && (e.Message == "release: done" || e.Message == "hold: undone"):
		s.mu.Lock()
		if n := len(s.mu.spans); n > 0 && s.mu.spans[n-1].to.IsZero() {
			s.mu.spans[n-1].to = e.Time
		}
		s.mu.Unlock()
	}
	if s.app.json {
		if e.Type != "result" { // the last line alone has that type
			s.object(e)
		}
		return
	}
	switch {
	case e.Type == "finding" && !strings.HasPrefix(e.Message, string(migrate.SeverityInfo)):
		s.say("  " + e.Message)
	case e.Type == "error", e.Type == "link", e.Type == "phase" && strings.Contains(e.Message, ": undone"):
		s.say("! " + e.Message)
	}
}

// holds returns when clients were held, oldest first.
func (s *story) holds() []window {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mu.spans)
}
