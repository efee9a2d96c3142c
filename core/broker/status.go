package broker

import (
	"fmt"
	"io"
	"sync"

	"github.com/VictoriaMetrics/metrics"
	"github.com/twmb/franz-go/pkg/kerr"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// brokerMetrics counts what the handlers of this package do; core/kafka counts requests, bytes and connections.
type brokerMetrics struct {
	set                           *metrics.Set
	producedBytes, producedBatch  *metrics.Counter
	recompressed                  *metrics.Counter
	refusedLowDisk                *metrics.Counter
	fetchedBytes, fetchedEmpty    *metrics.Counter
	sessionsOpened, sessionsEnded *metrics.Counter
	failures                      sync.Map // failure to its *metrics.Counter: a request may name 100,000 partitions that are not there
}

func newBrokerMetrics() *brokerMetrics {
	set := metrics.NewSet()
	return &brokerMetrics{
		set:            set,
		producedBytes:  set.NewCounter("sluice_broker_produced_bytes_total"),
		producedBatch:  set.NewCounter("sluice_broker_produced_batches_total"),
		recompressed:   set.NewCounter("sluice_broker_recompressed_batches_total"),
		refusedLowDisk: set.NewCounter("sluice_broker_produce_refused_low_disk_total"),
		fetchedBytes:   set.NewCounter("sluice_broker_fetched_bytes_total"),
		fetchedEmpty:   set.NewCounter("sluice_broker_fetches_empty_total"),
		sessionsOpened: set.NewCounter("sluice_broker_fetch_sessions_opened_total"),
		sessionsEnded:  set.NewCounter("sluice_broker_fetch_sessions_evicted_total"),
	}
}

// failed counts an error that a partition of a request was answered with.
func (m *brokerMetrics) failed(api string, code int16) {
	if code == codeNone {
		return
	}
	key := failure{api: api, code: code}
	if c, ok := m.failures.Load(key); ok {
		c.(*metrics.Counter).Inc()
		return
	}
	name := "UNKNOWN"
	if e := kerr.TypedErrorForCode(code); e != nil {
		name = e.Message
	}
	c := m.set.GetOrCreateCounter(fmt.Sprintf("sluice_broker_errors_total{api=%q,error=%q}", api, name))
	m.failures.Store(key, c)
	c.Inc()
}

// failure is what errors are counted by. There are as many as APIs and codes of ours.
type failure struct {
	api  string
	code int16
}

// WritePrometheus writes the metrics of the broker and all its parts in Prometheus' text form.
func (b *Broker) WritePrometheus(w io.Writer) {
	b.server.WritePrometheus(w)
	b.metrics.set.WritePrometheus(w)
	for _, p := range b.parts {
		p.WritePrometheus(w)
	}
}

// Status is the broker's part of /status.
type Status struct {
	Node          meta.NodeID    `json:"node"`
	Listeners     []string       `json:"listeners"`
	Server        kafka.Status   `json:"server"`
	FetchSessions int            `json:"fetch_sessions"`
	APIs          []string       `json:"apis"`
	Parts         map[string]any `json:"parts,omitempty"`
}

// Status returns the broker's state, fit for JSON.
func (b *Broker) Status() any {
	s := Status{Node: b.self(), Server: b.server.Status(), FetchSessions: b.sessions.len(), Parts: make(map[string]any)}
	for _, l := range b.opts.Listeners {
		s.Listeners = append(s.Listeners, l.Name+"://"+l.Addr().String())
	}
	for _, v := range b.table.All() {
		s.APIs = append(s.APIs, fmt.Sprintf("%d: %d-%d", v.Key, v.Min, v.Max))
	}
	for name, p := range b.parts {
		s.Parts[name] = p.Status()
	}
	return s
}
