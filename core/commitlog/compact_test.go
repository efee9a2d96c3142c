package commitlog

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"sluice/core/record"
	"sluice/core/vfs"
)

// keyed is a record of the model.
type keyed struct {
	key, value string // an empty value is a tombstone
	offset     int64
	time       int64
}

// compactModel is what a compacted log must show.
type compactModel struct {
	t       *rapid.T
	fs      *vfs.Mem
	log     *Log
	config  Config
	all     []keyed
	dirty   int64
	now     int64
	horizon map[int64]int64 // of tombstones that were kept once, by offset
}

const modelDeleteRetention = 1000

// TestCompactAgainstModel writes keys at random, with tombstones, compacts in between, opens again at any point of a swap, and compares with the last value of each key.
func TestCompactAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &compactModel{t: t, fs: vfs.NewMem(), config: Config{SegmentBytes: 600}, horizon: map[int64]int64{}}
		m.open(Manifest{})
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"append", "append", "append", "compact", "time", "reopen", "start"}).Draw(t, "step") {
			case "append":
				m.append()
			case "compact":
				m.compact()
			case "time":
				m.now += int64(rapid.IntRange(0, 1500).Draw(t, "ms"))
			case "reopen":
				m.open(m.log.Manifest())
			case "start":
				m.log.SetStart(rapid.Int64Range(0, m.log.End()).Draw(t, "start"))
			}
			m.check()
		}
	})
}

func (m *compactModel) open(at Manifest) {
	if m.log != nil {
		if _, err := m.log.Sync(); err != nil {
			m.t.Fatal(err)
		}
		_ = m.log.Close()
	}
	c := m.config
	c.Gaps = m.dirty > 0
	log, missing, err := OpenAt(m.fs, "/log", c, at)
	if err != nil || len(missing) > 0 {
		m.t.Fatalf("open: %v, missing %v", err, missing)
	}
	m.log = log
}

func (m *compactModel) append() {
	codec := record.Codec(rapid.IntRange(0, 4).Draw(m.t, "codec"))
	for range rapid.IntRange(1, 8).Draw(m.t, "batches") {
		b := record.NewBuilder(record.BuilderOptions{Codec: codec})
		for i := range rapid.IntRange(1, 4).Draw(m.t, "records") {
			r := keyed{key: fmt.Sprint("key", rapid.IntRange(0, 6).Draw(m.t, "key")), time: m.now + int64(i), offset: m.log.End() + int64(i)}
			var value []byte
			if rapid.IntRange(0, 3).Draw(m.t, "tombstone") > 0 {
				r.value = fmt.Sprint("value of ", r.offset)
				value = []byte(r.value)
			}
			b.Add(r.time, []byte(r.key), value, nil)
			m.all = append(m.all, r)
		}
		if _, err := m.log.Append(b.Build(nil), 7); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *compactModel) compact() {
	before := m.log.Manifest()
	r, err := m.log.Rewrite(RewriteOptions{
		Dirty: m.dirty, Limit: m.log.End(), NowMs: m.now, DeleteRetentionMs: modelDeleteRetention,
		keys: rapid.IntRange(1, 10).Draw(m.t, "keys"),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	if rapid.IntRange(0, 3).Draw(m.t, "give up") == 0 {
		m.open(before) // the swap never came
		if err := m.log.DropStaged(); err != nil {
			m.t.Fatal(err)
		}
		return
	}
	if _, err := m.log.Sync(); err != nil {
		m.t.Fatal(err)
	}
	m.swap(r)
	if rapid.Bool().Draw(m.t, "crash before the checkpoint") {
		m.fs = m.fs.CrashClone(nil)
		m.log = nil
		m.open(before)
		m.swap(r)
	}
	m.dirty = max(m.dirty, r.Dirty)
	if rapid.Bool().Draw(m.t, "crash after the checkpoint") {
		if _, err := m.log.Sync(); err != nil {
			m.t.Fatal(err)
		}
		at := m.log.Manifest()
		m.fs, m.log = m.fs.CrashClone(nil), nil
		m.open(at)
	}
	if err := m.log.SettleSwap(r.Groups); err != nil {
		m.t.Fatal(err)
	}
	m.noStrangers()
}

func (m *compactModel) swap(r *Rewritten) {
	if !m.log.Fits(r.Groups) {
		m.t.Fatalf("%+v does not fit %+v", r.Groups, m.log.Manifest())
	}
	if missing, err := m.log.Swap(r.Groups); err != nil || len(missing) > 0 {
		m.t.Fatalf("swap: %v, missing %v", err, missing)
	}
}

// noStrangers checks that the directory holds the log's segments and their indexes.
func (m *compactModel) noStrangers() {
	names, err := m.fs.List("/log")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, name := range names {
		base, suffix, _ := parseName(name)
		_, ok := m.log.Info(base)
		if suffix != dataSuffix && suffix != indexSuffix || !ok && base >= m.log.Start() {
			m.t.Fatalf("%s is left, the log is %+v", name, m.log.Manifest())
		}
	}
}

// check reads the log from its start.
func (m *compactModel) check() {
	got := map[int64]keyed{}
	offset := m.log.Start()
	for offset < m.log.End() {
		c, err := m.log.Read(offset, 300, m.log.End())
		if err != nil || c == nil {
			m.t.Fatalf("read at %d of %+v: %v", offset, m.log.Manifest(), err)
		}
		data, err := c.Bytes()
		if err != nil {
			m.t.Fatal(err)
		}
		for rest := data; len(rest) > 0; {
			var b record.Batch
			if b, rest, err = record.Next(rest); err != nil {
				m.t.Fatal(err)
			}
			m.collect(b, got)
		}
		if c.Next() <= offset {
			m.t.Fatalf("no progress at %d", offset)
		}
		offset = c.Next()
		c.Release()
	}
	m.compare(got)
}

func (m *compactModel) collect(b record.Batch, got map[int64]keyed) {
	err := b.Each(func(r record.Record) error {
		at := b.BaseOffset() + int64(r.OffsetDelta)
		got[at] = keyed{key: string(r.Key), value: string(r.Value), offset: at, time: b.Timestamp(r)}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *compactModel) compare(got map[int64]keyed) {
	last := map[string]keyed{}
	for _, r := range m.all {
		last[r.key] = r
		if have, ok := got[r.offset]; ok && have != r {
			m.t.Fatalf("record %+v is read as %+v", r, have)
		}
		if _, ok := got[r.offset]; !ok && r.offset >= max(m.log.Start(), m.dirty) {
			m.t.Fatalf("record %+v is gone, and was never compacted", r)
		}
	}
	for _, r := range last {
		_, ok := got[r.offset]
		if !ok && r.offset >= m.log.Start() && (r.value != "" || m.now < r.time+modelDeleteRetention) {
			m.t.Fatalf("the last record of its key is gone: %+v", r)
		}
	}
}

// TestCompactOneKey leaves one record of one key, in one segment, beside the one that is written to.
func TestCompactOneKey(t *testing.T) {
	fs := vfs.NewMem()
	l, _, err := OpenAt(fs, "/log", Config{SegmentBytes: 400}, Manifest{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 100 {
		b := record.NewBuilder(record.BuilderOptions{})
		b.Add(int64(i), []byte("same"), []byte(fmt.Sprint(i)), nil)
		if _, err := l.Append(b.Build(nil), 1); err != nil {
			t.Fatal(err)
		}
	}
	r, err := l.Rewrite(RewriteOptions{Limit: l.End()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Swap(r.Groups); err != nil {
		t.Fatal(err)
	}
	segments := l.Segments()
	if len(segments) != 2 || segments[0].Next-1 != segments[0].MaxTimestampOffset || r.RecordsLost != segments[1].Base-1 {
		t.Fatalf("left %+v, lost %d", segments, r.RecordsLost)
	}
	c, err := l.Read(0, 1, l.End())
	if err != nil || c.Next() != segments[1].Base {
		t.Fatalf("read at 0: %v, next %d", err, c.Next())
	}
	c.Release()
}

// TestTombstonesGoAfterTheirTime: one that is kept for the first time gets a horizon, and goes in the first round after it.
func TestTombstonesGoAfterTheirTime(t *testing.T) {
	fs := vfs.NewMem()
	l, _, err := OpenAt(fs, "/log", Config{SegmentBytes: 200}, Manifest{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	add := func(key string, value []byte) {
		b := record.NewBuilder(record.BuilderOptions{})
		b.Add(5, []byte(key), value, nil)
		if _, err := l.Append(b.Build(nil), 1); err != nil {
			t.Fatal(err)
		}
	}
	add("a", []byte("1"))
	add("a", nil)
	for range 6 {
		add("b", []byte("2"))
	}
	var lost []int64
	dirty := int64(0)
	for _, now := range []int64{1000, 1999, 2000} {
		r, err := l.Rewrite(RewriteOptions{Dirty: dirty, Limit: l.End(), NowMs: now, DeleteRetentionMs: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Swap(r.Groups); err != nil {
			t.Fatal(err)
		}
		dirty = r.Dirty
		lost = append(lost, r.RecordsLost)
	}
	if !slices.Equal(lost[1:], []int64{0, 1}) || lost[0] == 0 {
		t.Errorf("lost %v", lost)
	}
}

// TestTombstonesStayBehindWhatIsKept: a batch that is kept as it is may hold the value that a tombstone is for, so that the tombstone stays, whatever its horizon.
func TestTombstonesStayBehindWhatIsKept(t *testing.T) {
	value := func(o record.BuilderOptions) record.Batch {
		b := record.NewBuilder(o)
		b.Add(5, []byte("a"), []byte("1"), nil)
		return b.Build(nil)
	}
	undecodable := value(record.BuilderOptions{Codec: record.Gzip})
	undecodable[len(undecodable)-9] ^= 1
	undecodable.Seal()
	for name, first := range map[string]record.Batch{
		"transactional": value(record.BuilderOptions{ProducerID: 3, Transactional: true}),
		"undecodable":   undecodable,
	} {
		l, _, err := OpenAt(vfs.NewMem(), "/log", Config{SegmentBytes: 200}, Manifest{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		batches := []record.Batch{first, value(record.BuilderOptions{}), tombstone("a")}
		for range 6 {
			batches = append(batches, tombstone("b"))
		}
		for _, b := range batches {
			if _, err := l.Append(b, 1); err != nil {
				t.Fatal(err)
			}
		}
		dirty, now := int64(0), int64(1000)
		for range 3 {
			r, err := l.Rewrite(RewriteOptions{Dirty: dirty, Limit: l.End(), NowMs: now, DeleteRetentionMs: 1})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if _, err := l.Swap(r.Groups); err != nil {
				t.Fatal(err)
			}
			dirty, now = r.Dirty, now+1000
		}
		var left []int64
		for at := int64(0); at < l.End(); {
			c, err := l.Read(at, 1, l.End())
			if err != nil || c == nil {
				t.Fatalf("%s: read at %d: %v", name, at, err)
			}
			at = c.Next()
			left = append(left, at-1)
			c.Release()
		}
		if !slices.Contains(left, 0) || !slices.Contains(left, 2) || slices.Contains(left, 1) {
			t.Errorf("%s: left %v, want the batch at 0 and the tombstone at 2, and not the value at 1", name, left)
		}
	}
}

func tombstone(key string) record.Batch {
	b := record.NewBuilder(record.BuilderOptions{})
	b.Add(5, []byte(key), nil, nil)
	return b.Build(nil)
}

// TestTombstonesForEver: a delete.retention.ms that no clock comes to is for ever, not over at once.
func TestTombstonesForEver(t *testing.T) {
	r := rewriting{o: RewriteOptions{NowMs: 1000, DeleteRetentionMs: math.MaxInt64}}
	if got := r.horizon(); got != record.NoHorizon {
		t.Errorf("horizon %d, want none", got)
	}
}

// TestHintsEndWithTheirSegment: where a read of a replaced segment has ended says nothing about the one with the same base that took its place.
func TestHintsEndWithTheirSegment(t *testing.T) {
	l, _, err := OpenAt(vfs.NewMem(), "/log", Config{SegmentBytes: 400}, Manifest{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 20 {
		if _, err := l.Append(tombstone("same"), 1); err != nil {
			t.Fatal(err)
		}
	}
	old := l.mu.segments[0]
	r, err := l.Rewrite(RewriteOptions{Limit: l.End()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Swap(r.Groups); err != nil {
		t.Fatal(err)
	}
	h := hint{offset: 1, base: old.base, position: 1}
	l.remember(old, h)
	now := l.mu.segments[0]
	if now == old || l.recallLocked(now, h.offset) >= 0 {
		t.Error("a position in the replaced segment is taken for one in the new")
	}
	l.remember(now, h)
	if l.recallLocked(now, h.offset) != h.position {
		t.Error("a position in the segment itself is forgotten")
	}
}

// TestLargerClosedSegmentIsAnother: a copy of a segment as it was before it was rewritten is not cut to the size of the new one and taken for it.
func TestLargerClosedSegmentIsAnother(t *testing.T) {
	fs := vfs.NewMem()
	l, _, err := OpenAt(fs, "/log", Config{SegmentBytes: 400}, Manifest{})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := l.Append(tombstone("same"), 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	m := l.Manifest()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	first := &m.Segments[0]
	first.Bytes -= 10 // what the manifest names is smaller
	again, missing, err := OpenAt(fs, "/log", Config{SegmentBytes: 400}, m)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if len(missing) != 1 || missing[0].Base != first.Base {
		t.Errorf("missing %+v, want the first segment", missing)
	}
}
