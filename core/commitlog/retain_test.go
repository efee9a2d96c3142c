package commitlog

import (
	"reflect"
	"slices"
	"testing"

	"sluice/core/vfs"
)

// threeSegments has segments [0,2) [2,4) [4,6) of equal size with the newest
// timestamps 101, 201 and 301; the last is appended to.
func threeSegments(t *testing.T) (*Log, int64) {
	t.Helper()
	l, err := Open(vfs.NewMem(), "log", Config{SegmentBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for _, at := range []int64{100, 200, 300} {
		mustAppend(t, l, batch("v", 2, at))
	}
	return l, l.Bytes() / 3
}

func TestRetentionStart(t *testing.T) {
	l, size := threeSegments(t)
	for name, tc := range map[string]struct{ now, ms, bytes, want int64 }{
		"unlimited":                    {1e9, -1, -1, 0},
		"nothing is old":               {201, 100, -1, 0},
		"first is older than":          {202, 100, -1, 2},
		"two are old":                  {302, 100, -1, 4},
		"all are old":                  {402, 100, -1, 6},
		"zero keeps this millisecond":  {301, 0, -1, 4},
		"bytes: all fit":               {1e9, -1, 3 * size, 0},
		"bytes: less would remain":     {1e9, -1, 2*size + 1, 0},
		"bytes: exactly two remain":    {1e9, -1, 2 * size, 2},
		"bytes: never the last":        {1e9, -1, 0, 4},
		"either is enough":             {202, 100, size, 4},
		"young blocks what is behind":  {150, 100, -1, 0},
		"bytes go on where time stops": {202, 100, 2 * size, 2},
	} {
		if got := l.RetentionStart(tc.now, tc.ms, tc.bytes); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
	l.SetStart(3)
	if got := l.RetentionStart(202, 100, -1); got != 3 {
		t.Errorf("goes back from 3 to %d", got)
	}
}

func TestSegmentBase(t *testing.T) {
	l, _ := threeSegments(t)
	for offset, want := range map[int64]int64{0: 0, 1: 0, 2: 2, 5: 4, 6: 4} {
		if got := l.SegmentBase(offset); got != want {
			t.Errorf("offset %d is in segment %d, want %d", offset, got, want)
		}
	}
	l.SetStart(6)
	if got := l.SegmentBase(6); got != 6 {
		t.Errorf("end of an empty log: %d", got)
	}
}

// TestStartAtTheEnd: all records go; the end, and the offsets after it, stay,
// also for the next process.
func TestStartAtTheEnd(t *testing.T) {
	mem := vfs.NewMem()
	l, err := Open(mem, "log", small)
	if err != nil {
		t.Fatal(err)
	}
	for range 7 {
		mustAppend(t, l, batch("v", 2, 1))
	}
	mustSync(t, l)
	dropped := l.SetStart(99)
	if l.Start() != 14 || len(l.Segments()) != 0 || l.Bytes() != 0 || len(dropped) == 0 {
		t.Fatal(l.Start(), l.Segments())
	}
	if _, _, ok := l.MaxTimestamp(); ok {
		t.Fatal("an empty log has a largest timestamp")
	}
	if err := l.Unlink(dropped); err != nil {
		t.Fatal(err)
	}
	if err := l.Unlink(dropped); err != nil {
		t.Fatal("the second time:", err)
	}
	names, err := mem.List("log")
	if err != nil || !slices.Equal(names, []string{fileName(14, dataSuffix)}) {
		t.Fatal(names, err)
	}
	again, err := Open(mem.CrashClone(nil), "log", small)
	if err != nil || again.Start() != 14 || again.End() != 14 {
		t.Fatal(again.Start(), again.End(), err)
	}
	if base := mustAppend(t, again, batch("v", 1, 1)); base != 14 {
		t.Fatal(base)
	}
	again.Close()
	manifest := l.Manifest()
	l.Close()
	at, missing, err := OpenAt(mem, "log", small, manifest)
	if err != nil || len(missing) > 0 || !reflect.DeepEqual(at.Manifest(), manifest) {
		t.Fatal(missing, err)
	}
	if base := mustAppend(t, at, batch("v", 1, 1)); base != 14 {
		t.Fatal(base)
	}
	at.Close()
}
