package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/ficus-migrate/ficus/migrate"
)

// The stream of a migration, as server-sent events (HTML Living Standard, section 9.2):
//
//	id: 17                      an Event that is kept; passing ones have no id
//	event: gate                 its type
//	data: {"seq":17,...}        the Event
//
//	event: status               the whole Status, first of all and then whenever it changed
//	data: {"name":...}
//
//	event: problem              the stream cannot go on; it ends here
//	data: {"code":...}
//
//	:                           heartbeat
const (
	eventStatus  = "status"
	eventProblem = "problem"
)

// events streams what happened after Last-Event-ID, or ?after=, and goes on as it happens.
func (s *Server) events(c *gin.Context) {
	name := c.Param("name")
	after, p := afterOf(c)
	if p != nil {
		s.refuse(c, p)
		return
	}
	ctx, stop := context.WithCancel(c.Request.Context())
	defer stop()
	seq, err := s.cfg.Service.Events(ctx, name, after)
	if err != nil {
		s.refuse(c, problemOf(err, CodeInternal))
		return
	}
	c.Header("Content-Type", "text/event-stream")
	c.Header("X-Accel-Buffering", "no") // a proxy in between must not keep events back
	c.Status(http.StatusOK)
	st := &stream{w: c.Writer, control: http.NewResponseController(c.Writer), service: s.cfg.Service, name: name}
	if err := s.pump(ctx, stop, st, seq); err != nil {
		s.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "event stream ended", slog.String("migration", name), slog.Any("err", err))
	}
}

func afterOf(c *gin.Context) (int64, *Problem) {
	word, from := c.GetHeader("Last-Event-ID"), "Last-Event-ID"
	if word == "" {
		word, from = c.Query("after"), "after"
	}
	if word == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil || n < 0 {
		return 0, problem(CodeBadRequest, fmt.Sprintf("%s is %q, which is no sequence number", from, word), "give the id of the last event that you saw, or 0")
	}
	return n, nil
}

// A pulled event is one step of a Service's sequence.
type pulled struct {
	event migrate.Event
	err   error
}

// pump writes events, statuses and heartbeats until ctx or the sequence ends.
func (s *Server) pump(ctx context.Context, stop func(), st *stream, seq iter.Seq2[migrate.Event, error]) error {
	events := make(chan pulled)
	var puller sync.WaitGroup
	puller.Go(func() { // the sequence blocks, and the stream must beat meanwhile
		defer close(events)
		for e, err := range seq {
			select {
			case events <- pulled{e, err}:
			case <-ctx.Done():
				return
			}
		}
	})
	defer puller.Wait()
	defer stop()

	beat := time.NewTicker(s.cfg.Heartbeat)
	defer beat.Stop()
	look := time.NewTicker(s.cfg.StatusEvery)
	defer look.Stop()
	if err := st.status(); err != nil {
		return err
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case p, ok := <-events:
			if !ok {
				return nil
			}
			err = st.event(p)
		case <-beat.C:
			err = st.write([]byte(":\n\n"))
		case <-look.C:
			err = st.status()
		}
		if err != nil {
			return err
		}
	}
}

// A stream writes to one client.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	service Service
	name    string
	shown   []byte // the last status, as sent
}

func (st *stream) event(p pulled) error {
	if p.err != nil {
		if err := st.send(0, eventProblem, problemOf(p.err, CodeInternal)); err != nil {
			return err
		}
		return p.err
	}
	return st.send(p.event.Seq, p.event.Type, p.event)
}

// status sends the status when it changed.
func (st *stream) status() error {
	now, err := st.service.Get(st.name)
	if err != nil {
		return st.event(pulled{err: err})
	}
	data, err := json.Marshal(now)
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	if bytes.Equal(data, st.shown) {
		return nil
	}
	st.shown = data
	return st.send(0, eventStatus, json.RawMessage(data))
}

func (st *stream) send(id int64, event string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	var b bytes.Buffer
	if id > 0 {
		fmt.Fprintf(&b, "id: %d\n", id)
	}
	fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", event, data)
	return st.write(b.Bytes())
}

// write gives up on a client that takes nothing.
func (st *stream) write(b []byte) error {
	if err := st.control.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("set deadline of event stream: %w", err)
	}
	if _, err := st.w.Write(b); err != nil {
		return fmt.Errorf("write event stream: %w", err)
	}
	return st.control.Flush()
}
