package http

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
	"github.com/valyala/fasthttp"

	"sluice/edge/ingest"
)

const (
	ingestPath = "/v1/ingest/"
	// topicBytesMax is MQTT's bound of a topic.
	topicBytesMax = 65535
	// anonymousClient is the header mqtt.client of who does not say who he is.
	anonymousClient = "http"
)

// refusal is an answer that is not 200.
type refusal struct {
	code        int
	text, hint  string
	wwwAuth     bool
	allowMethod string
}

func (r *refusal) Error() string { return r.text }

func refuse(code int, text, hint string) *refusal {
	return &refusal{code: code, text: text, hint: hint}
}

// ingest takes one message, or with ?batch=1 many.
func (s *Server) ingest(ctx *fasthttp.RequestCtx) {
	s.metrics.requests.Inc()
	begin := time.Now()
	n, err := s.take(ctx)
	var r *refusal
	switch {
	case errors.As(err, &r):
		s.metrics.refused.Inc()
		if r.wwwAuth {
			ctx.Response.Header.Set("WWW-Authenticate", `Basic realm="sluice"`)
		}
		if r.allowMethod != "" {
			ctx.Response.Header.Set("Allow", r.allowMethod)
		}
		fail(ctx, r.code, r.text, r.hint)
	case err != nil:
		s.metrics.refused.Inc()
		failFor(ctx, err)
	default:
		s.metrics.seconds.UpdateDuration(begin)
		answer(ctx, map[string]int{"accepted": n})
	}
}

func (s *Server) take(ctx *fasthttp.RequestCtx) (int, error) {
	if !ctx.IsPost() {
		return 0, &refusal{code: fasthttp.StatusMethodNotAllowed, text: string(ctx.Method()) + " is not allowed here", hint: "use POST", allowMethod: "POST"}
	}
	topic, err := topicOf(ctx)
	if err != nil {
		return 0, err
	}
	client, err := s.mayPublish(ctx, topic)
	if err != nil {
		return 0, err
	}
	inputs, err := s.inputs(ctx, topic, client)
	if err != nil {
		return 0, err
	}
	return s.store(ctx, inputs)
}

// topicOf is the path after /v1/ingest/, unescaped, checked as MQTT demands.
func topicOf(ctx *fasthttp.RequestCtx) (string, error) {
	raw := string(ctx.URI().PathOriginal())
	at := strings.Index(raw, ingestPath)
	if at < 0 { // as in an absolute or odd path: what fasthttp made of it
		raw, at = string(ctx.Path()), 0
	}
	topic, err := url.PathUnescape(raw[at+len(ingestPath):])
	hint := "POST /v1/ingest/city/north/temperature is the MQTT topic city/north/temperature"
	switch {
	case err != nil:
		return "", refuse(fasthttp.StatusBadRequest, "the topic is not escaped well: "+err.Error(), hint)
	case topic == "":
		return "", refuse(fasthttp.StatusNotFound, "the path names no topic", hint)
	case len(topic) > topicBytesMax || !utf8.ValidString(topic) || strings.ContainsRune(topic, 0):
		return "", refuse(fasthttp.StatusBadRequest, "the topic is not one of MQTT", "at most 65535 bytes of UTF-8 without null characters")
	case strings.ContainsAny(topic, "+#"):
		return "", refuse(fasthttp.StatusBadRequest, "the topic contains + or #", "wildcards are for subscribing")
	}
	return topic, nil
}

func (s *Server) mayPublish(ctx *fasthttp.RequestCtx, topic string) (client string, err error) {
	name, password, ok := basicAuth(string(ctx.Request.Header.Peek("Authorization")))
	if !ok {
		return "", &refusal{code: fasthttp.StatusUnauthorized, text: "the Authorization header is not basic authentication", hint: "send Basic and base64 of name:password", wwwAuth: true}
	}
	known, allowed := s.login.MayPublish(name, []byte(password), topic)
	if !known {
		return "", &refusal{code: fasthttp.StatusUnauthorized, text: "name or password is wrong", hint: "use the name and password of the gateway's file of users", wwwAuth: true}
	}
	if !allowed {
		return "", refuse(fasthttp.StatusForbidden, fmt.Sprintf("%q may not publish to %q", name, topic), "add the topic to the user's publish filters")
	}
	client = string(ctx.Request.Header.Peek("X-Client-Id"))
	switch {
	case client == "" && name != "":
		client = name
	case client == "":
		client = anonymousClient
	case len(client) > 1024 || !utf8.ValidString(client):
		return "", refuse(fasthttp.StatusBadRequest, "X-Client-Id is not a client id", "at most 1024 bytes of UTF-8")
	}
	return client, nil
}

func basicAuth(header string) (name, password string, ok bool) {
	if header == "" {
		return "", "", true
	}
	kind, rest, _ := strings.Cut(header, " ")
	text, err := base64.StdEncoding.DecodeString(rest)
	if err != nil || !strings.EqualFold(kind, "Basic") {
		return "", "", false
	}
	return strings.Cut(string(text), ":")
}

// inputs reads the body: one message, or the elements of a batch.
func (s *Server) inputs(ctx *fasthttp.RequestCtx, topic, client string) ([]ingest.Input, error) {
	contentType := string(ctx.Request.Header.ContentType())
	if contentType == typeForm {
		contentType = ""
	}
	kind, err := mediaType(contentType)
	if err != nil {
		return nil, err
	}
	one := ingest.Input{Client: client, Topic: topic, QoS: 1, ContentType: contentType, Time: time.Now()}
	body, err := s.body(ctx)
	if err != nil {
		return nil, err
	}
	if encoding := ctx.Request.Header.ContentEncoding(); len(encoding) > 0 {
		if body, err = s.inflate(body, string(encoding)); err != nil {
			return nil, err
		}
	}
	if !ctx.QueryArgs().GetBool("batch") {
		if err := checkBody(kind, body); err != nil {
			return nil, err
		}
		one.Payload = body
		return []ingest.Input{one}, nil
	}
	payloads, err := s.split(kind, body)
	if err != nil {
		return nil, err
	}
	if kind == typeNDJSON {
		one.ContentType = typeJSON
	}
	inputs := make([]ingest.Input, len(payloads))
	for i, p := range payloads {
		inputs[i] = one
		inputs[i].Payload = p
	}
	return inputs, nil
}

// hasBody says whether something follows the head of a request.
func hasBody(ctx *fasthttp.RequestCtx) bool {
	n := ctx.Request.Header.ContentLength()
	return n > 0 || n == -1 // chunked
}

// body reads the body as it comes: memory grows with what is there, not with what the head announces.
func (s *Server) body(ctx *fasthttp.RequestCtx) ([]byte, error) {
	if !hasBody(ctx) {
		return nil, nil
	}
	most := s.config.MaxBodyBytes
	tooLarge := refuse(fasthttp.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", most), "send smaller batches, or raise http.maxBodyBytes")
	if ctx.Request.Header.ContentLength() > most {
		return nil, tooLarge
	}
	body, err := io.ReadAll(io.LimitReader(ctx.RequestBodyStream(), int64(most)+1))
	var netErr net.Error
	switch {
	case errors.As(err, &netErr) && netErr.Timeout():
		return nil, refuse(fasthttp.StatusRequestTimeout, "the request took too long to arrive", "send it again")
	case err != nil:
		return nil, refuse(fasthttp.StatusBadRequest, "the body is cut off: "+err.Error(), "send it again")
	case len(body) > most:
		return nil, tooLarge
	case len(body) < ctx.Request.Header.ContentLength():
		return nil, refuse(fasthttp.StatusBadRequest, "the body is cut off", "send it again")
	}
	if !ctx.Request.Header.ConnectionClose() {
		ctx.Response.Header.ResetConnectionClose()
	}
	return body, nil
}

// inflate takes gzip; the bound holds for what comes out.
func (s *Server) inflate(body []byte, encoding string) ([]byte, error) {
	if encoding != "gzip" {
		return nil, refuse(fasthttp.StatusUnsupportedMediaType, fmt.Sprintf("content encoding %q is not known", encoding), "send it plain or as gzip")
	}
	body, err := gunzip(body, s.config.MaxBodyBytes)
	if errors.Is(err, errTooLarge) {
		return nil, refuse(fasthttp.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes when unpacked", s.config.MaxBodyBytes), "send smaller batches, or raise http.maxBodyBytes")
	}
	if err != nil {
		return nil, refuse(fasthttp.StatusBadRequest, "the body is not gzip: "+err.Error(), "send what Content-Encoding says")
	}
	return body, nil
}

const (
	typeJSON      = "application/json"
	typeNDJSON    = "application/x-ndjson"
	typeSenML     = "application/senml+json"
	typeCBOR      = "application/cbor"
	typeSenMLCBOR = "application/senml+cbor"
	typeRaw       = "application/octet-stream"
	typeText      = "text/plain"
	// typeForm is what `curl -d` says of any body when it is not told better: as good as nothing.
	typeForm = "application/x-www-form-urlencoded"
)

func mediaType(header string) (string, error) {
	if header == "" {
		return typeRaw, nil
	}
	kind, _, err := mime.ParseMediaType(header)
	if err == nil {
		switch kind {
		case typeJSON, typeNDJSON, typeSenML, typeCBOR, typeSenMLCBOR, typeRaw, typeText:
			return kind, nil
		case "application/ndjson", "application/jsonl":
			return typeNDJSON, nil
		}
	}
	return "", refuse(fasthttp.StatusUnsupportedMediaType, fmt.Sprintf("content type %q is not known", header),
		"use application/json, application/cbor, application/senml+json, application/senml+cbor, application/octet-stream or text/plain; for batches also application/x-ndjson")
}

// checkBody makes sure that the body is what it says: a device's mistake is told to the device, not found by a consumer.
func checkBody(kind string, body []byte) error {
	var err error
	switch kind {
	case typeJSON:
		if !json.Valid(body) {
			err = errors.New("the body is not JSON")
		}
	case typeNDJSON:
		err = errors.New("NDJSON is for batches")
	case typeCBOR:
		err = cbor.Wellformed(body)
	case typeSenML, typeSenMLCBOR:
		_, err = ingest.ParseSenML(kind == typeSenMLCBOR, body, time.Now())
	}
	if err != nil {
		return refuse(fasthttp.StatusBadRequest, err.Error(), "the body must be what Content-Type says; a JSON array or NDJSON of messages needs ?batch=1")
	}
	return nil
}

// split cuts a batch into its messages, as they came.
func (s *Server) split(kind string, body []byte) ([][]byte, error) {
	var parts []json.RawMessage
	var err error
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	switch {
	case kind != typeJSON && kind != typeNDJSON && kind != typeRaw && kind != typeText:
		return nil, refuse(fasthttp.StatusUnsupportedMediaType, "a batch must be JSON", "send a JSON array or NDJSON")
	case kind != typeNDJSON && len(trimmed) > 0 && trimmed[0] == '[':
		err = json.Unmarshal(body, &parts)
	default:
		parts, err = lines(body)
	}
	if err != nil {
		return nil, refuse(fasthttp.StatusBadRequest, "the batch cannot be read: "+err.Error(), "send a JSON array, or NDJSON: one JSON value a line; nothing of it was stored")
	}
	if len(parts) == 0 {
		return nil, refuse(fasthttp.StatusBadRequest, "the batch is empty", "send at least one message")
	}
	if len(parts) > s.config.MaxBatch {
		return nil, refuse(fasthttp.StatusRequestEntityTooLarge, fmt.Sprintf("the batch has %d messages, at most %d are allowed", len(parts), s.config.MaxBatch), "send smaller batches, or raise http.maxBatch")
	}
	out := make([][]byte, len(parts))
	for i, p := range parts {
		out[i] = p
	}
	return out, nil
}

// lines reads one JSON value a line; empty lines do not count.
func lines(body []byte) ([]json.RawMessage, error) {
	var parts []json.RawMessage
	for n := 1; len(body) > 0; n++ {
		var line []byte
		line, body, _ = bytes.Cut(body, []byte{'\n'})
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		if !json.Valid(line) {
			return nil, fmt.Errorf("line %d is not JSON", n)
		}
		parts = append(parts, line)
	}
	return parts, nil
}

// store waits for the disk. A request with a key that was stored already is answered as then.
func (s *Server) store(ctx *fasthttp.RequestCtx, inputs []ingest.Input) (int, error) {
	wait, cancel := context.WithTimeout(s.stop, s.config.Timeout)
	defer cancel()
	name := ctx.Request.Header.Peek("Idempotency-Key")
	if len(name) == 0 {
		return s.put(wait, inputs, nil)
	}
	key := keyOf(name, inputs[0].Client, inputs[0].Topic)
	before, mine := s.keys.claim(key)
	if !mine {
		s.metrics.repeated.Inc()
		return before.wait(wait)
	}
	n, err := s.put(wait, inputs, noteOf(key, len(inputs)))
	s.keys.settle(key, before, n, err)
	return n, err
}

func (s *Server) put(ctx context.Context, inputs []ingest.Input, note []byte) (int, error) {
	t, err := s.door.PutAll(ctx, inputs, note)
	if err != nil {
		return 0, err
	}
	if err := t.Wait(ctx); err != nil {
		return 0, err
	}
	s.metrics.accepted.Add(len(inputs))
	return len(inputs), nil
}

var errTooLarge = errors.New("too large")

func gunzip(packed []byte, most int) ([]byte, error) {
	r, err := newGzipReader(packed)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(body) > most {
		return nil, errTooLarge
	}
	return body, nil
}
