package dashboard

import (
	"math"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
)

func TestParseTopic(t *testing.T) {
	for topic, want := range map[string]source{
		"city/north/temperature/7":                 {"north", "temperature", "7"},
		"city/harbour/noise/n-12/senml-cbor":       {"harbour", "noise", "n-12"},
		"city/north/temperature":                   {},
		"city//temperature/7":                      {},
		"plant/north/temperature/7":                {},
		"city/north/temperature/\xff":              {},
		"city/" + strings.Repeat("z", 65) + "/k/d": {},
	} {
		got, ok := parseTopic(topic)
		if got != want || ok != (want != source{}) {
			t.Errorf("parseTopic(%q) = %v, %v; want %v", topic, got, ok, want)
		}
	}
}

func TestDecode(t *testing.T) {
	s := source{"north", "temperature", "7"}
	pack := func(records ...map[int]any) string {
		b, err := cbor.Marshal(records)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, c := range map[string]struct {
		payload string
		want    []reading
	}{
		"json object":      {`{"value": 21.5, "unit": "Cel", "timestamp": "2026-01-01 00:00:00"}`, []reading{{s, 21.5, "Cel", 9}}},
		"bare number":      {" -3.25\n", []reading{{s, -3.25, "", 9}}},
		"senml json":       {`[{"bn":"urn:dev:7:","bu":"Cel","bv":20,"v":1.5},{"u":"%RH","v":30}]`, []reading{{s, 21.5, "Cel", 9}, {s, 50, "%RH", 9}}},
		"senml cbor":       {pack(map[int]any{-2: "urn:dev:7", 1: "Cel", 2: 21.5}), []reading{{s, 21.5, "Cel", 9}}},
		"senml cbor base":  {pack(map[int]any{-4: "dB", -5: 40.0, 2: 2}, map[int]any{2: 3}), []reading{{s, 42, "dB", 9}, {s, 43, "dB", 9}}},
		"no value":         {`{"temperature": 3}`, nil},
		"null value":       {`{"value": null}`, nil},
		"string value":     {`{"value": "warm"}`, nil},
		"cut json":         {`{"value": 2`, nil},
		"cut cbor":         {pack(map[int]any{2: 21.5})[:3], nil},
		"not a number":     {"NaN", nil},
		"infinite":         {"Inf", nil},
		"huge":             {strings.Repeat("9", 400), nil},
		"text":             {"hello", nil},
		"empty":            {"", nil},
		"senml of strings": {`[{"n":"a","vs":"open"}]`, nil},
		"too many records": {"[" + strings.Repeat(`{"v":1},`, packMax) + `{"v":1}]`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := decode(s, []byte(c.payload), 9)
			if ok != (c.want != nil) {
				t.Errorf("understood = %v, want %v", ok, c.want != nil)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(reading{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{`{"value":1}`, "12.5", `[{"v":1,"bu":"Cel"}]`, "\x81\xa1\x02\xfb@5\x80\x00\x00\x00\x00\x00", "\x9f\xbf\x02\xf9\x7e\x00\xff\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		readings, ok := decode(source{"z", "k", "d"}, payload, 1)
		if ok != (len(readings) > 0) {
			t.Fatalf("understood = %v with %d readings", ok, len(readings))
		}
		for _, r := range readings {
			if math.IsNaN(r.Value) || math.IsInf(r.Value, 0) || len(r.Unit) > nameBytesMax {
				t.Fatalf("reading %+v", r)
			}
		}
	})
}
