package ingest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"sluice/core/record"
	"sluice/edge/buffer"
)

const (
	formatAuto      = "auto"
	formatJSON      = "json"
	formatCBOR      = "cbor"
	formatSenMLJSON = "senml-json"
	formatSenMLCBOR = "senml-cbor"
	formatRaw       = "raw"

	normaliseJSON  = "json"
	normaliseSenML = "senml"
)

// timestampSource says where a record's time comes from.
type timestampSource struct {
	kind  byte // 0 gateway, 's' senml, 'j' JSON field
	field string
}

func parseTimestamp(text string) timestampSource {
	if field, ok := strings.CutPrefix(text, "json:"); ok {
		return timestampSource{'j', field}
	}
	if text == "senml" {
		return timestampSource{kind: 's'}
	}
	return timestampSource{}
}

func (t timestampSource) gateway() bool { return t.kind == 0 }

// normalise makes the records of a rule that looks into the payload. One that cannot be understood goes as it came.
func (c *route) normalise(in *Input, m buffer.Message, s *Scratch) []buffer.Message {
	out, err := c.understand(in, m, s)
	if err != nil {
		m.Headers = append(s.headers, record.Header{Key: HeaderError, Value: []byte(err.Error())})
		return append(s.Entry.Messages[:0], m)
	}
	return out
}

func (c *route) understand(in *Input, m buffer.Message, s *Scratch) ([]buffer.Message, error) {
	format := c.rule.Format
	if format == "" || format == formatAuto {
		format = Detect(in.ContentType, in.Payload)
	}
	if c.rule.Normalise == normaliseSenML || c.timestamp.kind == 's' {
		return c.senml(format, in, m, s)
	}
	value, err := toJSON(format, in.Payload)
	if err != nil {
		return nil, err
	}
	if c.timestamp.kind == 'j' {
		if m.TimestampMs, err = jsonTime(value, c.timestamp.field); err != nil {
			return nil, err
		}
	}
	m.Headers = s.headers
	if c.rule.Normalise == normaliseJSON {
		m.Value = value
		m.Headers = withType(s.headers, "application/json")
	}
	return append(s.Entry.Messages[:0], m), nil
}

// withType replaces the content type, in memory of its own.
func withType(headers []record.Header, contentType string) []record.Header {
	out := make([]record.Header, 0, len(headers)+1)
	for _, h := range headers {
		if h.Key != HeaderType {
			out = append(out, h)
		}
	}
	return append(out, record.Header{Key: HeaderType, Value: []byte(contentType)})
}

// senml resolves a pack. With normalise it becomes one record per measurement, else only the time is taken from it.
func (c *route) senml(format string, in *Input, m buffer.Message, s *Scratch) ([]buffer.Message, error) {
	pack, err := ParseSenML(format == formatSenMLCBOR || format == formatCBOR, in.Payload, in.Time)
	if err != nil {
		return nil, err
	}
	if c.rule.Normalise != normaliseSenML {
		m.Headers = s.headers
		if c.timestamp.kind == 's' && pack[0].Time != 0 {
			m.TimestampMs = int64(math.Round(pack[0].Time * 1000))
		}
		return append(s.Entry.Messages[:0], m), nil
	}
	headers := withType(s.headers, "application/senml+json")
	out := s.Entry.Messages[:0]
	for _, r := range pack {
		one := m
		one.Headers = headers
		if one.Value, err = json.Marshal([]Measurement{r}); err != nil {
			return nil, fmt.Errorf("encode senml: %w", err)
		}
		if c.timestamp.kind == 's' {
			one.TimestampMs = int64(math.Round(r.Time * 1000))
		}
		out = append(out, one)
	}
	return out, nil
}

// Detect guesses a payload's format by its content type, else by its first bytes.
func Detect(contentType string, payload []byte) string {
	kind, _, _ := strings.Cut(contentType, ";")
	switch strings.ToLower(strings.TrimSpace(kind)) {
	case "application/json":
		return formatJSON
	case "application/senml+json":
		return formatSenMLJSON
	case "application/cbor":
		return formatCBOR
	case "application/senml+cbor":
		return formatSenMLCBOR
	case "application/octet-stream", "text/plain":
		return formatRaw
	}
	trimmed := bytes.TrimLeft(payload, " \t\r\n")
	switch {
	case len(trimmed) == 0:
		return formatRaw
	case trimmed[0] == '{' || trimmed[0] == '[' && json.Valid(trimmed):
		return formatJSON
	case payload[0]>>5 == 4: // a CBOR array: SenML-CBOR is one of maps
		return formatSenMLCBOR
	case payload[0]>>5 == 5:
		return formatCBOR
	}
	return formatRaw
}

// cborMode bounds what a hostile payload can cost.
var cborMode = func() cbor.DecMode {
	mode, err := cbor.DecOptions{MaxNestedLevels: 32, MaxArrayElements: 65536, MaxMapPairs: 65536, DefaultMapType: nil}.DecMode()
	if err != nil {
		panic("BUG: cbor options: " + err.Error())
	}
	return mode
}()

// toJSON returns payload as JSON: raw bytes become a string.
func toJSON(format string, payload []byte) ([]byte, error) {
	switch format {
	case formatJSON, formatSenMLJSON:
		if !json.Valid(payload) {
			return nil, fmt.Errorf("the payload is not JSON")
		}
		return payload, nil
	case formatCBOR, formatSenMLCBOR:
		var v any
		if err := cborMode.Unmarshal(payload, &v); err != nil {
			return nil, fmt.Errorf("the payload is not CBOR: %w", err)
		}
		return json.Marshal(jsonable(v))
	}
	return json.Marshal(string(payload))
}

// jsonable makes what CBOR can say sayable in JSON: keys become strings, byte strings base64, NaN null.
func jsonable(v any) any {
	switch v := v.(type) {
	case map[any]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[fmt.Sprint(k)] = jsonable(e)
		}
		return m
	case []any:
		for i := range v {
			v[i] = jsonable(v[i])
		}
		return v
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil
		}
	case float32:
		return jsonable(float64(v))
	case cbor.Tag:
		return jsonable(v.Content)
	}
	return v
}

// jsonTime reads a top-level field as milliseconds.
func jsonTime(value []byte, field string) (int64, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(value, &fields); err != nil {
		return 0, fmt.Errorf("the payload is not a JSON object: %w", err)
	}
	raw, ok := fields[field]
	if !ok {
		return 0, fmt.Errorf("the payload has no field %q", field)
	}
	var number float64
	if err := json.Unmarshal(raw, &number); err == nil {
		return unixMilli(number), nil
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return 0, fmt.Errorf("field %q is neither a number nor text", field)
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return 0, fmt.Errorf("field %q is not a time: %w", field, err)
	}
	return t.UnixMilli(), nil
}

// secondsMax tells seconds from milliseconds: as seconds it is the year 5138, as milliseconds 1973.
const secondsMax = 1e11

func unixMilli(n float64) int64 {
	if math.Abs(n) < secondsMax {
		n *= 1000
	}
	return int64(math.Round(n))
}
