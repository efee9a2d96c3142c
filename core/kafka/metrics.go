package kafka

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// serverMetrics are the counters of a server. Those of a key are made when the table is known, so that counting a request takes no lock.
type serverMetrics struct {
	set               *metrics.Set
	accepted, refused *metrics.Counter
	received, sent    *metrics.Counter
	requests          map[int16]*metrics.Counter
	seconds           map[int16]*metrics.Histogram
}

func newServerMetrics(s *Server) *serverMetrics {
	set := metrics.NewSet()
	m := &serverMetrics{
		set:      set,
		accepted: set.NewCounter("sluice_kafka_connections_accepted_total"),
		refused:  set.NewCounter("sluice_kafka_connections_refused_total"),
		received: set.NewCounter("sluice_kafka_received_bytes_total"),
		sent:     set.NewCounter("sluice_kafka_sent_bytes_total"),
		requests: make(map[int16]*metrics.Counter),
		seconds:  make(map[int16]*metrics.Histogram),
	}
	set.NewGauge("sluice_kafka_connections", func() float64 { return float64(s.Connections()) })
	for _, v := range s.opts.Versions.All() {
		name := kmsg.NameForKey(v.Key)
		m.requests[v.Key] = set.NewCounter(fmt.Sprintf("sluice_kafka_requests_total{api=%q}", name))
		m.seconds[v.Key] = set.NewHistogram(fmt.Sprintf("sluice_kafka_request_seconds{api=%q}", name))
	}
	return m
}

func (m *serverMetrics) request(key int16, took time.Duration) {
	m.requests[key].Inc()
	m.seconds[key].Update(took.Seconds())
}

func (m *serverMetrics) closed(reason string) *metrics.Counter {
	return m.set.GetOrCreateCounter(fmt.Sprintf("sluice_kafka_connections_closed_total{reason=%q}", reason))
}

// WritePrometheus writes the server's metrics in Prometheus' text form.
func (s *Server) WritePrometheus(w io.Writer) { s.metrics.set.WritePrometheus(w) }

// Status is the server's part of /status.
type Status struct {
	Connections    int   `json:"connections"`
	ConnectionsMax int   `json:"connections_max"`
	MemoryBytesMax int64 `json:"memory_bytes_max"`
}

// Status returns the server's state.
func (s *Server) Status() Status {
	return Status{Connections: s.Connections(), ConnectionsMax: s.opts.ConnectionsMax, MemoryBytesMax: s.opts.MemoryBytes}
}

const (
	// warningsPerWindow of bad clients are logged within warningWindow; the rest is counted, so that garbage cannot fill a disk.
	warningsPerWindow = 20
	warningWindow     = 10 * time.Second
)

// limitedLog logs warnings at a bounded rate.
type limitedLog struct {
	log *slog.Logger
	mu  struct {
		sync.Mutex
		since      time.Time
		logged     int
		suppressed int
	}
}

func (l *limitedLog) warn(msg string, args ...any) {
	if suppressed, ok := l.allow(time.Now()); ok {
		if suppressed > 0 {
			args = append(args, "suppressed", suppressed)
		}
		l.log.Warn(msg, args...)
	}
}

func (l *limitedLog) allow(now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.mu.since) > warningWindow {
		l.mu.since, l.mu.logged = now, 0
	}
	if l.mu.logged >= warningsPerWindow {
		l.mu.suppressed++
		return 0, false
	}
	l.mu.logged++
	suppressed, l.mu.suppressed = l.mu.suppressed, 0
	return suppressed, true
}
