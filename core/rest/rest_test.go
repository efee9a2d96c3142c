package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// fasthttp keeps a goroutine per process that refreshes the Date header, and one per
	// server that notices its end when it wakes next.
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

type component struct {
	name  string
	state any
}

func (c component) WritePrometheus(w io.Writer) { fmt.Fprintf(w, "sluice_%s_up 1\n", c.name) }
func (c component) Status() any                 { return c.state }

// run serves until the test ends and returns the address.
func run(t *testing.T, o Options) string {
	t.Helper()
	o.Listen = "127.0.0.1:0"
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + s.Addr().String()
}

func get(t *testing.T, url string) (code int, kind, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(text)
}

func two() map[string]Component {
	return map[string]Component{
		"broker": component{"broker", map[string]int{"connections": 3}},
		"shards": component{"shards", []string{"a", "b"}},
	}
}

func TestMetrics(t *testing.T) {
	url := run(t, Options{Components: two()})
	code, kind, body := get(t, url+"/metrics")
	if code != 200 || !strings.HasPrefix(kind, "text/plain") {
		t.Errorf("answered %d %s", code, kind)
	}
	for _, want := range []string{"sluice_broker_up 1", "sluice_shards_up 1", `sluice_rest_requests_total{path="/metrics"} 1`, "process_resident_memory_bytes", "go_goroutines"} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing in\n%s", want, body)
		}
	}
}

func TestStatus(t *testing.T) {
	url := run(t, Options{Components: two(), Version: "v9"})
	var got struct {
		Broker  *struct{ Connections int }
		Shards  []string
		Process struct{ Version string }
	}
	code, kind, body := get(t, url+"/status")
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != 200 || kind != "application/json" {
		t.Fatalf("answered %d %s, %v", code, kind, err)
	}
	if got.Broker.Connections != 3 || len(got.Shards) != 2 || got.Process.Version != "v9" {
		t.Errorf("the status is %s", body)
	}
	got.Broker, got.Shards = nil, nil
	_, _, body = get(t, url+"/status?component=shards")
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Broker != nil || len(got.Shards) != 2 {
		t.Errorf("the status of one component is %s (%v)", body, err)
	}
}

func TestStatusThatIsNoJSON(t *testing.T) {
	url := run(t, Options{Components: map[string]Component{"broken": component{"broken", math.NaN()}}})
	if code, _, body := get(t, url+"/status"); code != 500 || !strings.Contains(body, "encode status") {
		t.Errorf("answered %d %s", code, body)
	}
}

func TestHealth(t *testing.T) {
	var sick atomic.Bool
	url := run(t, Options{Health: func() error {
		if sick.Load() {
			return errors.New("shard 3: disk is gone")
		}
		return nil
	}})
	if code, _, body := get(t, url+"/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("answered %d %s", code, body)
	}
	sick.Store(true)
	if code, _, body := get(t, url+"/healthz"); code != 503 || body != `{"error":"shard 3: disk is gone","hint":"see /status"}`+"\n" {
		t.Errorf("answered %d %s", code, body)
	}
}

func TestProfiles(t *testing.T) {
	if code, _, _ := get(t, run(t, Options{})+"/debug/pprof/heap"); code != 404 {
		t.Errorf("profiles that nobody asked for are answered with %d", code)
	}
	if code, _, body := get(t, run(t, Options{Profiles: true})+"/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("answered %d %.100s", code, body)
	}
}

func TestWhatIsNotThere(t *testing.T) {
	url := run(t, Options{})
	if code, _, body := get(t, url+"/nothing"); code != 404 || !strings.Contains(body, "try /metrics") {
		t.Errorf("answered %d %s", code, body)
	}
	resp, err := http.Post(url+"/status", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("answered %d %v", resp.StatusCode, resp.Header)
	}
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Open(Options{Listen: l.Addr().String()}); err == nil || !strings.Contains(err.Error(), "listen for HTTP") {
		t.Errorf("the error is %v", err)
	}
}

// refusal is an error with a status of its own.
type refusal struct{ error }

func (refusal) Status() int  { return 409 }
func (refusal) Hint() string { return "try again" }

func TestRoutes(t *testing.T) {
	routes := map[string]Route{
		"/show": {Get: func(context.Context) (any, error) { return map[string]int{"n": 7}, nil }},
		"/change": {Post: func(_ context.Context, body []byte) (any, error) {
			return nil, refusal{errors.New("no " + string(body))}
		}},
		"/do": {Post: func(context.Context, []byte) (any, error) { return nil, nil }},
	}
	url := run(t, Options{Routes: routes})
	post := func(path, kind string) (int, string) {
		resp, err := http.Post(url+path, kind, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	if code, kind, body := get(t, url+"/show"); code != 200 || kind != "application/json" || !strings.Contains(body, `"n": 7`) {
		t.Errorf("answered %d %s %s", code, kind, body)
	}
	if code, body := post("/change", "application/json"); code != 409 || body != `{"error":"no {}","hint":"try again"}`+"\n" {
		t.Errorf("a refused change: %d %s", code, body)
	}
	if code, body := post("/do", "application/json; charset=utf-8"); code != 200 || body != "{}\n" {
		t.Errorf("a change: %d %s", code, body)
	}
	// A form or a script of another site can send this without asking first.
	if code, _ := post("/do", "text/plain"); code != 415 {
		t.Errorf("a body that is no JSON: %d", code)
	}
	if code, _ := post("/show", "application/json"); code != 405 {
		t.Errorf("a POST to what only shows: %d", code)
	}
	if code, _, _ := get(t, url+"/do"); code != 405 {
		t.Errorf("a GET of what only changes: %d", code)
	}
}
