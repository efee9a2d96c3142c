package commitlog

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"testing"

	"sluice/core/record"
	"sluice/core/vfs"
)

func big(bytes int, timestampMs int64) record.Batch {
	b := record.NewBuilder(record.BuilderOptions{})
	b.Add(timestampMs, nil, make([]byte, bytes), nil)
	return b.Build(nil)
}

func mustAppend(t testing.TB, l *Log, batches []byte) int64 {
	t.Helper()
	base, err := l.Append(batches, 1)
	if err != nil {
		t.Fatal(err)
	}
	return base
}

func mustSync(t testing.TB, l *Log) {
	t.Helper()
	if _, err := l.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestOpenReadsBoundedBytes: what Open reads depends on the number of segments
// a little, and not at all on how much is in them; OpenAt reads less.
func TestOpenReadsBoundedBytes(t *testing.T) {
	const batchBytes = 16 << 10
	c := Config{SegmentBytes: 4 << 20}
	read := map[int]int64{}
	for _, segments := range []int{2, 12} {
		mem := vfs.NewMem()
		fault := vfs.NewFault(mem)
		l, err := Open(fault, "log", c)
		if err != nil {
			t.Fatal(err)
		}
		for l.Bytes() < int64(segments)*c.SegmentBytes {
			mustAppend(t, l, big(batchBytes, 1))
			if l.End()%8 == 0 {
				mustSync(t, l)
			}
		}
		mustSync(t, l)
		manifest := l.Manifest()
		l.Close()

		fault.ResetCounts()
		if l, err = Open(fault, "log", c); err != nil {
			t.Fatal(err)
		}
		if got := l.Manifest(); !reflect.DeepEqual(got, manifest) {
			t.Fatalf("%+v, want %+v", got, manifest)
		}
		l.Close()
		read[segments] = fault.Bytes(vfs.OpRead)
		// The tail behind the last mark, each byte perhaps read twice at block borders, and an index's end.
		if limit := int64(3*markBytes) + int64(segments)*indexHeaderBytes; read[segments] > limit {
			t.Fatalf("Open of %d segments read %d bytes, limit %d", segments, read[segments], limit)
		}

		fault.ResetCounts()
		if l, _, err = OpenAt(fault, "log", c, manifest); err != nil {
			t.Fatal(err)
		}
		l.Close()
		if n := fault.Bytes(vfs.OpRead); n > 64<<10 {
			t.Fatalf("OpenAt of %d segments read %d bytes", segments, n)
		}
	}
	t.Logf("read %v of %d and %d MiB", read, 8, 48)
}

// TestColdReadsAreBounded: finding an offset or a time in a large segment
// touches the index, an index interval and little else.
func TestColdReadsAreBounded(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	l, err := Open(fault, "log", Config{SegmentBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const batches = 20_000
	for i := range batches {
		mustAppend(t, l, big(1000, int64(i)))
	}
	for _, offset := range []int64{1, 777, batches / 2, batches - 2} {
		fault.ResetCounts()
		c, err := l.Read(offset, 100<<10, l.End())
		if err != nil || c.Len() < 90<<10 && offset < batches-100 {
			t.Fatal(c.Len(), err)
		}
		checked := int64(0) // what is about to be sent is read once, unless it was appended a moment ago
		if c.position < l.mu.segments[0].bytes-trustedTail {
			checked = c.Len()
		}
		c.Release()
		if n := fault.Bytes(vfs.OpRead) - checked; n > 48<<10 {
			t.Fatalf("read of offset %d read %d bytes to find its place", offset, n)
		}
		fault.ResetCounts()
		if got, _, ok, err := l.LookupTime(offset); err != nil || !ok || got != offset {
			t.Fatal(got, ok, err)
		}
		if n := fault.Bytes(vfs.OpRead); n > 48<<10 {
			t.Fatalf("look-up of time %d read %d bytes", offset, n)
		}
	}
	// Going on where the last read ended needs no index, and at the tail no scan.
	c, err := l.Read(batches-10, 1<<20, l.End())
	if err != nil {
		t.Fatal(err)
	}
	next := c.Next()
	c.Release()
	mustAppend(t, l, big(1000, batches))
	fault.ResetCounts()
	if c, err = l.Read(next, 1<<20, l.End()); err != nil || c.Next() != l.End() {
		t.Fatal(err)
	}
	c.Release()
	if n := fault.Calls(vfs.OpRead); n > 1 {
		t.Fatalf("%d reads to follow the tail", n)
	}
}

// TestIndexIsRebuilt: with the index gone, the first read makes it anew.
func TestIndexIsRebuilt(t *testing.T) {
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	c := Config{SegmentBytes: 1 << 20}
	l, err := Open(fault, "log", c)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2500 {
		mustAppend(t, l, big(1000, int64(i)))
	}
	mustSync(t, l)
	manifest := l.Manifest()
	l.Close()
	for _, s := range manifest.Segments {
		if err := mem.Remove("log/" + fileName(s.Base, indexSuffix)); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 2 {
		if l, _, err = OpenAt(fault, "log", c, manifest); err != nil {
			t.Fatal(err)
		}
		for _, offset := range []int64{500, 700, 2400} {
			chunk, err := l.Read(offset, 10, l.End())
			if err != nil || chunk.Next() != offset+1 {
				t.Fatal(err)
			}
			chunk.Release()
		}
		fault.ResetCounts()
		for _, offset := range []int64{600, 800, 2300} {
			chunk, err := l.Read(offset, 10, l.End())
			if err != nil || chunk.Next() != offset+1 {
				t.Fatal(err)
			}
			chunk.Release()
		}
		if n := fault.Bytes(vfs.OpRead); n > 3*32<<10 {
			t.Fatalf("round %d: %d bytes read with the index there", round, n)
		}
		l.Close()
	}
}

func TestRollDependsOnDataOnly(t *testing.T) {
	for name, tc := range map[string]struct {
		c       Config
		batches []record.Batch
		want    []int64 // bases
	}{
		"bytes":            {Config{SegmentBytes: 3000}, []record.Batch{big(900, 1), big(900, 1), big(900, 1), big(900, 1)}, []int64{0, 3}},
		"one is too large": {Config{SegmentBytes: 500}, []record.Batch{big(900, 1), big(10, 1), big(900, 1)}, []int64{0, 1, 2}},
		"time":             {Config{SegmentMs: 100}, []record.Batch{big(1, 1000), big(1, 1100), big(1, 1101), big(1, 900), big(1, 1202)}, []int64{0, 2, 4}},
		"no timestamps":    {Config{SegmentMs: 100}, []record.Batch{big(1, -1), big(1, 5000), big(1, 9000)}, []int64{0}},
	} {
		for _, together := range []bool{false, true} {
			l, err := Open(vfs.NewMem(), "log", tc.c)
			if err != nil {
				t.Fatal(err)
			}
			var set []byte
			for _, b := range tc.batches {
				if set = append(set, b...); !together {
					mustAppend(t, l, b)
				}
			}
			if together {
				mustAppend(t, l, set)
			}
			var bases []int64
			for _, s := range l.Segments() {
				bases = append(bases, s.Base)
			}
			if !reflect.DeepEqual(bases, tc.want) {
				t.Errorf("%s, together %v: segments %v, want %v", name, together, bases, tc.want)
			}
			l.Close()
		}
	}
}

func TestAppendRefusesWithoutEffect(t *testing.T) {
	l, err := Open(vfs.NewMem(), "log", Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	good := batch("a", 2, 1)
	negative := append([]byte{}, good...)
	negative[23] = 0x80
	for name, set := range map[string][]byte{
		"cut":                       good[:len(good)-1],
		"second cut":                append(append([]byte{}, good...), good[:30]...),
		"zeros":                     make([]byte, 100),
		"negative last offset":      negative,
		"second with negative last": append(append([]byte{}, good...), negative...),
	} {
		if _, err := l.Append(set, 1); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if l.End() != 0 || l.Err() != nil || l.Bytes() != 0 {
		t.Fatal(l.End(), l.Err(), l.Bytes())
	}
	if base, err := l.Append(nil, 1); base != 0 || err != nil {
		t.Fatal(base, err)
	}
	if base := mustAppend(t, l, good); base != 0 || l.End() != 2 {
		t.Fatal(base, l.End())
	}
}

func TestAppendDoesNotAllocateInSteadyState(t *testing.T) {
	l, err := Open(vfs.OS, t.TempDir(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := big(4096, 1)
	for range 300 {
		mustAppend(t, l, b)
	}
	n := testing.AllocsPerRun(500, func() { mustAppend(t, l, b) })
	if n >= 1 { // the pool may lose its buffer to the collector
		t.Fatalf("%v allocations per append", n)
	}
	n = testing.AllocsPerRun(20, func() { mustAppend(t, l, b); mustSync(t, l) })
	if n >= 2 {
		t.Fatalf("%v allocations per append and sync", n)
	}
}

// TestOneWritePerAppend: more than that only when an index block is full.
func TestOneWritePerAppend(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	l, err := Open(fault, "log", Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := big(4096, 1)
	mustAppend(t, l, b)
	fault.ResetCounts()
	const appends = 64 * 10
	for range appends {
		mustAppend(t, l, b)
	}
	if n := fault.Calls(vfs.OpWrite); n > appends+appends/indexPendingMax+1 {
		t.Fatalf("%d writes for %d appends", n, appends)
	}
	if n := fault.Calls(vfs.OpOpen) + fault.Calls(vfs.OpStat) + fault.Calls(vfs.OpRead) + fault.Calls(vfs.OpSync); n > 0 {
		t.Fatalf("%d other calls", n)
	}
}

// TestIdleLogIsSmall: thousands of partitions on a node cost a few KB each.
func TestIdleLogIsSmall(t *testing.T) {
	const logs = 2000
	mem, files := vfs.NewFault(vfs.NewMem()), NewFiles(10)
	manifests := make([]Manifest, logs)
	for i := range manifests {
		l, err := Open(mem, fmt.Sprint("log", i), Config{Files: files})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			mustAppend(t, l, batch("x", 2, 1))
		}
		mustSync(t, l)
		manifests[i] = l.Manifest()
		l.Close()
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	open := make([]*Log, logs)
	for i := range open {
		l, _, err := OpenAt(mem, fmt.Sprint("log", i), Config{Files: files}, manifests[i])
		if err != nil {
			t.Fatal(err)
		}
		open[i] = l
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / logs
	if each > 3<<10 {
		t.Fatalf("%d bytes for an idle log", each)
	}
	t.Logf("%d bytes for an idle log", each)
	if n := files.Open(); n > 10 {
		t.Fatalf("%d files open", n)
	}
	for _, l := range open {
		l.Close()
	}
}

func TestManifestIsChecked(t *testing.T) {
	for name, m := range map[string]Manifest{
		"start after end":    {Start: 2, End: 1},
		"negative":           {Start: -1, End: 1},
		"end before segment": {End: 3, Segments: []SegmentInfo{{Base: 0, Next: 5, Bytes: 9}}},
		"overlap":            {End: 9, Segments: []SegmentInfo{{Base: 0, Next: 5, Bytes: 9}, {Base: 4, Next: 9, Bytes: 9}}},
		"no bytes":           {End: 9, Segments: []SegmentInfo{{Base: 0, Next: 5}}},
	} {
		if _, _, err := OpenAt(vfs.NewMem(), "log", Config{}, m); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenAtCutsAndRemoves: what the manifest does not name goes.
func TestOpenAtCutsAndRemoves(t *testing.T) {
	mem := vfs.NewMem()
	l, err := Open(mem, "log", small)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		mustAppend(t, l, batch(fmt.Sprint(i), 2, 1))
	}
	mustSync(t, l)
	manifest := l.Manifest()
	if err := story(l, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	if l.Manifest().End == manifest.End {
		t.Fatal("nothing was appended")
	}
	l.Close()
	for _, name := range []string{fileName(0, staleSuffix), fileName(5, fillSuffix), fileName(77, partSuffix), "partition.metadata"} {
		if err := vfs.WriteFile(mem, "log/"+name, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	// story has unlinked the first segments: they are missing, the others are cut.
	l, missing, err := OpenAt(mem, "log", small, manifest)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, info := range missing {
		if info.Next > 5 {
			t.Fatalf("missing %+v", info)
		}
	}
	names, err := mem.List("log")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		base, suffix, ok := parseName(name)
		if ok && (suffix != dataSuffix && suffix != indexSuffix || base >= manifest.End) {
			t.Errorf("%s is still there", name)
		}
	}
	if _, err := mem.Stat("log/partition.metadata"); err != nil {
		t.Errorf("a stranger's file is gone: %v", err)
	}
}
