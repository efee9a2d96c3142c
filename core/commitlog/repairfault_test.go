package commitlog

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"sluice/core/vfs"
)

// repairStory opens a log with a damaged segment and repairs it from source.
func repairStory(fsys vfs.FS, m Manifest, source *Log, seg SegmentInfo) (*Log, error) {
	l, missing, err := OpenAt(fsys, "log", Config{SegmentBytes: 400, IndexIntervalBytes: 100}, m)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return l, errors.New("a segment is missing")
	}
	return l, repairWhole(l, source, seg)
}

func repairWhole(l, source *Log, seg SegmentInfo) error {
	w, err := l.RepairSegment(seg)
	if err != nil {
		return err
	}
	defer w.Close()
	for w.Resume() < seg.Bytes {
		c, err := source.ReadSegment(seg.Base, w.Resume(), min(100, seg.Bytes-w.Resume()))
		if err != nil {
			return err
		}
		piece, err := c.Bytes()
		c.Release()
		if err != nil {
			return err
		}
		if _, err := w.WriteAt(piece, w.Resume()); err != nil {
			return err
		}
	}
	return w.Commit()
}

func damagedLog(t *testing.T) (mem *vfs.Mem, m Manifest, source *Log, seg SegmentInfo) {
	t.Helper()
	mem = vfs.NewMem()
	c := Config{SegmentBytes: 400, IndexIntervalBytes: 100}
	m, _ = smallLog(t, mem, c)
	source, _, err := OpenAt(cloned(t, mem), "log", c, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	seg = m.Segments[1]
	flip(t, mem, "log/"+fileName(seg.Base, dataSuffix), 70, 1)
	return mem.CrashClone(func() bool { return true }), m, source, seg
}

// TestRepairCrashesAtEveryCall: whenever the power goes, the segment is afterwards the damaged one or the whole one, under its
// name and never missing, and nothing else is left.
func TestRepairCrashesAtEveryCall(t *testing.T) {
	disk, m, source, seg := damagedLog(t)
	for n := 0; ; n++ {
		mem := disk.CrashClone(func() bool { return true })
		fault := vfs.NewFault(mem)
		var after []*vfs.Mem
		calls := 0
		fault.SetHook(func(op vfs.Op, _ string) error {
			if op.Changes() {
				if calls++; calls == n+1 {
					r := rand.New(rand.NewPCG(uint64(n), 1))
					after = []*vfs.Mem{mem.CrashClone(func() bool { return false }), mem.CrashClone(func() bool { return r.IntN(2) == 0 }), mem.CrashClone(func() bool { return true })}
				}
			}
			return nil
		})
		l, err := repairStory(fault, m, source, seg)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if calls <= n {
			return
		}
		for i, mem := range after {
			l, err := repairStory(mem, m, source, seg)
			if err != nil {
				t.Fatalf("crash at call %d, %d: %v", n, i, err)
			}
			if err := l.Verify(seg.Base, false, nil); err != nil {
				t.Fatalf("crash at call %d, %d: %v", n, i, err)
			}
			sameLogs(t, l, source)
			l.Close()
			if names, _ := mem.List("log"); slices.ContainsFunc(names, func(s string) bool { return strings.HasSuffix(s, repairSuffix) }) {
				t.Fatalf("crash at call %d: %v is left", n, names)
			}
		}
	}
}

// TestRepairWithEveryCallFailing: a repair that fails leaves the log as it was, and usable, unless the copy has its name already;
// it is tried again.
func TestRepairWithEveryCallFailing(t *testing.T) {
	disk, m, source, seg := damagedLog(t)
	for n := 0; ; n++ {
		mem := disk.CrashClone(func() bool { return true })
		fault := vfs.NewFault(mem)
		l, missing, err := OpenAt(fault, "log", Config{SegmentBytes: 400, IndexIntervalBytes: 100}, m)
		if err != nil || len(missing) > 0 {
			t.Fatal(err, missing)
		}
		broken, calls := errors.New("broken"), 0
		fault.SetHook(func(vfs.Op, string) error {
			if calls++; calls == n+1 {
				return broken
			}
			return nil
		})
		err = repairWhole(l, source, seg)
		fault.SetHook(nil)
		if calls <= n {
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			return
		}
		if stopped := l.Err(); stopped == nil {
			if again := repairWhole(l, source, seg); again != nil && err != nil {
				t.Fatalf("call %d failed with %v, and the next repair: %v", n, err, again)
			}
			if err := l.Verify(seg.Base, false, nil); err != nil {
				t.Fatalf("call %d: %v", n, err)
			}
		}
		l.Close()
		again, err := repairStory(mem, m, source, seg)
		if err != nil {
			t.Fatalf("call %d: opened again: %v", n, err)
		}
		sameLogs(t, again, source)
		again.Close()
	}
}
