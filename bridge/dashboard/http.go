package dashboard

import (
	"bufio"
	"bytes"
	"embed"
	"encoding/json"
	"mime"
	"path"
	"strings"

	"github.com/valyala/fasthttp"
)

//go:embed page
var files embed.FS

func (d *Dashboard) handle(ctx *fasthttp.RequestCtx) {
	h := &ctx.Response.Header
	h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if !ctx.IsGet() && !ctx.IsHead() {
		ctx.Error("only GET and HEAD are served here", fasthttp.StatusMethodNotAllowed)
		return
	}
	switch p := string(ctx.Path()); p {
	case "/events":
		d.events(ctx)
	case "/healthz":
		ctx.SetBodyString("ok\n")
	case "/metrics":
		var b bytes.Buffer
		d.set.WritePrometheus(&b)
		ctx.SetContentType("text/plain; version=0.0.4")
		ctx.SetBody(b.Bytes())
	case "/status":
		d.writeStatus(ctx)
	default:
		file(ctx, p)
	}
}

// file serves the page's own files; they change with the release only.
func file(ctx *fasthttp.RequestCtx, p string) {
	if p == "/" {
		p = "/index.html"
	}
	data, err := files.ReadFile("page" + path.Clean("/"+p))
	if err != nil {
		ctx.Error("no such page", fasthttp.StatusNotFound)
		return
	}
	ctx.SetContentType(mime.TypeByExtension(path.Ext(p)))
	if strings.HasSuffix(p, ".js") {
		ctx.SetContentType("text/javascript; charset=utf-8")
	}
	ctx.Response.Header.Set("Cache-Control", "no-cache")
	ctx.SetBody(data)
}

// Status is what /status shows of the page.
type Status struct {
	Brokers   []string `json:"brokers"`
	Topics    []string `json:"topics"`
	Readings  int64    `json:"readings"`
	Devices   int      `json:"devices"`
	Zones     int      `json:"zones"`
	NotKept   int64    `json:"readings_not_kept"`
	Browsers  int      `json:"browsers"`
	LastError string   `json:"last_error,omitempty"`
}

// Status may be called from anywhere.
func (d *Dashboard) Status() Status {
	s := Status{Brokers: d.o.Brokers, Topics: d.o.Topics, Browsers: d.hub.len(), LastError: d.lastError.Load().(string)}
	d.model.mu.Lock()
	defer d.model.mu.Unlock()
	s.Readings, s.Devices, s.Zones, s.NotKept = d.model.total, len(d.model.devices), len(d.model.zones), d.model.refused
	return s
}

func (d *Dashboard) writeStatus(ctx *fasthttp.RequestCtx) {
	data, err := json.MarshalIndent(d.Status(), "", "  ")
	if err != nil {
		panic("BUG: encode status: " + err.Error())
	}
	ctx.SetContentType("application/json")
	ctx.SetBody(append(data, '\n'))
}

// events streams frames to one browser until it goes or is cut off.
func (d *Dashboard) events(ctx *fasthttp.RequestCtx) {
	frames := d.hub.join()
	if frames == nil {
		ctx.Response.Header.Set("Retry-After", "5")
		ctx.Error("too many browsers are connected", fasthttp.StatusServiceUnavailable)
		return
	}
	first := encode("snapshot", d.model.snapshot())
	ctx.SetContentType("text/event-stream")
	ctx.Response.Header.Set("Cache-Control", "no-store")
	ctx.SetBodyStreamWriter(func(w *bufio.Writer) {
		defer d.hub.leave(frames)
		for b, ok := first, true; ok; b, ok = <-frames {
			if _, err := w.Write(b); err != nil || w.Flush() != nil {
				return
			}
		}
	})
}
