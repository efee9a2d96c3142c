package history

import (
	"runtime"
	"testing"
	"time"
)

// long plays a run of so many records: four writers, six partitions, three readers that each read everything, and a group.
func long(records int64) *History {
	clock := time.Now()
	h := New(func() time.Time { return clock })
	t := h.Topic("t", TopicOptions{Partitions: 6, Contiguous: true})
	m := h.Group("g", t).Member("m")
	sessions := []*Session{h.Session("one"), h.Session("two"), h.Session("three")}
	writers := []*Writer{h.Writer("a", t), h.Writer("b", t), h.Writer("c", t), h.Writer("d", t)}
	for p := range t.Partitions() {
		m.Assigned(p)
	}
	for i := range records {
		w, p, offset := writers[i%4], int32(i%6), i/6
		n := w.Send(p, uint32(i))
		clock = clock.Add(500 * time.Microsecond)
		w.Acked(n, p, offset)
		r := Record{Offset: offset, Writer: w.Name(), Number: n, Sum: uint32(i)}
		for _, s := range sessions {
			s.Read(t, p, r)
		}
		m.Delivered(p, r)
	}
	return h
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// What the package comment says of memory.
func TestSizeOfAHistory(t *testing.T) {
	const records = 100_000
	before := heap()
	h := long(records)
	per := float64(heap()-before) / records
	t.Logf("%.1f bytes a record", per)
	if per > 50 { // 33 with ten times as many; here pieces that are not full count
		t.Errorf("%.1f bytes a record", per)
	}
	if v := h.Check(); !v.OK() || v.Acked != records || v.Found != records {
		t.Errorf("%+v", v)
	}
}

// BenchmarkHistory is the cost of a record: sent, acknowledged, read three times and delivered.
func BenchmarkHistory(b *testing.B) {
	h := long(int64(b.N))
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	began := time.Now()
	h.Check()
	b.ReportMetric(float64(time.Since(began).Nanoseconds())/float64(b.N), "ns/check")
}
