package api

import (
	_ "embed"
	"fmt"
	"io/fs"
	"net/http"
	"runtime/debug"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

//go:embed openapi.yaml
var openAPI []byte

// route builds the handler. openapi.yaml describes every route but the dashboard's files, and a
// test holds the two equal.
func (s *Server) route() error {
	gin.SetMode(gin.ReleaseMode) // otherwise gin writes to standard output, which is the command line's
	e := gin.New()
	e.HandleMethodNotAllowed = true
	e.RedirectTrailingSlash = false
	e.UseRawPath = true
	if err := e.SetTrustedProxies(nil); err != nil {
		return err
	}
	e.Use(s.survive, s.traffic.count, secure, s.guard)
	e.NoRoute(func(c *gin.Context) {
		s.refuse(c, problem(CodeNotFound, fmt.Sprintf("nothing is at %s", c.Request.URL.Path), "/openapi.yaml lists what is here"))
	})
	e.NoMethod(func(c *gin.Context) {
		s.refuse(c, problem(CodeMethodNotAllowed, fmt.Sprintf("%s does not take %s", c.Request.URL.Path, c.Request.Method), "/openapi.yaml lists what is here"))
	})

	registry, err := s.newRegistry()
	if err != nil {
		return err
	}
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	e.GET("/healthz", s.health)
	e.GET("/readyz", s.ready)
	e.GET("/openapi.yaml", func(c *gin.Context) { c.Data(http.StatusOK, "application/yaml", openAPI) })
	e.GET("/metrics", s.need(Viewer), gin.WrapH(metrics))

	v1 := e.Group("/v1", func(c *gin.Context) { c.Header("Cache-Control", "no-store") })
	v1.GET("/migrations", s.need(Viewer), s.list)
	v1.POST("/migrations", s.need(Operator), s.start)
	v1.GET("/migrations/:name", s.need(Viewer), s.show)
	v1.GET("/migrations/:name/steps", s.need(Viewer), s.steps)
	v1.GET("/migrations/:name/events", s.need(Viewer), s.events)
	v1.POST("/migrations/:name/playbook", s.need(Operator), s.amend)
	v1.POST("/migrations/:name/verify", s.need(Operator), s.verify)
	v1.GET("/migrations/:name/evidence", s.need(Viewer), s.evidence)
	v1.GET("/migrations/:name/commands", s.need(Viewer), s.listCommands)
	v1.GET("/migrations/:name/commands/:key", s.need(Viewer), s.showCommand)
	v1.POST("/migrations/:name/commands/:key/requeue", s.need(Operator), s.requeueCommand)
	v1.POST("/migrations/:name/commands/:key/drop", s.need(Operator), s.dropCommand)
	v1.POST("/migrations/:name/:verb", s.need(Viewer), s.command)
	s.routes = e.Routes()

	if err := s.routeWeb(e); err != nil {
		return err
	}
	s.handler = e
	return nil
}

// routeWeb serves the dashboard: index.html at /, the other files under their names. They hold no
// data, so they need no token.
func (s *Server) routeWeb(e *gin.Engine) error {
	if s.cfg.Web == nil {
		return nil
	}
	files, err := fs.ReadDir(s.cfg.Web, ".")
	if err != nil {
		return fmt.Errorf("read the dashboard's files: %w", err)
	}
	for _, f := range files {
		path := "/" + f.Name()
		if f.Name() == "index.html" {
			path = "/"
		}
		e.GET(path, func(c *gin.Context) { http.ServeFileFS(c.Writer, c.Request, s.cfg.Web, f.Name()) })
	}
	return nil
}

// survive keeps a panic of one request from ending the process.
func (s *Server) survive(c *gin.Context) {
	defer func() {
		switch cause := recover(); {
		case cause == nil:
		case cause == any(http.ErrAbortHandler):
			panic(cause)
		default:
			s.recovered(c, cause, debug.Stack())
		}
	}()
	c.Next()
}

// Health is the answer of /healthz and /readyz.
type Health struct {
	Status  string `json:"status"` // ok, ready
	Version string `json:"version"`
}

// health answers as long as the process does.
func (s *Server) health(c *gin.Context) {
	c.JSON(http.StatusOK, Health{Status: "ok", Version: s.cfg.Version})
}

// ready answers 503 once the process is about to end.
func (s *Server) ready(c *gin.Context) {
	if c.Request.Context().Err() != nil {
		s.refuse(c, problemOf(errStopping, CodeStopping))
		return
	}
	c.JSON(http.StatusOK, Health{Status: "ready", Version: s.cfg.Version})
}
