package commitlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sort"
	"testing"

	"pgregory.net/rapid"

	"sluice/core/record"
	"sluice/core/vfs"
)

// modelRecord is a record as the model remembers it; its index is its offset.
type modelRecord struct {
	value     string
	timestamp int64
}

// machine drives a log and a model of it.
type machine struct {
	t       *rapid.T
	fs      *vfs.Mem
	files   *Files
	c       Config
	log     *Log
	records []modelRecord // all ever appended, by offset
	start   int64
	synced  int64
	floor   int64 // below this, files have been unlinked
	clock   int64
	appends []appended
}

// appended is one Append, to replay it.
type appended struct {
	base    int64
	batches []byte
	epoch   int32
}

func (m *machine) open() {
	var err error
	m.c.Files = m.files
	if m.log, err = Open(m.fs, "log", m.c); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) Append(t *rapid.T) {
	var set []byte
	n := 0
	for range rapid.IntRange(1, 4).Draw(t, "batches") {
		b := record.NewBuilder(record.BuilderOptions{Codec: record.Codec(rapid.IntRange(0, 4).Draw(t, "codec"))})
		for range rapid.IntRange(1, 5).Draw(t, "records") {
			m.clock = max(0, m.clock+rapid.OneOf(rapid.Int64Range(-5, 20), rapid.Int64Range(-1000, 1000)).Draw(t, "tick"))
			r := modelRecord{value: fmt.Sprintf("%d-%s", len(m.records)+n, rapid.StringN(0, 60, 200).Draw(t, "value")), timestamp: m.clock}
			b.Add(r.timestamp, nil, []byte(r.value), nil)
			m.records = append(m.records, r)
		}
		batch := b.Build(nil)
		batch.SetBaseOffset(77) // the log assigns its own
		set = append(set, batch...)
	}
	epoch := int32(rapid.IntRange(0, 9).Draw(t, "epoch"))
	before := string(set)
	base, err := m.log.Append(set, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if string(set) != before {
		t.Fatal("Append changed its argument")
	}
	m.appends = append(m.appends, appended{base: base, batches: set, epoch: epoch})
	if m.log.End() != int64(len(m.records)) {
		t.Fatalf("end %d, want %d", m.log.End(), len(m.records))
	}
}

func (m *machine) Sync(t *rapid.T) {
	end, err := m.log.Sync()
	if err != nil || end != int64(len(m.records)) {
		t.Fatal(end, err)
	}
	m.synced = end
}

func (m *machine) Read(t *rapid.T) {
	end := int64(len(m.records))
	offset := rapid.Int64Range(m.start-2, end+2).Draw(t, "offset")
	limit := rapid.Int64Range(offset-1, end+2).Draw(t, "end")
	size := rapid.Int64Range(0, 3000).Draw(t, "bytes")
	c, err := m.log.Read(offset, size, limit)
	defer c.Release()
	if offset < m.start || offset > end {
		if !errors.Is(err, ErrOutOfRange) {
			t.Fatalf("read %d of [%d, %d): %v", offset, m.start, end, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	data, err := c.Bytes()
	if err != nil || int64(len(data)) != c.Len() {
		t.Fatal(len(data), c.Len(), err)
	}
	if c == nil {
		m.mayBeEmpty(t, offset, limit)
		return
	}
	m.checkChunk(t, data, offset, min(limit, end), size, c.Next())
}

// mayBeEmpty: only at the end, or when the batch with offset goes over limit.
func (m *machine) mayBeEmpty(t *rapid.T, offset, limit int64) {
	if offset >= min(limit, int64(len(m.records))) {
		return
	}
	c, err := m.log.Read(offset, 0, int64(len(m.records)))
	if err != nil || c.Next() <= limit {
		t.Fatalf("nothing at %d before %d, though a batch ends at %d: %v", offset, limit, c.Next(), err)
	}
	c.Release()
}

func (m *machine) checkChunk(t *rapid.T, data []byte, offset, limit, size, next int64) {
	first, rest, err := record.Next(data)
	if err != nil || first.BaseOffset() > offset || first.LastOffset() < offset {
		t.Fatalf("first batch [%d, %d] for offset %d: %v", first.BaseOffset(), first.LastOffset(), offset, err)
	}
	if int64(len(data)) > size && len(rest) > 0 {
		t.Fatalf("%d bytes, at most %d asked", len(data), size)
	}
	at := first.BaseOffset()
	for rest := data; len(rest) > 0; {
		var b record.Batch
		if b, rest, err = record.Next(rest); err != nil || b.CheckCRC() != nil || b.BaseOffset() != at {
			t.Fatalf("batch at %d: %v", at, err)
		}
		err := b.Each(func(r record.Record) error {
			want := m.records[at]
			if string(r.Value) != want.value || b.Timestamp(r) != want.timestamp {
				return fmt.Errorf("offset %d has %q at %d, want %q at %d", at, r.Value, b.Timestamp(r), want.value, want.timestamp)
			}
			at++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if at != next || at > limit {
		t.Fatalf("batches end at %d, next is %d, limit %d", at, next, limit)
	}
}

func (m *machine) LookupTime(t *rapid.T) {
	ts := rapid.Int64Range(-1, m.clock+30).Draw(t, "ts")
	offset, timestamp, ok, err := m.log.LookupTime(ts)
	if err != nil {
		t.Fatal(err)
	}
	for i := m.start; i < int64(len(m.records)); i++ {
		if r := m.records[i]; r.timestamp >= ts {
			if !ok || offset != i || timestamp != r.timestamp {
				t.Fatalf("first at %d: %d at %d, %v; want %d at %d", ts, offset, timestamp, ok, i, r.timestamp)
			}
			return
		}
	}
	if ok {
		t.Fatalf("first at %d: %d, want none", ts, offset)
	}
}

func (m *machine) MaxTimestamp(t *rapid.T) {
	_, timestamp, ok := m.log.MaxTimestamp()
	best := int64(-1)
	for _, r := range m.records[m.start:] {
		best = max(best, r.timestamp)
	}
	// A segment that the start lies in counts whole.
	if ok != (best >= 0) && ok || timestamp < best {
		t.Fatalf("max timestamp %d %v, want %d", timestamp, ok, best)
	}
}

func (m *machine) SetStart(t *rapid.T) {
	offset := rapid.Int64Range(0, int64(len(m.records))+3).Draw(t, "start")
	dropped := m.log.SetStart(offset)
	m.start = max(m.start, min(offset, int64(len(m.records))))
	if m.log.Start() != m.start {
		t.Fatalf("start %d, want %d", m.log.Start(), m.start)
	}
	for _, info := range dropped {
		if info.Next > m.start {
			t.Fatalf("dropped %+v at start %d", info, m.start)
		}
		m.floor = max(m.floor, info.Next)
	}
	if err := m.log.Unlink(dropped); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) Retention(t *rapid.T) {
	keepMs := rapid.Int64Range(-1, 500).Draw(t, "ms")
	keepBytes := rapid.Int64Range(-1, 6000).Draw(t, "bytes")
	start := m.log.RetentionStart(m.clock, keepMs, keepBytes)
	if start < m.start || start > int64(len(m.records)) {
		t.Fatalf("retention start %d of [%d, %d]", start, m.start, len(m.records))
	}
	var left int64
	for _, s := range m.log.Segments() {
		if s.Next > start {
			left += s.Bytes
		}
	}
	if keepBytes >= 0 && start > m.start && keepMs < 0 && left < keepBytes {
		t.Fatalf("%d bytes left, %d were to be kept", left, keepBytes)
	}
	for i := m.start; i < start && keepMs >= 0 && keepBytes < 0; i++ {
		if m.records[i].timestamp >= m.clock-keepMs {
			t.Fatalf("offset %d goes at start %d, though it is young", i, start)
		}
	}
}

func (m *machine) Reopen(t *rapid.T) {
	if err := m.log.Close(); err != nil {
		t.Fatal(err)
	}
	m.open()
	m.recovered(t, int64(len(m.records)))
}

// Crash goes on with what a crash leaves, some unsynced changes surviving.
func (m *machine) Crash(t *rapid.T) {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	odds := rapid.IntRange(0, 4).Draw(t, "odds")
	crashed := m.fs.CrashClone(func() bool { return rng.IntN(4) < odds })
	m.log.Close()
	m.fs = crashed
	m.open()
	m.recovered(t, m.synced)
}

// recovered checks the log that Open found: at least to atLeast, and all of it
// the same as before.
func (m *machine) recovered(t *rapid.T, atLeast int64) {
	end, start := m.log.End(), m.log.Start()
	if end < atLeast || end > int64(len(m.records)) {
		t.Fatalf("recovered up to %d, want %d to %d", end, atLeast, len(m.records))
	}
	if start < m.floor && end > start || start > m.start && end > start && start > m.synced {
		t.Fatalf("recovered from %d, want at least %d", start, m.floor)
	}
	if m.log.Synced() != end {
		t.Fatalf("synced %d after opening, end %d", m.log.Synced(), end)
	}
	m.records, m.start, m.synced = m.records[:end], start, end
	for len(m.appends) > 0 && m.appends[len(m.appends)-1].base >= end {
		m.appends = m.appends[:len(m.appends)-1]
	}
	for at := start; at < end; {
		c, err := m.log.Read(at, 1<<20, end)
		if err != nil {
			t.Fatal(err)
		}
		data, err := c.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		m.checkChunk(t, data, at, end, 1<<20, c.Next())
		at = c.Next()
		c.Release()
	}
	m.checkSums(t)
}

// checkSums compares the running tallies with the files.
func (m *machine) checkSums(t *rapid.T) {
	for _, s := range m.log.Segments() {
		if err := m.log.Verify(s.Base, false, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// Restore is what the core does: a manifest of what was synced, more appends,
// a crash, OpenAt, and the same appends again must give the same files. Then
// it goes back to Open, which needs a file to know the end from.
func (m *machine) Restore(t *rapid.T) {
	m.Sync(t)
	manifest := m.log.Manifest()
	if len(manifest.Segments) == 0 {
		return
	}
	mark := len(m.appends)
	for range rapid.IntRange(0, 5).Draw(t, "more") {
		m.Append(t)
	}
	want := m.log.Manifest()
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	crashed := m.fs.CrashClone(func() bool { return rng.IntN(2) == 0 })
	m.log.Close()
	m.fs = crashed
	l, missing, err := OpenAt(m.fs, "log", m.c, manifest)
	if err != nil || len(missing) > 0 {
		t.Fatal(missing, err)
	}
	if got := l.Manifest(); !reflect.DeepEqual(got, manifest) {
		t.Fatalf("restored %+v, want %+v", got, manifest)
	}
	m.log = l
	for _, a := range m.appends[mark:] {
		if base, err := l.Append(a.batches, a.epoch); err != nil || base != a.base {
			t.Fatal(base, err)
		}
	}
	if got := l.Manifest(); !reflect.DeepEqual(got, want) {
		t.Fatalf("replayed %+v, want %+v", got, want)
	}
	m.checkSums(t)
	m.Sync(t)
	m.Reopen(t)
}

func (m *machine) Check(t *rapid.T) {
	if got := m.log.End(); got != int64(len(m.records)) {
		t.Fatalf("end %d, want %d", got, len(m.records))
	}
	segments := m.log.Segments()
	if !sort.SliceIsSorted(segments, func(i, j int) bool { return segments[i].Next <= segments[j].Base }) {
		t.Fatalf("segments %+v", segments)
	}
	if open := m.files.Open(); open > 3 {
		t.Fatalf("%d files open, limit 3", open)
	}
	if err := m.log.Err(); err != nil {
		t.Fatal(err)
	}
}

// TestModel walks a log at random beside a model, through restarts and
// crashes, with so few open files that they are always being reopened.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{t: t, fs: vfs.NewMem(), files: NewFiles(3)}
		m.c = Config{
			SegmentBytes:       rapid.Int64Range(200, 4000).Draw(t, "segment bytes"),
			SegmentMs:          rapid.Int64Range(1, 2000).Draw(t, "segment ms"),
			IndexIntervalBytes: rapid.Int64Range(1, 500).Draw(t, "index interval"),
		}
		m.open()
		t.Repeat(map[string]func(*rapid.T){
			"": m.Check, "Append": m.Append, "Append2": m.Append, "Sync": m.Sync, "Read": m.Read, "Read2": m.Read,
			"LookupTime": m.LookupTime, "MaxTimestamp": m.MaxTimestamp, "SetStart": m.SetStart,
			"Retention": m.Retention, "Reopen": m.Reopen, "Crash": m.Crash, "Restore": m.Restore,
		})
		m.log.Close()
		if open := m.files.Open(); open != 0 {
			t.Fatalf("%d files open after Close", open)
		}
	})
}
