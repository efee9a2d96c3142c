package buffer

import (
	"io"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

type meters struct {
	set                                                *metrics.Set
	commits, records, bytes, refused, dropped, trimmed *metrics.Counter
	seconds                                            *metrics.Histogram
}

func newMeters() *meters {
	s := metrics.NewSet()
	return &meters{
		set:     s,
		commits: s.NewCounter("sluice_buffer_commits_total"),
		records: s.NewCounter("sluice_buffer_records_total"),
		bytes:   s.NewCounter("sluice_buffer_written_bytes_total"),
		refused: s.NewCounter("sluice_buffer_refused_messages_total"),
		dropped: s.NewCounter("sluice_buffer_dropped_messages_total"),
		trimmed: s.NewCounter("sluice_buffer_trimmed_bytes_total"),
		seconds: s.NewHistogram("sluice_buffer_commit_seconds"),
	}
}

func (m *meters) observe(b *Buffer) {
	gauge := func(name string, fn func() int64) { m.set.NewGauge(name, func() float64 { return float64(fn()) }) }
	gauge("sluice_buffer_log_bytes", b.log.Bytes)
	gauge("sluice_buffer_start_offset", b.log.Start)
	gauge("sluice_buffer_synced_offset", b.Synced)
	gauge("sluice_buffer_confirmed_offset", b.Confirmed)
}

func (m *meters) committed(records, bytes int, begin time.Time) {
	m.commits.Inc()
	m.records.Add(records)
	m.bytes.Add(bytes)
	m.seconds.UpdateDuration(begin)
}

// WritePrometheus writes the buffer's metrics.
func (b *Buffer) WritePrometheus(w io.Writer) { b.metrics.set.WritePrometheus(w) }

// Status is the buffer's state for /status.
type Status struct {
	Start     int64  `json:"start_offset"`
	Synced    int64  `json:"synced_offset"`
	Confirmed int64  `json:"confirmed_offset"`
	Bytes     int64  `json:"bytes"`
	Budget    int64  `json:"budget_bytes,omitempty"`
	Full      bool   `json:"full"`
	Error     string `json:"error,omitempty"`
}

// Status returns the state now.
func (b *Buffer) Status() any {
	s := Status{Start: b.log.Start(), Synced: b.Synced(), Confirmed: b.Confirmed(), Bytes: b.log.Bytes(), Budget: b.o.BudgetBytes, Full: b.Full()}
	if err := b.Err(); err != nil {
		s.Error = err.Error()
	}
	return s
}
