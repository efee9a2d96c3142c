package dashboard

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

const (
	// nameBytesMax bounds zone, kind and device names: what is longer is nobody's sensor.
	nameBytesMax = 64
	// packMax bounds the records of one SenML pack.
	packMax = 1000
)

// reading is one value of one device. Time is in milliseconds since 1970, as the log has it.
type reading struct {
	source
	Value float64
	Unit  string
	Time  int64
}

// source names a sensor: city/<Zone>/<Kind>/<Device>.
type source struct{ Zone, Kind, Device string }

// parseTopic reads an MQTT topic. Levels after the device (the encoding, say) are ignored.
func parseTopic(topic string) (source, bool) {
	levels := strings.Split(topic, "/")
	if len(levels) < 4 || levels[0] != "city" {
		return source{}, false
	}
	for _, l := range levels[1:4] {
		if l == "" || len(l) > nameBytesMax || !utf8.ValidString(l) {
			return source{}, false
		}
	}
	return source{levels[1], levels[2], levels[3]}, true
}

// decode reads the values of a payload. The order of the guesses matters only for speed: no payload is valid in two of the encodings.
func decode(s source, payload []byte, timeMs int64) ([]reading, bool) {
	text := bytes.TrimSpace(payload)
	if len(text) == 0 {
		return nil, false
	}
	switch {
	case text[0] == '{':
		return decodeObject(s, text, timeMs)
	case text[0] == '[':
		var pack []senml
		if json.Unmarshal(text, &pack) != nil {
			return nil, false
		}
		return resolve(s, pack, timeMs)
	}
	if v, err := strconv.ParseFloat(string(text[:min(len(text), 40)]), 64); err == nil && len(text) <= 40 {
		return one(s, v, "", timeMs)
	}
	var pack []senml
	if senmlDecoder.Unmarshal(payload, &pack) != nil {
		return nil, false
	}
	return resolve(s, pack, timeMs)
}

func decodeObject(s source, text []byte, timeMs int64) ([]reading, bool) {
	var o struct {
		Value *float64 `json:"value"`
		Unit  string   `json:"unit"`
	}
	if json.Unmarshal(text, &o) != nil || o.Value == nil {
		return nil, false
	}
	return one(s, *o.Value, o.Unit, timeMs)
}

func one(s source, v float64, unit string, timeMs int64) ([]reading, bool) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil, false
	}
	if len(unit) > nameBytesMax || !utf8.ValidString(unit) {
		unit = ""
	}
	return []reading{{s, v, unit, timeMs}}, true
}

// senml is one record of a pack (RFC 8428 tables 1 and 4). Names and times are not needed: the topic names the device, the log has the time.
type senml struct {
	BaseUnit  string   `json:"bu" cbor:"-4,keyasint"`
	BaseValue *float64 `json:"bv" cbor:"-5,keyasint"`
	Unit      string   `json:"u" cbor:"1,keyasint"`
	Value     *float64 `json:"v" cbor:"2,keyasint"`
	Sum       *float64 `json:"s" cbor:"5,keyasint"`
}

var senmlDecoder = func() cbor.DecMode {
	m, err := cbor.DecOptions{MaxArrayElements: packMax, MaxMapPairs: 32, MaxNestedLevels: 4}.DecMode()
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return m
}()

// resolve applies base values and units (RFC 8428 section 4.1) and keeps what has a number.
func resolve(s source, pack []senml, timeMs int64) ([]reading, bool) {
	if len(pack) > packMax {
		return nil, false
	}
	var out []reading
	baseUnit, base := "", 0.0
	for _, r := range pack {
		if r.BaseUnit != "" {
			baseUnit = r.BaseUnit
		}
		if r.BaseValue != nil {
			base = *r.BaseValue
		}
		if r.Value == nil {
			continue
		}
		unit := r.Unit
		if unit == "" {
			unit = baseUnit
		}
		if x, ok := one(s, base+*r.Value, unit, timeMs); ok {
			out = append(out, x...)
		}
	}
	return out, len(out) > 0
}
