package loadtest

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	// Latencies are kept from a microsecond to ten minutes with three digits: about 300 KB a histogram.
	latencyMin, latencyMax = int64(1), int64(10 * time.Minute / time.Microsecond)
	latencyDigits          = 3
	// shards keeps the workers' recording from becoming a contest for one lock.
	shards = 8
)

// Result is what a load prints, as one line of JSON.
type Result struct {
	Load       string             `json:"load"`
	Operations int64              `json:"operations"`
	Errors     int64              `json:"errors"`
	FirstError string             `json:"first_error,omitempty"`
	Bytes      int64              `json:"bytes"`
	Seconds    float64            `json:"seconds"`
	PerSecond  float64            `json:"per_second"`
	MBPerS     float64            `json:"mb_per_s"` // 10^6 bytes
	Rate       float64            `json:"rate,omitempty"`
	LatencyMs  map[string]float64 `json:"latency_ms,omitempty"`
	// PauseMs is the longest time without a finished operation, between the first and the last.
	PauseMs float64           `json:"longest_pause_ms"`
	With    map[string]string `json:"with"` // the conditions
}

// Meter collects what operations took. Its methods may be called from any goroutine.
type Meter struct {
	ops, bytes, errors atomic.Int64
	firstError         atomic.Pointer[string]
	start              time.Time
	last, pause        atomic.Int64 // nanoseconds since start
	parts              [shards]struct {
		sync.Mutex
		h *hdrhistogram.Histogram
	}
}

// NewMeter starts the clock.
func NewMeter() *Meter {
	m := &Meter{start: time.Now()}
	for i := range m.parts {
		m.parts[i].h = hdrhistogram.New(latencyMin, latencyMax, latencyDigits)
	}
	return m
}

// Done notes a finished operation that was meant to begin (or began) at since. worker spreads the locks.
func (m *Meter) Done(worker int, since time.Time, bytes int) {
	now := time.Now()
	m.ops.Add(1)
	m.bytes.Add(int64(bytes))
	at := int64(now.Sub(m.start))
	if previous := m.last.Swap(at); previous > 0 {
		for gap, old := at-previous, m.pause.Load(); gap > old; old = m.pause.Load() {
			if m.pause.CompareAndSwap(old, gap) {
				break
			}
		}
	}
	p := &m.parts[worker%shards]
	p.Lock()
	defer p.Unlock()
	// Out of range cannot be: the value is clamped to what the histogram holds.
	_ = p.h.RecordValue(max(latencyMin, min(latencyMax, now.Sub(since).Microseconds())))
}

// Failed notes an operation that did not succeed.
func (m *Meter) Failed(err error) {
	m.errors.Add(1)
	text := err.Error()
	m.firstError.CompareAndSwap(nil, &text)
}

func (m *Meter) histogram() *hdrhistogram.Histogram {
	all := hdrhistogram.New(latencyMin, latencyMax, latencyDigits)
	for i := range m.parts {
		m.parts[i].Lock()
		all.Merge(m.parts[i].h)
		m.parts[i].Unlock()
	}
	return all
}

// Result sums up what was measured until now.
func (m *Meter) Result(load string, rate float64, with map[string]string) Result {
	seconds := time.Since(m.start).Seconds()
	if last := m.last.Load(); last > 0 {
		seconds = time.Duration(last).Seconds()
	}
	r := Result{Load: load, Operations: m.ops.Load(), Errors: m.errors.Load(), Bytes: m.bytes.Load(), Seconds: seconds, Rate: rate,
		PauseMs: float64(m.pause.Load()) / 1e6, With: with, LatencyMs: map[string]float64{}}
	if e := m.firstError.Load(); e != nil {
		r.FirstError = *e
	}
	r.PerSecond, r.MBPerS = float64(r.Operations)/seconds, float64(r.Bytes)/seconds/1e6
	h := m.histogram()
	for name, q := range map[string]float64{"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100} {
		r.LatencyMs[name] = float64(h.ValueAtQuantile(q)) / 1000
	}
	r.LatencyMs["mean"] = h.Mean() / 1000
	return r
}

// Progress prints a line a second to w until ctx ends. A nil w prints nothing.
func (m *Meter) Progress(ctx context.Context, w io.Writer) {
	if w == nil {
		return
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var ops, bytes int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		o, b := m.ops.Load(), m.bytes.Load()
		h := m.histogram()
		fmt.Fprintf(w, "%4.0f s  %9d/s  %8.1f MB/s  p50 %.2f ms  p99 %.2f ms  errors %d\n", time.Since(m.start).Seconds(), o-ops, float64(b-bytes)/1e6,
			float64(h.ValueAtQuantile(50))/1000, float64(h.ValueAtQuantile(99))/1000, m.errors.Load())
		ops, bytes = o, b
	}
}

// schedule hands out the moments at which operations are meant to begin, until the count or the time is used up. It is shared by all workers.
type schedule struct {
	start    time.Time
	interval time.Duration // 0 = at once
	count    int64         // 0 = no bound
	until    time.Time     // zero = no bound
	next     atomic.Int64
}

// newSchedule needs a bound: a count or a duration.
func newSchedule(rate float64, count int64, duration time.Duration) (*schedule, error) {
	if count <= 0 && duration <= 0 {
		return nil, fmt.Errorf("a load needs an end: say how many records or how long")
	}
	if rate < 0 {
		return nil, fmt.Errorf("rate %v is negative", rate)
	}
	s := &schedule{start: time.Now(), count: count}
	if rate > 0 {
		s.interval = time.Duration(float64(time.Second) / rate)
	}
	if duration > 0 {
		s.until = s.start.Add(duration)
	}
	return s, nil
}

// take waits for the next moment and returns it with its number; false when the load is over.
func (s *schedule) take(ctx context.Context) (time.Time, int64, bool) {
	n := s.next.Add(1) - 1
	if ctx.Err() != nil || (s.count > 0 && n >= s.count) {
		return time.Time{}, 0, false
	}
	at := time.Now()
	if s.interval > 0 {
		at = s.start.Add(time.Duration(n) * s.interval)
	}
	if !s.until.IsZero() && at.After(s.until) {
		return time.Time{}, 0, false
	}
	if d := time.Until(at); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return time.Time{}, 0, false
		case <-t.C:
		}
	}
	return at, n, true
}
