// Package rest is a node's HTTP door for operators: GET /metrics in Prometheus' text form,
// /healthz for whoever decides whether the node gets traffic, and /status, which shows the
// state of every component as JSON. Further paths ([Options.Routes]) show or change what the
// program that owns the node lets operators change.
//
// It does not authenticate: its listener belongs on localhost or an operators' network. Changes
// are POSTs of JSON, which a web page elsewhere cannot make a browser send. Answers are bounded
// by what the components write.
package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/pprofhandler"
)

// Limits of the server: it serves a few scrapers and people.
const (
	connectionsMax  = 256
	requestBytesMax = 16 << 10 // bodies name a few nodes and numbers
	readTimeout     = 10 * time.Second
	writeTimeout    = 60 * time.Second // contains the time that a route takes
	idleTimeout     = 2 * time.Minute
	shutdownTimeout = 2 * time.Second // for answers under way
)

// profilesPath is where profiles are served. One takes at most writeTimeout.
const profilesPath = "/debug/pprof/"

// Component is a part of the node that shows itself.
type Component interface {
	WritePrometheus(w io.Writer)
	Status() any // fit for JSON
}

// Route is a path of its own. Get shows something as JSON; Post takes a JSON body and answers with
// JSON, or with {} for nil. Either may be nil. An error that implements Status() int chooses the HTTP
// status, which is 500 otherwise.
type Route struct {
	Get  func(ctx context.Context) (any, error)
	Post func(ctx context.Context, body []byte) (any, error)
}

// Options of a Server.
type Options struct {
	Listen     string               // host:port
	Components map[string]Component // by the name under which /status shows them
	Routes     map[string]Route     // by path
	Health     func() error         // why the node cannot serve; nil when it can
	Version    string
	// Profiles are served at /debug/pprof/, as package net/http/pprof does, for go tool pprof. They show what the node does and cost it
	// something while one is taken, so they are off unless asked for.
	Profiles bool
	Logger   *slog.Logger // nil discards
}

// Server listens from Open on and answers while Run runs.
type Server struct {
	options  Options
	listener net.Listener
	set      *metrics.Set
	requests map[string]*metrics.Counter
	begun    time.Time
}

// Open listens.
func Open(o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for HTTP: %w", err)
	}
	s := &Server{options: o, listener: l, set: metrics.NewSet(), requests: make(map[string]*metrics.Counter), begun: time.Now()}
	for _, path := range append([]string{"/metrics", "/healthz", "/status", "other"}, slices.Sorted(maps.Keys(o.Routes))...) {
		s.requests[path] = s.set.NewCounter(fmt.Sprintf("sluice_rest_requests_total{path=%q}", path))
	}
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run answers until ctx ends, and closes the listener.
func (s *Server) Run(ctx context.Context) error {
	server := &fasthttp.Server{
		Handler: s.serve, Name: "sluice", Concurrency: connectionsMax, MaxRequestBodySize: requestBytesMax, ReadBufferSize: requestBytesMax,
		ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, CloseOnShutdown: true, Logger: quiet{},
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(s.listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.ShutdownWithContext(end); err != nil {
		s.options.Logger.Warn("some HTTP answers were cut", "error", err)
	}
	<-done
	return nil
}

// quiet drops what fasthttp logs: clients that break off are not news.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

func (s *Server) serve(ctx *fasthttp.RequestCtx) {
	path := string(ctx.Path())
	if c := s.requests[path]; c != nil {
		c.Inc()
	} else {
		s.requests["other"].Inc()
	}
	if route, ok := s.options.Routes[path]; ok {
		s.route(ctx, route)
		return
	}
	if !ctx.IsGet() && !ctx.IsHead() {
		ctx.Response.Header.Set("Allow", "GET, HEAD")
		fail(ctx, fasthttp.StatusMethodNotAllowed, "only GET is served", "")
		return
	}
	if s.options.Profiles && strings.HasPrefix(path, profilesPath) {
		pprofhandler.PprofHandler(ctx)
		return
	}
	switch path {
	case "/metrics":
		s.metrics(ctx)
	case "/healthz":
		s.health(ctx)
	case "/status":
		s.status(ctx)
	default:
		fail(ctx, fasthttp.StatusNotFound, "nothing is here", "try /metrics, /healthz or /status")
	}
}

func (s *Server) metrics(ctx *fasthttp.RequestCtx) {
	ctx.SetContentType("text/plain; version=0.0.4; charset=utf-8")
	for _, name := range s.names() {
		s.options.Components[name].WritePrometheus(ctx)
	}
	s.set.WritePrometheus(ctx)
	metrics.WriteProcessMetrics(ctx)
}

func (s *Server) health(ctx *fasthttp.RequestCtx) {
	if s.options.Health != nil {
		if err := s.options.Health(); err != nil {
			fail(ctx, fasthttp.StatusServiceUnavailable, err.Error(), "see /status")
			return
		}
	}
	ctx.SetContentType("text/plain; charset=utf-8")
	ctx.SetBodyString("ok\n")
}

// status writes {"<component>": {...}, "process": {...}}; ?component=a,b chooses.
func (s *Server) status(ctx *fasthttp.RequestCtx) {
	out := make(map[string]any)
	wanted := string(ctx.QueryArgs().Peek("component"))
	for _, name := range s.names() {
		if wanted == "" || slices.Contains(strings.Split(wanted, ","), name) {
			out[name] = s.options.Components[name].Status()
		}
	}
	out["process"] = map[string]any{"version": s.options.Version, "uptimeSeconds": int64(time.Since(s.begun).Seconds())}
	writeJSON(ctx, "status", out)
}

func (s *Server) names() []string { return slices.Sorted(maps.Keys(s.options.Components)) }

func fail(ctx *fasthttp.RequestCtx, code int, message, hint string) {
	body := map[string]string{"error": message}
	if hint != "" {
		body["hint"] = hint
	}
	text, err := json.Marshal(body)
	if err != nil {
		panic("BUG: an error message is no JSON: " + err.Error())
	}
	ctx.SetStatusCode(code)
	ctx.SetContentType("application/json")
	ctx.SetBody(append(text, '\n'))
}
