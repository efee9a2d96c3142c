package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"mime"
	"time"

	"github.com/valyala/fasthttp"
)

// routeTimeout bounds what a route does, so that its answer can still be written.
const routeTimeout = 45 * time.Second

// Hinter is implemented by errors that say what to do about them.
type Hinter interface{ Hint() string }

func (s *Server) route(ctx *fasthttp.RequestCtx, r Route) {
	work, cancel := context.WithTimeout(context.Background(), routeTimeout)
	defer cancel()
	var out any
	var err error
	switch {
	case (ctx.IsGet() || ctx.IsHead()) && r.Get != nil:
		out, err = r.Get(work)
	case ctx.IsPost() && r.Post != nil:
		if kind, _, _ := mime.ParseMediaType(string(ctx.Request.Header.ContentType())); kind != "application/json" {
			fail(ctx, fasthttp.StatusUnsupportedMediaType, "the body must be application/json", "curl -H 'Content-Type: application/json' -d '{...}'")
			return
		}
		out, err = r.Post(work, bytes.Clone(ctx.PostBody()))
	default:
		ctx.Response.Header.Set("Allow", r.methods())
		fail(ctx, fasthttp.StatusMethodNotAllowed, "only "+r.methods()+" is served", "")
		return
	}
	if err != nil {
		s.failRoute(ctx, err)
		return
	}
	if out == nil {
		out = struct{}{}
	}
	writeJSON(ctx, "answer", out)
}

func (r *Route) methods() string {
	switch {
	case r.Get == nil:
		return "POST"
	case r.Post == nil:
		return "GET, HEAD"
	}
	return "GET, HEAD, POST"
}

func (s *Server) failRoute(ctx *fasthttp.RequestCtx, err error) {
	code, hint := fasthttp.StatusInternalServerError, ""
	var status interface{ Status() int }
	if errors.As(err, &status) {
		code = status.Status()
	}
	var hinter Hinter
	if errors.As(err, &hinter) {
		hint = hinter.Hint()
	}
	fail(ctx, code, err.Error(), hint)
}

// writeJSON writes a value; what names it for whoever it cannot be encoded for.
func writeJSON(ctx *fasthttp.RequestCtx, what string, v any) {
	ctx.SetContentType("application/json")
	e := json.NewEncoder(ctx)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		ctx.ResetBody()
		fail(ctx, fasthttp.StatusInternalServerError, "encode "+what+": "+err.Error(), "")
	}
}
