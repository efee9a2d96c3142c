package firmwaresim

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// SenMLSuffix is the topic level that says: the payload is SenML in CBOR.
const SenMLSuffix = "/senml-cbor"

// jsonReading is the JSON payload.
type jsonReading struct {
	Timestamp string  `json:"timestamp"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
}

func encodeJSON(at time.Time, value float64, unit string) []byte {
	b, err := json.Marshal(jsonReading{at.UTC().Format(time.RFC3339Nano), value, unit})
	if err != nil {
		panic("BUG: encode reading: " + err.Error())
	}
	return b
}

// senmlRecord has the labels of RFC 8428 table 4.
type senmlRecord struct {
	BaseName string  `cbor:"-2,keyasint"`
	BaseTime float64 `cbor:"-3,keyasint"` // seconds since 1970
	Unit     string  `cbor:"1,keyasint"`
	Value    float64 `cbor:"2,keyasint"`
}

func encodeSenML(device string, at time.Time, value float64, unit string) []byte {
	b, err := cbor.Marshal([]senmlRecord{{"urn:dev:sim:" + device, float64(at.UnixMilli()) / 1000, unit, value}})
	if err != nil {
		panic("BUG: encode reading: " + err.Error())
	}
	return b
}

// replayed is the payload of a row of a recording: the time as the file has it, the value digit by digit.
func replayed(timestamp, value string) ([]byte, error) {
	if !json.Valid([]byte(value)) {
		return nil, fmt.Errorf("value %q is not a number", value)
	}
	return json.Marshal(struct {
		Timestamp string      `json:"timestamp"`
		Value     json.Number `json:"value"`
	}{timestamp, json.Number(value)})
}
