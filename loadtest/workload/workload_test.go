package workload

import (
	"testing"

	"pgregory.net/rapid"

	"sluice/loadtest/history"
)

func TestValuesAreReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := rapid.StringMatching(`[a-z]{1,10}-[wd][0-9]{1,4}`).Draw(t, "writer")
		n := rapid.Int64Min(0).Draw(t, "number")
		size := rapid.IntRange(minSize, 400).Draw(t, "size")
		b := value(w, n, size)
		writer, number, ok := parse(b)
		if len(b) != size || writer != w || number != n || !ok {
			t.Fatalf("%q: %s %d %v", b, writer, number, ok)
		}
	})
	for _, s := range []string{"", "a", "a b", "a b c", "  "} {
		if _, _, ok := parse([]byte(s)); ok {
			t.Errorf("%q is taken for a numbered value", s)
		}
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no brokers":   {History: history.New(nil)},
		"no history":   {Brokers: []string{"x:1"}},
		"small values": {Brokers: []string{"x:1"}, History: history.New(nil), Size: 10},
		"no rate":      {Brokers: []string{"x:1"}, History: history.New(nil), Rate: -1},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(Config{Brokers: []string{"x:1"}, History: history.New(nil)}); err != nil {
		t.Error(err)
	}
}
