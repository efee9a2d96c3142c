package broker

import (
	"strings"
	"sync"
	"testing"
)

// TestFailuresCounted checks that errors are counted by API and code, also by many at once, and that counting one again makes nothing.
func TestFailuresCounted(t *testing.T) {
	m := newBrokerMetrics()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 1000 {
				m.failed("Fetch", codeUnknownTopicID)
				m.failed("Metadata", codeUnknownTopicID)
				m.failed("Metadata", codeNone)
			}
		})
	}
	all.Wait()
	m.failed("Metadata", 30_000)
	var text strings.Builder
	m.set.WritePrometheus(&text)
	for _, want := range []string{
		`sluice_broker_errors_total{api="Fetch",error="UNKNOWN_TOPIC_ID"} 4000`, `sluice_broker_errors_total{api="Metadata",error="UNKNOWN_TOPIC_ID"} 4000`,
		`sluice_broker_errors_total{api="Metadata",error="UNKNOWN_SERVER_ERROR"} 1`,
	} {
		if !strings.Contains(text.String(), want+"\n") {
			t.Errorf("%s is missing in\n%s", want, text.String())
		}
	}
	if n := testing.AllocsPerRun(100, func() { m.failed("Fetch", codeUnknownTopicID) }); n > 1 { // the key
		t.Errorf("counting an error makes %v objects", n)
	}
}
