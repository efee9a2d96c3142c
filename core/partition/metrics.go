package partition

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/VictoriaMetrics/metrics"
)

// setMetrics counts what one set does.
type setMetrics struct {
	set *metrics.Set

	entries          *metrics.Counter
	entriesRefused   *metrics.Counter
	writes           *metrics.Counter
	bytes            *metrics.Counter
	duplicates       *metrics.Counter
	producersEvicted *metrics.Counter
	checkpoints      *metrics.Counter
	sweepErrors      *metrics.Counter
	failures         *metrics.Counter
	fetchedBytes     *metrics.Counter
	fetchedSegments  *metrics.Counter
	fetchErrors      *metrics.Counter
	servedBytes      *metrics.Counter

	damageSeen, repaired, repairErrors *metrics.Counter

	swaps, swappedBefore, swappedAfter *metrics.Counter

	refusals []refusal
	other    *metrics.Counter
}

// refusal counts refused items by reason.
type refusal struct {
	err   error
	count *metrics.Counter
}

func newSetMetrics(s *Set) *setMetrics {
	m := &setMetrics{set: metrics.NewSet()}
	counter := func(what string) *metrics.Counter {
		return m.set.NewCounter(fmt.Sprintf("sluice_partition_%s_total{shard=\"%d\"}", what, s.o.Shard))
	}
	m.entries = counter("entries")
	m.entriesRefused = counter("entries_refused")
	m.writes = counter("writes")
	m.bytes = counter("written_bytes")
	m.duplicates = counter("duplicate_batches")
	m.producersEvicted = counter("producers_evicted")
	m.checkpoints = counter("checkpoints")
	m.sweepErrors = counter("sweep_errors")
	m.failures = counter("failures")
	m.fetchedBytes = counter("fetched_bytes")
	m.fetchedSegments = counter("fetched_segments")
	m.fetchErrors = counter("fetch_errors")
	m.servedBytes = counter("served_bytes")
	repair := func(what string) *metrics.Counter {
		return m.set.NewCounter(fmt.Sprintf("sluice_repair_%s_total{shard=\"%d\"}", what, s.o.Shard))
	}
	m.damageSeen, m.repaired, m.repairErrors = repair("damaged_segments"), repair("repaired_segments"), repair("errors")
	m.swaps, m.swappedBefore, m.swappedAfter = counter("swaps"), counter("swapped_before_bytes"), counter("swapped_after_bytes")
	m.addRefusals(s)
	m.addGauges(s)
	return m
}

func (m *setMetrics) addRefusals(s *Set) {
	counter := func(reason string) *metrics.Counter {
		return m.set.NewCounter(fmt.Sprintf("sluice_partition_refused_items_total{shard=\"%d\",reason=%q}", s.o.Shard, reason))
	}
	m.refusals = []refusal{
		{ErrUnknownPartition, counter("unknown_partition")},
		{ErrFrozen, counter("frozen")},
		{ErrOutOfOrderSequence, counter("out_of_order_sequence")},
		{ErrInvalidProducerEpoch, counter("invalid_producer_epoch")},
		{ErrDuplicateSequence, counter("duplicate_sequence")},
		{ErrInvalidTxnState, counter("invalid_txn_state")},
	}
	m.other = counter("invalid_batch")
}

func (m *setMetrics) addGauges(s *Set) {
	gauge := func(what string, f func() float64) {
		m.set.NewGauge(fmt.Sprintf("sluice_partition_%s{shard=\"%d\"}", what, s.o.Shard), f)
	}
	gauge("partitions", func() float64 { return float64(s.Len()) })
	gauge("producers", func() float64 { return float64(s.producerCount()) })
	gauge("missing_segments", func() float64 { return float64(s.catchUp.segments()) })
	m.set.NewGauge(fmt.Sprintf("sluice_repair_waiting_segments{shard=\"%d\"}", s.o.Shard), func() float64 { return float64(s.wounds.healing()) })
	m.set.NewGauge(fmt.Sprintf("sluice_repair_hopeless_segments{shard=\"%d\"}", s.o.Shard), func() float64 { _, n := s.wounds.count(); return float64(n) })
	gauge("doomed", func() float64 { return float64(s.doomed.len()) })
}

func (m *setMetrics) refused(err error) {
	for i := range m.refusals {
		if errors.Is(err, m.refusals[i].err) {
			m.refusals[i].count.Inc()
			return
		}
	}
	m.other.Inc()
}

// WritePrometheus writes the set's metrics as Prometheus text.
func (s *Set) WritePrometheus(w io.Writer) { s.metrics.set.WritePrometheus(w) }

func (s *Set) producerCount() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for _, p := range s.partitions {
		p.state.Lock()
		n += p.state.producers.len()
		p.state.Unlock()
	}
	return n
}

// Status is what a set shows at /status.
type Status struct {
	Shard           uint32 `json:"shard"`
	Partitions      int    `json:"partitions"`
	Producers       int    `json:"producers"`
	Bytes           int64  `json:"bytes"`
	Complete        bool   `json:"complete"`
	MissingSegments int    `json:"missingSegments"`
	MissingBytes    int64  `json:"missingBytes"`
	Doomed          int    `json:"waitingForCheckpoint"`
	// Damaged segments are being repaired, or wait for a peer that has them.
	Damaged []DamagedSegment `json:"damaged,omitempty"`
	Error   string           `json:"error,omitempty"`
}

// DamagedSegment is one line of a Status.
type DamagedSegment struct {
	File     string `json:"file"`
	Error    string `json:"error"`
	Hopeless bool   `json:"noReplicaHasIt,omitempty"`
}

// statusDamaged bounds the list in a Status; metrics have the number.
const statusDamaged = 20

func (w *wounds) status(where func(dir string) string) (list []DamagedSegment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.mu.list[:min(len(w.mu.list), statusDamaged)] {
		list = append(list, DamagedSegment{File: filepath.Join(where(x.p.dir), filepath.Base(x.p.segmentPath(x.base))), Error: x.cause.Error(), Hopeless: x.hopeless})
	}
	return list
}

// Status describes the set.
func (s *Set) Status() any {
	st := Status{
		Shard: uint32(s.o.Shard), Partitions: s.Len(), Producers: s.producerCount(),
		Complete: s.Complete(), MissingSegments: s.catchUp.segments(), MissingBytes: s.catchUp.bytes(),
		Doomed: s.doomed.len(), Damaged: s.wounds.status(s.o.Dirs.where),
	}
	for p := range s.All() {
		st.Bytes += p.Bytes()
	}
	if err := s.Err(); err != nil {
		st.Error = err.Error()
	}
	return st
}
