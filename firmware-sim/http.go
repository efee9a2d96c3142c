package firmwaresim

import (
	"encoding/json"

	"github.com/valyala/fasthttp"
)

func (f *Fleet) handle(ctx *fasthttp.RequestCtx) {
	switch string(ctx.Path()) {
	case "/metrics":
		ctx.SetContentType("text/plain; version=0.0.4")
		f.WritePrometheus(ctx)
	case "/healthz":
		ctx.SetBodyString("ok\n")
	case "/status":
		b, err := json.MarshalIndent(f.Status(), "", "  ")
		if err != nil {
			panic("BUG: encode status: " + err.Error())
		}
		ctx.SetContentType("application/json")
		ctx.SetBody(append(b, '\n'))
	default:
		ctx.Error("try /metrics, /healthz or /status", fasthttp.StatusNotFound)
	}
}
