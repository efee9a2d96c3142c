package commitlog

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"sluice/core/vfs"
)

// smallLog writes segments of a few batches each and returns its manifest and the batches by offset.
func smallLog(t *testing.T, mem *vfs.Mem, c Config) (Manifest, map[int64][]byte) {
	t.Helper()
	l, err := Open(mem, "log", c)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 10 {
		if _, err := l.Append(batch(fmt.Sprint(i), 3, int64(10*i)), int32(5+i/4)); err != nil {
			t.Fatal(err)
		}
	}
	mustSync(t, l)
	good := map[int64][]byte{}
	for offset := range l.End() {
		good[offset] = readOne(t, l, offset)
	}
	return l.Manifest(), good
}

func readOne(t *testing.T, l *Log, offset int64) []byte {
	t.Helper()
	c, err := l.Read(offset, 1, l.End())
	if err != nil {
		t.Fatal(offset, err)
	}
	defer c.Release()
	data, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func epochOf(offset int64) int32 { return int32(5 + offset/12) }

func flip(t *testing.T, fsys vfs.FS, name string, at int64, mask byte) {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= mask
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// TestNoFlippedByteIsServed flips each byte of a segment in turn: a read gives what was written or an error, whatever
// its size; the owner is told, and Verify finds it. Then the segment is repaired from a copy, and equal again.
func TestNoFlippedByteIsServed(t *testing.T) {
	mem := vfs.NewMem()
	var told int
	c := Config{
		SegmentBytes: 400, IndexIntervalBytes: 100, Epoch: epochOf,
		Damaged: func(int64, error) { told++ },
	}
	m, good := smallLog(t, mem, c)
	if len(m.Segments) < 3 {
		t.Fatal(m)
	}
	source, _, err := OpenAt(cloned(t, mem), "log", c, m)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	for _, seg := range []SegmentInfo{m.Segments[1], m.Segments[len(m.Segments)-1]} {
		name := "log/" + fileName(seg.Base, dataSuffix)
		for at := range seg.Bytes {
			mask := byte(1) << (at % 8)
			flip(t, mem, name, at, mask)
			l, missing, err := OpenAt(mem, "log", c, m)
			if err != nil || len(missing) > 0 {
				t.Fatal(err, missing)
			}
			told = 0
			bad := servesOnlyGood(t, l, good)
			if bad == 0 || told == 0 {
				t.Fatalf("segment %d byte %d: %d reads failed, told %d times", seg.Base, at, bad, told)
			}
			if err := l.Verify(seg.Base, false, nil); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("segment %d byte %d: Verify: %v", seg.Base, at, err)
			}
			repair(t, l, source, seg)
			if bad := servesOnlyGood(t, l, good); bad > 0 {
				t.Fatalf("segment %d byte %d: %d reads failed after the repair", seg.Base, at, bad)
			}
			if err := l.Verify(seg.Base, false, nil); err != nil {
				t.Fatal(err)
			}
			l.Close()
		}
	}
}

func cloned(t *testing.T, mem *vfs.Mem) *vfs.Mem {
	t.Helper()
	return mem.CrashClone(func() bool { return true })
}

// servesOnlyGood reads from every offset, small and large, and returns how many reads failed.
func servesOnlyGood(t *testing.T, l *Log, good map[int64][]byte) (failed int) {
	t.Helper()
	for offset := range l.End() {
		for _, size := range []int64{1, 250, 10_000} {
			c, err := l.Read(offset, size, l.End())
			if errors.Is(err, ErrCorrupt) {
				failed++
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := c.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			next := c.Next()
			c.Release()
			var want []byte
			for at := offset; at < next; at++ {
				if at == offset || !bytes.Equal(good[at], good[at-1]) {
					want = append(want, good[at]...)
				}
			}
			if !bytes.Equal(data, want) {
				t.Fatalf("read %d of %d bytes gave something else", offset, size)
			}
		}
		if _, _, _, err := l.LookupTime(offset * 3); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	}
	return failed
}

func repair(t *testing.T, l, source *Log, seg SegmentInfo) {
	t.Helper()
	w, err := l.RepairSegment(seg)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c, err := source.ReadSegment(seg.Base, 0, seg.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	data, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// TestRepairWhileAppending: the last segment grows between the finding and the repair, and after it; the log is then what
// it would have been.
func TestRepairWhileAppending(t *testing.T) {
	mem := vfs.NewMem()
	c := Config{SegmentBytes: 4000, IndexIntervalBytes: 100}
	m, _ := smallLog(t, mem, c)
	twin, _, err := OpenAt(cloned(t, mem), "log", c, m)
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Close()
	seg := m.Segments[0]
	flip(t, mem, "log/"+fileName(0, dataSuffix), seg.Bytes/2, 4)
	l, _, err := OpenAt(mem, "log", c, m)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	more := func(n int) {
		for i := range n {
			b := batch(fmt.Sprint("more", i), 2, int64(1000+i))
			mustAppend(t, l, b)
			mustAppend(t, twin, b)
		}
	}
	more(3)
	repair(t, l, twin, seg)
	more(40)
	mustSync(t, l)
	if err := l.Verify(0, false, nil); err != nil {
		t.Fatal(err)
	}
	sameLogs(t, l, twin)
	var want []string
	if want = values(t, twin, 0, 300); fmt.Sprint(values(t, l, 0, 300)) != fmt.Sprint(want) {
		t.Fatal("the repaired log reads differently")
	}
}

// TestRepairRefuses what is not what was written, and goes on where it ended.
func TestRepairRefuses(t *testing.T) {
	mem := vfs.NewMem()
	c := Config{SegmentBytes: 400}
	m, _ := smallLog(t, mem, c)
	l, _, err := OpenAt(mem, "log", c, m)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seg := m.Segments[0]
	w, err := l.RepairSegment(seg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 100), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := l.RepairSegment(seg); err == nil {
		t.Fatal("a second writer")
	}
	if err := w.Commit(); err == nil || errors.Is(err, ErrCorrupt) {
		t.Fatalf("commit of a part: %v", err)
	}
	w.Close()
	if w, err = l.RepairSegment(seg); err != nil || w.Resume() != 100 {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, seg.Bytes-100), 100); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); !errors.Is(err, ErrCorrupt) || w.Resume() != 0 {
		t.Fatalf("commit of something else: %v", err)
	}
	w.Close()
	if err := l.Verify(seg.Base, false, nil); err != nil {
		t.Fatalf("the segment was touched: %v", err)
	}
	l.SetStart(seg.Next)
	if _, err := l.RepairSegment(seg); !errors.Is(err, ErrOutOfRange) {
		t.Fatalf("repair of what is no longer part of the log: %v", err)
	}
}
