package ingest

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sluice/core/record"
)

var noon = time.UnixMilli(1_790_000_000_123)

// out is a routed message, readable.
type out struct {
	Topic, Key, Value string
	TimeMs            int64
	Headers           []string
}

func routed(t *testing.T, rules []Rule, in Input) []out {
	t.Helper()
	r, err := NewRouter(rules)
	if err != nil {
		t.Fatal(err)
	}
	if in.Time.IsZero() {
		in.Time = noon
	}
	var s Scratch
	var all []out
	for _, m := range r.Route(&in, &s) {
		o := out{string(m.Topic), string(m.Key), string(m.Value), m.TimestampMs, nil}
		if m.Key == nil {
			o.Key = "<null>"
		}
		for _, h := range m.Headers {
			o.Headers = append(o.Headers, h.Key+"="+string(h.Value))
		}
		all = append(all, o)
	}
	return all
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got)\n%s", diff)
	}
}

var standard = []string{"mqtt.client=c1", "mqtt.topic=city/north/temperature/7", "mqtt.qos=1", "gateway.time=1790000000123"}

func message(payload string) Input {
	return Input{Client: "c1", Topic: "city/north/temperature/7", QoS: 1, Payload: []byte(payload)}
}

func TestDefaultRule(t *testing.T) {
	same(t, routed(t, nil, message("21.5")), []out{{"mqtt", "city/north/temperature/7", "21.5", noon.UnixMilli(), standard}})
}

func TestDefaultRuleTakesDollarTopics(t *testing.T) {
	got := routed(t, nil, Input{Client: "c", Topic: "$own/x", Payload: []byte("v")})
	if got[0].Topic != "mqtt" || got[0].Key != "$own/x" {
		t.Fatalf("got %+v", got)
	}
}

func TestFirstMatchingRuleDecides(t *testing.T) {
	rules := []Rule{
		{Filter: "city/+/noise/#", Topic: "noise"},
		{Filter: "city/+/temperature/#", Topic: "${3}-of-${2}", Key: "${4}", Headers: map[string]string{"zone": "${2}", "by": "${client}/${qos}"}},
		{Filter: "#", Topic: "rest", Key: "-", NoHeaders: true},
	}
	same(t, routed(t, rules, message("1")), []out{{"temperature-of-north", "7", "1", noon.UnixMilli(), append(standard[:4:4], "by=c1/1", "zone=north")}})
	in := message("1")
	in.Topic = "else"
	same(t, routed(t, rules, in), []out{{"rest", "<null>", "1", noon.UnixMilli(), nil}})
}

// A device chooses its MQTT topic; the core's topic must be one of Kafka's all the same.
func TestTemplatedTopicIsAlwaysValid(t *testing.T) {
	r, err := NewRouter([]Rule{{Filter: "#", Topic: "${topic}"}})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		in := Input{Topic: rapid.StringN(1, 400, 1000).Draw(t, "topic"), Time: noon}
		m := r.Route(&in, &Scratch{})[0]
		if err := ValidTopic(string(m.Topic)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRulesThatAreRefused(t *testing.T) {
	for want, rule := range map[string]Rule{
		`routing[0].filter: filter "a/#/b": # must be the whole last level`:                         {Filter: "a/#/b", Topic: "t"},
		`routing[0].filter: filter "a+": + must be a whole level`:                                   {Filter: "a+", Topic: "t"},
		`routing[0].topic: a topic's name must not be empty`:                                        {Filter: "a"},
		`routing[0].topic: topic "a b": only letters, digits, '.', '_' and '-' are allowed`:         {Filter: "a", Topic: "a b"},
		`routing[0].topic: ${0}: want topic, client, qos or the number of a level (1 is the first)`: {Filter: "a", Topic: "${0}"},
		`routing[0].key: "${1": ${ without }`:                                                       {Filter: "a", Topic: "t", Key: "${1"},
		`routing[0].headers: "sluice.to": a header needs a name that does not begin with sluice`:    {Filter: "a", Topic: "t", Headers: map[string]string{"sluice.to": "x"}},
		`routing[0].timestamp: "now": want gateway, senml or json:<field>`:                          {Filter: "a", Topic: "t", Timestamp: "now"},
		`routing[0].format: "xml": want auto, json, cbor, senml-json, senml-cbor or raw`:            {Filter: "a", Topic: "t", Format: "xml"},
		`routing[0].normalise: "xml": want json or senml`:                                           {Filter: "a", Topic: "t", Normalise: "xml"},
		`routing[0].topic: topic "` + strings.Repeat("a", 250) + `": longer than 249 characters`:    {Filter: "a", Topic: strings.Repeat("a", 250)},
	} {
		_, err := NewRouter([]Rule{rule})
		if err == nil || err.Error() != want {
			t.Errorf("%+v: error %v, want %s", rule, err, want)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"#", "a", true}, {"#", "/", true}, {"#", "$SYS/a", false}, {"+/a", "$SYS/a", false}, {"$SYS/#", "$SYS/a", true},
		{"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/#", "ab", false}, {"+/#", "a", true}, {"a/+", "a", false}, {"a/+", "a/", true},
		{"+", "a/b", false}, {"+/+", "/a", true}, {"/+", "/a", true}, {"a/b", "a/b", true}, {"a", "A", false}, {"a/+/c", "a/b/c", true},
		{"a/b", "a", false}, {"a", "a/b", false}, {"a/$x/+", "a/$x/b", true}, {"+/b/#", "a/b", true},
	} {
		if got := Match(c.filter, c.topic); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.filter, c.topic, got)
		}
	}
}

func TestTimestampOfJSONField(t *testing.T) {
	rule := []Rule{{Filter: "#", Topic: "t", Timestamp: "json:at", NoHeaders: true}}
	for payload, want := range map[string]int64{
		`{"at":1700000000}`: 1_700_000_000_000, `{"at":1700000000123}`: 1_700_000_000_123, `{"at":1700000000.5}`: 1_700_000_000_500,
		`{"at":"2023-11-14T22:13:20Z"}`: 1_700_000_000_000,
	} {
		got := routed(t, rule, message(payload))
		if got[0].TimeMs != want || got[0].Value != payload || got[0].Headers != nil {
			t.Errorf("%s: got %+v, want time %d", payload, got[0], want)
		}
	}
	for payload, reason := range map[string]string{
		`{"x":1}`: `the payload has no field "at"`, `5`: "not a JSON object", `{"at":"soon"}`: "is not a time", `no`: "",
	} {
		got := routed(t, rule, message(payload))
		if got[0].TimeMs != noon.UnixMilli() || got[0].Value != payload || len(got[0].Headers) != 1 || !strings.Contains(got[0].Headers[0], reason) {
			t.Errorf("%s: got %+v, want it as it came, with %q", payload, got[0], reason)
		}
	}
}

// The examples of RFC 8428, sections 5.1.2 and 5.1.3, and one with a base value.
func TestNormaliseSenML(t *testing.T) {
	rule := []Rule{{Filter: "#", Topic: "t", Normalise: "senml", Timestamp: "senml", NoHeaders: true}}
	pack := `[{"bn":"urn:dev:ow:10e2073a01080063:","bt":1.320067464e+09,"bu":"%RH","v":20},{"n":"x","u":"lon","v":24.3},{"t":60,"v":20.3}]`
	got := routed(t, rule, message(pack))
	same(t, got, []out{
		{"t", "city/north/temperature/7", `[{"n":"urn:dev:ow:10e2073a01080063:","u":"%RH","t":1320067464,"v":20}]`, 1_320_067_464_000, []string{"content-type=application/senml+json"}},
		{"t", "city/north/temperature/7", `[{"n":"urn:dev:ow:10e2073a01080063:x","u":"lon","t":1320067464,"v":24.3}]`, 1_320_067_464_000, []string{"content-type=application/senml+json"}},
		{"t", "city/north/temperature/7", `[{"n":"urn:dev:ow:10e2073a01080063:","u":"%RH","t":1320067524,"v":20.3}]`, 1_320_067_524_000, []string{"content-type=application/senml+json"}},
	})
}

// The CBOR of RFC 8428, section 6: the pack of section 5.1.3 in hexadecimal.
func TestSenMLInCBOR(t *testing.T) {
	b, err := hex.DecodeString("87a721781b75726e3a6465763a6f773a3130653230373361303130383030363a22fb41d303a15b00106223614120050067766f6c7461676501615602fb405e066666666666" +
		"a3006763757272656e74062402fb3ff3333333333333" + "a3006763757272656e74062302fb3ff4cccccccccccd" + "a3006763757272656e74062202fb3ff6666666666666" +
		"a3006763757272656e74062102f93e00" + "a3006763757272656e74062002fb3ff999999999999a" + "a3006763757272656e74060002fb3ffb333333333333")
	if err != nil {
		t.Fatal(err)
	}
	pack, err := ParseSenML(true, b, noon)
	if err != nil {
		t.Fatal(err)
	}
	if len(pack) != 7 || pack[0].Name != "urn:dev:ow:10e2073a0108006:voltage" || pack[0].Unit != "V" || *pack[0].Value != 120.1 {
		t.Fatalf("got %+v", pack)
	}
	if last := pack[6]; last.Name != "urn:dev:ow:10e2073a0108006:current" || last.Unit != "A" || *last.Value != 1.7 || pack[1].Time != last.Time-5 {
		t.Fatalf("got %+v after %+v", last, pack[1])
	}
}

func TestSenMLThatIsRefused(t *testing.T) {
	for payload, reason := range map[string]string{
		`[]`: "no measurement", `{}`: "not SenML", `[{"v":1}]`: "no name", `[{"bver":11,"n":"a","v":1}]`: "newer", `[{"n":"a"}]`: "no measurement", `[{"n":5,"v":1}]`: "not SenML",
	} {
		if _, err := ParseSenML(false, []byte(payload), noon); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: error %v, want %q", payload, err, reason)
		}
	}
	if _, err := ParseSenML(true, []byte{0x9f, 0x9f, 0x9f}, noon); err == nil {
		t.Error("cut CBOR was taken")
	}
}

func TestNormaliseCBORToJSON(t *testing.T) {
	b, err := cbor.Marshal(map[any]any{"t": 21.5, 1: []any{true, "x"}, "b": []byte{1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	got := routed(t, []Rule{{Filter: "#", Topic: "t", Normalise: "json", NoHeaders: true}}, message(string(b)))
	same(t, got, []out{{"t", "city/north/temperature/7", `{"1":[true,"x"],"b":"AQI=","t":21.5}`, noon.UnixMilli(), []string{"content-type=application/json"}}})
}

func FuzzNormalise(f *testing.F) {
	for _, seed := range []string{"", "1", `{"a":1}`, `[{"n":"a","v":1}]`, "\x81\xa2\x00aa\x02\x01", "\xa1\xff", "\x9f\x9f\x9f"} {
		f.Add([]byte(seed))
	}
	var routers []*Router
	for _, rule := range []Rule{{Normalise: "json"}, {Normalise: "senml", Timestamp: "senml"}, {Timestamp: "json:t"}, {Normalise: "json", Format: "cbor"}} {
		rule.Filter, rule.Topic = "#", "t"
		r, err := NewRouter([]Rule{rule})
		if err != nil {
			f.Fatal(err)
		}
		routers = append(routers, r)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		for _, r := range routers {
			in := Input{Client: "c", Topic: "a", Payload: payload, Time: noon}
			if len(r.Route(&in, &Scratch{})) == 0 {
				t.Fatal("a message vanished")
			}
		}
	})
}

func BenchmarkDefaultRule(b *testing.B) {
	r, err := NewRouter(nil)
	if err != nil {
		b.Fatal(err)
	}
	in := message("21.5")
	in.Time = noon
	var s Scratch
	builder := record.NewBuilder(record.BuilderOptions{ProducerID: record.NoProducer})
	b.ReportAllocs()
	for b.Loop() {
		m := r.Route(&in, &s)[0]
		builder.Add(m.TimestampMs, m.Key, m.Value, m.Headers)
		if builder.Bytes() > 1<<20 {
			builder.Reset()
		}
	}
}
