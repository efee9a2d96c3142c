package loadtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// httpTimeout bounds reading and writing of one request.
const httpTimeout = 10 * time.Second

// HTTP is a load of ingest requests.
type HTTP struct {
	URL      string // such as http://127.0.0.1:8080/v1/ingest/load
	Clients  int
	Batch    int // messages in a request; more than 1 uses ?batch=1
	Size     int
	Messages int64
	Duration time.Duration
	Rate     float64 // requests a second, of all clients together
	Progress io.Writer
}

// Run posts until the count, the duration or ctx ends. An operation is a message; its latency is its request's.
func (l HTTP) Run(ctx context.Context) (Result, error) {
	if l.Clients < 1 || l.Batch < 1 {
		return Result{}, fmt.Errorf("%d clients, batches of %d: both have to be positive", l.Clients, l.Batch)
	}
	s, err := newSchedule(l.Rate, (l.Messages+int64(l.Batch)-1)/int64(l.Batch), l.Duration)
	if err != nil {
		return Result{}, err
	}
	url, body := l.request()
	m := NewMeter()
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go m.Progress(watch, l.Progress)
	client := &fasthttp.Client{MaxConnsPerHost: l.Clients, ReadTimeout: httpTimeout, WriteTimeout: httpTimeout}
	err = workers(ctx, l.Clients, func(ctx context.Context, i int) error {
		for {
			at, _, ok := s.take(ctx)
			if !ok {
				return nil
			}
			if err := post(client, url, body, l.Batch); err != nil {
				m.Failed(err)
				continue
			}
			for range l.Batch {
				m.Done(i, at, l.Size)
			}
		}
	})
	return m.Result("http", l.Rate, map[string]string{"clients": fmt.Sprint(l.Clients), "batch": fmt.Sprint(l.Batch), "bytes": fmt.Sprint(l.Size)}), err
}

func (l HTTP) request() (url string, body []byte) {
	const frame = len(`{"value":""}`)
	one := fmt.Appendf(nil, `{"value":"%s"}`, strings.Repeat("x", max(0, l.Size-frame)))
	if l.Batch == 1 {
		return l.URL, one
	}
	join := "?"
	if strings.Contains(l.URL, "?") {
		join = "&"
	}
	return l.URL + join + "batch=1", append(append([]byte("["), bytes.Join(repeat(one, l.Batch), []byte(","))...), ']')
}

func repeat(b []byte, n int) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		all[i] = b
	}
	return all
}

// post sends one request and looks whether all of it was accepted.
func post(client *fasthttp.Client, url string, body []byte, want int) error {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI(url)
	req.Header.SetMethod("POST")
	req.Header.SetContentType("application/json")
	req.SetBodyRaw(body)
	if err := client.Do(req, resp); err != nil {
		return err
	}
	if resp.StatusCode() != 200 {
		return fmt.Errorf("status %d: %s", resp.StatusCode(), bytes.TrimSpace(resp.Body()))
	}
	var answer struct {
		Accepted int `json:"accepted"`
	}
	if err := json.Unmarshal(resp.Body(), &answer); err != nil || answer.Accepted != want {
		return fmt.Errorf("answered %s, want %d accepted", bytes.TrimSpace(resp.Body()), want)
	}
	return nil
}
