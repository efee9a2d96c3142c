// Package http is the gateway's HTTP door: messages come in at POST /v1/ingest/<mqtt topic>, and /metrics, /healthz and /status
// show the process. 200 is answered after the sync that covers the whole request; a batch is stored whole or not at all.
package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"

	"sluice/edge/buffer"
	"sluice/edge/ingest"
)

// Part is what a component shows.
type Part interface {
	WritePrometheus(w io.Writer)
	Status() any // JSON-able
}

// Component is a part and its name in /status.
type Component struct {
	Name string
	Part Part
}

// Login decides who may send. A name that is not known is answered 401, a topic that is not allowed 403.
type Login interface {
	MayPublish(name string, password []byte, topic string) (known, allowed bool)
}

// Options of Open.
type Options struct {
	Door    *ingest.Door
	Journal *ingest.Journal
	Login   Login
	Logger  *slog.Logger
}

// Bounds of the server.
const (
	connectionsMax = 4096
	// writeTimeout is how long a client may take to read an answer.
	writeTimeout = 20 * time.Second
	// idleTimeout closes connections that say nothing.
	idleTimeout = 2 * time.Minute
)

// Server is open between Open and the end of Run.
type Server struct {
	config   Config
	door     *ingest.Door
	login    Login
	logger   *slog.Logger
	keys     *keys
	listener net.Listener
	server   *fasthttp.Server
	metrics  *meters
	started  time.Time
	stop     context.Context
	cancel   context.CancelFunc

	mu struct {
		sync.Mutex
		components []Component
	}
}

type meters struct {
	set                                   *metrics.Set
	accepted, refused, repeated, requests *metrics.Counter
	seconds                               *metrics.Histogram
}

func newMeters() *meters {
	s := metrics.NewSet()
	return &meters{
		set:      s,
		requests: s.NewCounter("sluice_http_ingest_requests_total"),
		accepted: s.NewCounter("sluice_http_accepted_messages_total"),
		refused:  s.NewCounter("sluice_http_refused_requests_total"),
		repeated: s.NewCounter("sluice_http_recognised_repeats_total"),
		seconds:  s.NewHistogram("sluice_http_ingest_seconds"),
	}
}

// Open listens; it serves nothing before Run.
func Open(c Config, o Options) (*Server, error) {
	s := &Server{config: c, door: o.Door, login: o.Login, logger: o.Logger, keys: newKeys(), metrics: newMeters(), started: time.Now()}
	s.stop, s.cancel = context.WithCancel(context.Background())
	o.Journal.Register(journalKind, s.keys)
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for http: %w", err)
	}
	s.listener = l
	s.server = &fasthttp.Server{
		Handler: s.handle, Name: "sluice", MaxRequestBodySize: c.MaxBodyBytes, Concurrency: connectionsMax,
		ReadTimeout: c.Timeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, NoDefaultContentType: true,
		CloseOnShutdown: true, ErrorHandler: s.refuseBroken, Logger: quiet{}, TCPKeepalive: true,
		// Bodies are read by us as they come (see body): the library makes room for all that a header announces, and few clients would do to
		// take a small box's memory.
		StreamRequestBody: true, DisablePreParseMultipartForm: true,
	}
	return s, nil
}

// quiet drops what fasthttp says about clients' broken requests: they are answered and counted.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

// Show adds a component to /metrics and /status.
func (s *Server) Show(c Component) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.components = append(s.mu.components, c)
}

func (s *Server) components() []Component {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Component{{"http", s}}, s.mu.components...)
}

// Addr is the address it listens on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Close gives back what Open took; for when Run is not reached.
func (s *Server) Close() error {
	s.cancel()
	return s.listener.Close()
}

// Run serves until ctx ends, then lets the requests that are there finish.
func (s *Server) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.server.Serve(s.listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve http: %w", err)
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Timeout)
	defer cancel()
	err := s.server.ShutdownWithContext(late)
	s.listener.Close() // Shutdown does not know it when Serve has not come that far
	s.cancel()
	if err != nil {
		return fmt.Errorf("stop http: %w", err)
	}
	return <-done
}

// WritePrometheus writes the door's metrics.
func (s *Server) WritePrometheus(w io.Writer) { s.metrics.set.WritePrometheus(w) }

// Status is the door's state.
func (s *Server) Status() any {
	return map[string]any{"listen": s.Addr(), "open_connections": s.server.GetOpenConnectionsCount()}
}

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	if hasBody(ctx) { // until it is read, nothing else can follow on the connection
		ctx.SetConnectionClose()
	}
	path := string(ctx.Path())
	switch {
	case path == "/metrics":
		s.get(ctx, s.showMetrics)
	case path == "/healthz":
		s.get(ctx, s.showHealth)
	case path == "/status":
		s.get(ctx, s.showStatus)
	case len(path) >= len(ingestPath) && path[:len(ingestPath)] == ingestPath:
		s.ingest(ctx)
	default:
		fail(ctx, fasthttp.StatusNotFound, "there is nothing at "+path, "messages go to POST /v1/ingest/<mqtt topic>; /metrics, /healthz and /status show the gateway")
	}
}

func (s *Server) get(ctx *fasthttp.RequestCtx, show func(*fasthttp.RequestCtx)) {
	if !ctx.IsGet() && !ctx.IsHead() {
		ctx.Response.Header.Set("Allow", "GET, HEAD")
		fail(ctx, fasthttp.StatusMethodNotAllowed, string(ctx.Method())+" is not allowed here", "use GET")
		return
	}
	show(ctx)
}

func (s *Server) showMetrics(ctx *fasthttp.RequestCtx) {
	ctx.SetContentType("text/plain; version=0.0.4; charset=utf-8")
	for _, c := range s.components() {
		c.Part.WritePrometheus(ctx)
	}
	metrics.WriteProcessMetrics(ctx)
}

func (s *Server) showHealth(ctx *fasthttp.RequestCtx) {
	if err := s.door.Buffer().Err(); err != nil {
		fail(ctx, fasthttp.StatusServiceUnavailable, err.Error(), "look at the disk, then restart the gateway: nothing it acknowledged is lost")
		return
	}
	answer(ctx, map[string]string{"status": "ok"})
}

func (s *Server) showStatus(ctx *fasthttp.RequestCtx) {
	status := map[string]any{"uptime_seconds": int64(time.Since(s.started).Seconds())}
	for _, c := range s.components() {
		status[c.Name] = c.Part.Status()
	}
	answer(ctx, status)
}

func answer(ctx *fasthttp.RequestCtx, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("BUG: an answer does not encode: " + err.Error())
	}
	ctx.SetContentType("application/json")
	ctx.SetBody(append(b, '\n'))
}

// fail answers with an error that a person can act on.
func fail(ctx *fasthttp.RequestCtx, code int, text, hint string) {
	ctx.SetStatusCode(code)
	answer(ctx, map[string]string{"error": text, "hint": hint})
}

// refuseBroken answers requests that fasthttp could not read.
func (s *Server) refuseBroken(ctx *fasthttp.RequestCtx, err error) {
	s.metrics.refused.Inc()
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		fail(ctx, fasthttp.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", s.config.MaxBodyBytes), "send smaller batches, or raise http.maxBodyBytes")
	case errors.As(err, &small):
		fail(ctx, fasthttp.StatusRequestHeaderFieldsTooLarge, "the headers are too large", "send fewer or shorter headers")
	case errors.As(err, &netErr) && netErr.Timeout():
		fail(ctx, fasthttp.StatusRequestTimeout, "the request took too long to arrive", "send it again")
	default:
		fail(ctx, fasthttp.StatusBadRequest, "the request is not HTTP: "+err.Error(), "look at what is sent")
	}
}

// failFor maps the buffer's errors.
func failFor(ctx *fasthttp.RequestCtx, err error) {
	switch {
	case errors.Is(err, buffer.ErrFull):
		ctx.Response.Header.Set("Retry-After", "5")
		fail(ctx, fasthttp.StatusTooManyRequests, err.Error(), "send it again when the core can be reached, or raise the buffer's budget")
	case errors.Is(err, buffer.ErrStopped), errors.Is(err, context.Canceled):
		ctx.Response.Header.Set("Retry-After", "5")
		fail(ctx, fasthttp.StatusServiceUnavailable, "the gateway is stopping", "send it again")
	case errors.Is(err, context.DeadlineExceeded):
		fail(ctx, fasthttp.StatusServiceUnavailable, "the disk did not answer in time: whether the message is stored is not known", "send it again with the same Idempotency-Key")
	default:
		fail(ctx, fasthttp.StatusServiceUnavailable, err.Error(), "look at the gateway's disk and log")
	}
}
