package edge

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"sluice/core/vfs"
)

func mustCBOR(t *testing.T, v any) string {
	t.Helper()
	mode, err := cbor.CanonicalEncOptions().EncMode() // a map's order must not change from call to call
	if err != nil {
		t.Fatal(err)
	}
	b, err := mode.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func packed(t *testing.T, body string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(body)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestHTTPBodies(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	senml := `[{"bn":"urn:x:","n":"t","v":21.5}]`
	for i, c := range []struct {
		kind, body string
		headers    []string
		want       string
	}{
		{"application/json", `{"a": 1}`, nil, `{"a": 1}`}, // as it came, also its blanks
		{"application/json; charset=utf-8", `5`, nil, "5"},
		{"application/cbor", mustCBOR(t, map[string]int{"a": 1}), nil, mustCBOR(t, map[string]int{"a": 1})},
		{"application/senml+json", senml, nil, senml},
		{"application/senml+cbor", mustCBOR(t, []map[int]any{{0: "t", 2: 21.5}}), nil, mustCBOR(t, []map[int]any{{0: "t", 2: 21.5}})},
		{"application/octet-stream", "\x00\xff", nil, "\x00\xff"},
		{"text/plain", "", nil, ""},
		{"", "anything", nil, "anything"},
		{"application/json", packed(t, `{"z":1}`), []string{"Content-Encoding", "gzip"}, `{"z":1}`},
	} {
		code, answer := g.post("/v1/ingest/a/b", c.kind, c.body, c.headers...)
		if code != http.StatusOK || answer != `{"accepted":1}` {
			t.Fatalf("%s: %d %s", c.kind, code, answer)
		}
		all := g.stored() // the answer comes after the sync
		s := all[len(all)-1]
		if len(all) != i+1 || s.value != c.want || s.to != "mqtt" || s.key != "a/b" || s.headers["mqtt.topic"] != "a/b" || s.headers["content-type"] != c.kind {
			t.Fatalf("%s: stored %+v", c.kind, s)
		}
	}
	if code, answer := g.post("/v1/ingest/a/b", "application/x-www-form-urlencoded", `{"value": 3}`); code != http.StatusOK { // curl -d
		t.Fatalf("a body that curl says nothing about: %d %s", code, answer)
	}
	all := g.stored()
	if s := all[len(all)-1]; s.value != `{"value": 3}` || s.headers["content-type"] != "" {
		t.Fatalf("a body that curl says nothing about: stored %+v", s)
	}
	if code, _ := g.post("/v1/ingest/a%2Fb/%C3%A9%20x", "text/plain", "x", "X-Client-Id", "dev7"); code != http.StatusOK {
		t.Fatalf("escaped topic: %d", code)
	}
	all = g.stored()
	if s := all[len(all)-1]; s.key != "a/b/é x" || s.headers["mqtt.client"] != "dev7" {
		t.Fatalf("stored %+v", s)
	}
}

func TestHTTPRefusals(t *testing.T) {
	c := testConfig(t)
	c.HTTP.MaxBodyBytes, c.HTTP.MaxBatch = 2000, 10
	g := startGateway(t, vfs.OS, c)
	for _, r := range []struct {
		method, path, kind, body string
		headers                  []string
		code                     int
		says                     string
	}{
		{"POST", "/v1/ingest/a", "application/json", `{"a":`, nil, 400, "not JSON"},
		{"POST", "/v1/ingest/a", "application/cbor", "\xa1", nil, 400, "EOF"},
		{"POST", "/v1/ingest/a", "application/senml+json", `[{"v":1}]`, nil, 400, "no name"},
		{"POST", "/v1/ingest/a/+/b", "text/plain", "x", nil, 400, "contains + or #"},
		{"POST", "/v1/ingest/a%23", "text/plain", "x", nil, 400, "contains + or #"},
		{"POST", "/v1/ingest/%ff", "text/plain", "x", nil, 400, "not one of MQTT"},
		{"POST", "/v1/ingest/", "text/plain", "x", nil, 404, "names no topic"},
		{"POST", "/v1/other", "text/plain", "x", nil, 404, "nothing at"},
		{"GET", "/v1/ingest/a", "", "", nil, 405, "not allowed"},
		{"POST", "/metrics", "", "", nil, 405, "not allowed"},
		{"POST", "/v1/ingest/a", "text/plain", strings.Repeat("x", 2001), nil, 413, "larger than 2000"},
		{"POST", "/v1/ingest/a", "text/plain", packed(t, strings.Repeat("x", 9000)), []string{"Content-Encoding", "gzip"}, 413, "unpacked"},
		{"POST", "/v1/ingest/a", "application/xml", "<a/>", nil, 415, "not known"},
		{"POST", "/v1/ingest/a", "text/plain", "x", []string{"Content-Encoding", "br"}, 415, "not known"},
		{"POST", "/v1/ingest/a", "text/plain", "x", []string{"Authorization", "Bearer x"}, 401, "not basic"},
		{"POST", "/v1/ingest/a?batch=1", "application/json", `[]`, nil, 400, "empty"},
		{"POST", "/v1/ingest/a?batch=1", "application/json", `[1,2,]`, nil, 400, "cannot be read"},
		{"POST", "/v1/ingest/a?batch=1", "application/x-ndjson", "1\n{\n3\n", nil, 400, "line 2"},
		{"POST", "/v1/ingest/a?batch=1", "application/json", "[1,2,3,4,5,6,7,8,9,10,11]", nil, 413, "11 messages"},
		{"POST", "/v1/ingest/a?batch=1", "application/cbor", "\x80", nil, 415, "must be JSON"},
	} {
		code, answer := g.request(r.method, r.path, r.kind, r.body, r.headers...)
		var e struct{ Error, Hint string }
		if err := json.Unmarshal([]byte(answer), &e); err != nil || code != r.code || !strings.Contains(e.Error, r.says) || e.Hint == "" {
			t.Errorf("%s %s %q: %d %s, want %d with %q", r.method, r.path, r.body[:min(len(r.body), 20)], code, answer, r.code, r.says)
		}
	}
	if all := g.stored(); len(all) != 0 {
		t.Fatalf("stored %+v", all)
	}
}

func TestHTTPBatches(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	for _, c := range []struct{ kind, body string }{
		{"application/json", ` [1, {"a": 2}, "x"]`},
		{"application/x-ndjson", "1\n{\"a\": 2}\r\n\n\"x\"\n"},
		{"", "1\n{\"a\": 2}\n\"x\""},
	} {
		before := len(g.stored())
		code, answer := g.post("/v1/ingest/a?batch=1", c.kind, c.body)
		if code != 200 || answer != `{"accepted":3}` {
			t.Fatalf("%s: %d %s", c.kind, code, answer)
		}
		same(t, storedValues(g.stored()[before:]), "1", `{"a": 2}`, `"x"`)
	}
}

// The same key is stored once: at the same time, later, and after a restart.
func TestIdempotencyKey(t *testing.T) {
	c := testConfig(t)
	g := startGateway(t, vfs.OS, c)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if code, answer := g.post("/v1/ingest/a?batch=1", "application/json", "[1,2]", "Idempotency-Key", "k1"); code != 200 || answer != `{"accepted":2}` {
				t.Errorf("%d %s", code, answer)
			}
		})
	}
	all.Wait()
	g.mustStop()
	for range 2 { // the second start finds what the first told anew
		g = startGateway(t, vfs.OS, c)
		if code, answer := g.post("/v1/ingest/a?batch=1", "application/json", "[1,2]", "Idempotency-Key", "k1"); code != 200 || answer != `{"accepted":2}` {
			t.Fatalf("%d %s", code, answer)
		}
		same(t, storedValues(g.stored()), "1", "2")
		g.mustStop()
	}
	g = startGateway(t, vfs.OS, c)
	if code, _ := g.post("/v1/ingest/a", "text/plain", "3", "Idempotency-Key", "k2"); code != 200 {
		t.Fatal(code)
	}
	same(t, storedValues(g.stored()), "1", "2", "3")
}

// What comes by HTTP also goes to the gateway's own subscribers, and what is retained stays for the next.
func TestHTTPReachesSubscribers(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	d, _ := g.connect(4, hello{id: "sub", clean: true})
	d.subscribe("a/#", 1)
	if code, _ := g.post("/v1/ingest/a/b?batch=1", "application/json", "[1,2]"); code != 200 {
		t.Fatal(code)
	}
	d.gets("a/b", "1")
	d.gets("a/b", "2")
}

func TestStatusPages(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	if code, _ := g.post("/v1/ingest/a", "text/plain", "x"); code != 200 {
		t.Fatal(code)
	}
	code, metrics := g.request("GET", "/metrics", "", "")
	for _, want := range []string{"sluice_buffer_records_total 1", "sluice_http_accepted_messages_total 1", "sluice_mqtt_connections 0", "process_resident_memory_bytes"} {
		if code != 200 || !strings.Contains(metrics, want) {
			t.Errorf("/metrics (%d) lacks %q", code, want)
		}
	}
	if code, answer := g.request("GET", "/healthz", "", ""); code != 200 || answer != `{"status":"ok"}` {
		t.Errorf("/healthz: %d %s", code, answer)
	}
	code, answer := g.request("GET", "/status", "", "")
	var status struct {
		Buffer struct {
			Synced int64 `json:"synced_offset"`
		} `json:"buffer"`
	}
	if err := json.Unmarshal([]byte(answer), &status); err != nil || code != 200 || status.Buffer.Synced != 1 {
		t.Errorf("/status: %d %s", code, answer)
	}
}

// What is not HTTP is told so, and does not hurt.
func TestNotHTTP(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	nc, err := net.Dial("tcp", g.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	fmt.Fprint(nc, "\x10\x0c\x00\x04MQTT\r\n\r\n")
	answer := make([]byte, 100)
	n, err := nc.Read(answer)
	if err != nil || !strings.Contains(string(answer[:n]), "400") {
		t.Fatalf("%q, %v", answer[:n], err)
	}
	if code, _ := g.post("/v1/ingest/a", "text/plain", "x"); code != 200 {
		t.Fatal(code)
	}
}

// A client that keeps its connection open does not hold up a stop.
func TestStopWithAnIdleHTTPConnection(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://" + g.HTTPAddr() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	begin := time.Now()
	g.mustStop()
	if took := time.Since(begin); took > patience/2 { // far below the time that requests get
		t.Fatalf("the stop took %v", took)
	}
}

// TestHTTPBodiesAreReadAsTheyCome: what follows a body on the same connection is understood, whatever its length and encoding; what is too large is refused
// by its announcement, and a body that was not read ends the connection.
func TestHTTPBodiesAreReadAsTheyCome(t *testing.T) {
	c := testConfig(t)
	c.HTTP.MaxBodyBytes = 100_000
	g := startGateway(t, vfs.OS, c)
	nc, err := net.Dial("tcp", g.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	br := bufio.NewReader(nc)
	head := "POST /v1/ingest/a HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
	expect := func(want int) *http.Response {
		t.Helper()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode != want {
			t.Fatalf("%d %s, want %d", resp.StatusCode, text, want)
		}
		return resp
	}
	for _, n := range []int{0, 1, 8 << 10, 8<<10 + 1, 90_000} {
		fmt.Fprintf(nc, "%sContent-Length: %d\r\n\r\n%s", head, n, strings.Repeat("x", n))
		if expect(200).Close {
			t.Fatalf("the connection ends after a body of %d bytes", n)
		}
	}
	fmt.Fprintf(nc, "%sTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", head)
	expect(200)
	all := g.stored()
	if s := all[len(all)-1]; s.value != "hello" || len(all) != 6 || len(all[4].value) != 90_000 {
		t.Fatalf("stored %d, the last %+v", len(all), s)
	}
	fmt.Fprintf(nc, "%sContent-Length: 100001\r\n\r\n%s", head, strings.Repeat("x", 9000)) // its beginning is enough
	if !expect(413).Close {
		t.Error("a connection with a body that was not read is used again")
	}
}

// TestHTTPAnnouncedBodiesTakeNoMemory: a body's memory grows with what has come.
func TestHTTPAnnouncedBodiesTakeNoMemory(t *testing.T) {
	c := testConfig(t)
	c.HTTP.MaxBodyBytes = 64 << 20
	g := startGateway(t, vfs.OS, c)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 50 {
		nc, err := net.Dial("tcp", g.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		fmt.Fprintf(nc, "POST /v1/ingest/a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", 60<<20, strings.Repeat("x", 9000))
	}
	if code, _ := g.post("/v1/ingest/b", "text/plain", "x"); code != 200 {
		t.Fatal(code)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 200<<20 {
		t.Errorf("%d bytes were allocated for bodies that did not come", n)
	}
}
