package commitlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"sluice/core/record"
	"sluice/core/vfs"
)

var errBoom = errors.New("boom")

// small is a configuration that rolls and indexes all the time.
var small = Config{SegmentBytes: 400, IndexIntervalBytes: 100}

// story is a short life of a log: appends over several segments, syncs, a trim.
// acked is called with what Sync has promised.
func story(l *Log, acked func(end int64)) error {
	for i := range 12 {
		if _, err := l.Append(batch(fmt.Sprint(i), 2, int64(i)), 1); err != nil {
			return err
		}
		if i%2 == 1 {
			continue
		}
		end, err := l.Sync()
		if err != nil {
			return err
		}
		acked(end)
	}
	return l.Unlink(l.SetStart(5))
}

// checkStory checks that the log has what story wrote from its start on, and
// at least up to acked.
func checkStory(l *Log, acked int64) error {
	if l.End() < acked {
		return fmt.Errorf("end %d, %d were promised", l.End(), acked)
	}
	for at := l.Start(); at < l.End(); {
		c, err := l.Read(at, 1000, l.End())
		if err != nil {
			return err
		}
		data, err := c.Bytes()
		if err != nil {
			return err
		}
		for rest := data; len(rest) > 0; {
			var b record.Batch
			if b, rest, err = record.Next(rest); err != nil {
				return err
			}
			if err := b.Validate(); err != nil {
				return err
			}
			err := b.Each(func(r record.Record) error {
				offset := b.BaseOffset() + int64(r.OffsetDelta)
				if want := fmt.Sprintf("%d-%d", offset/2, offset%2); string(r.Value) != want {
					return fmt.Errorf("offset %d is %q, want %q", offset, r.Value, want)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		at = c.Next()
		c.Release()
	}
	return nil
}

// TestCrashAtEveryCall crashes before every change of the file system, with
// various choices of what survives, and opens what is left.
func TestCrashAtEveryCall(t *testing.T) {
	for seed := range uint64(8) {
		mem := vfs.NewMem()
		fault := vfs.NewFault(mem)
		acked := int64(0)
		rng := rand.New(rand.NewPCG(seed, 1))
		inCrash := false
		fault.SetHook(func(op vfs.Op, path string) error {
			if inCrash || !op.Changes() {
				return nil
			}
			inCrash = true
			defer func() { inCrash = false }()
			clone := mem.CrashClone(func() bool { return rng.Uint64N(8) < seed })
			l, err := Open(clone, "log", small)
			if err != nil {
				t.Fatalf("seed %d, crash before %s %s: %v", seed, op, path, err)
			}
			defer l.Close()
			if err := checkStory(l, acked); err != nil {
				t.Fatalf("seed %d, crash before %s %s: %v", seed, op, path, err)
			}
			if _, err := l.Append(batch("new", 1, 5), 2); err != nil {
				t.Fatal(err)
			}
			return nil
		})
		l, err := Open(fault, "log", small)
		if err != nil {
			t.Fatal(err)
		}
		if err := story(l, func(end int64) { acked = end }); err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}

// TestEveryCallFails fails each call in turn. The error is reported, and the
// log stops when it is one that matters; nothing promised is lost, whether the
// process goes on reading or starts anew.
func TestEveryCallFails(t *testing.T) {
	for n := int64(1); ; n++ {
		mem := vfs.NewMem()
		fault := vfs.NewFault(mem)
		calls, failed := int64(0), vfs.Op(0)
		fault.SetHook(func(op vfs.Op, _ string) error {
			calls++
			if calls != n {
				return nil
			}
			failed = op
			if op == vfs.OpWrite {
				return &vfs.TornError{N: int(n % 90), Err: errBoom}
			}
			return errBoom
		})
		acked := int64(0)
		l, err := Open(fault, "log", small)
		if err == nil {
			err = story(l, func(end int64) { acked = end })
		}
		if calls < n {
			if err != nil || n < 30 {
				t.Fatal(n, err)
			}
			return
		}
		if err != nil && !errors.Is(err, errBoom) {
			t.Fatalf("call %d (%s): %v", n, failed, err)
		}
		if err == nil && failed == vfs.OpWrite && l.End() != 24 {
			t.Fatalf("call %d (%s) failed unnoticed", n, failed)
		}
		if l != nil {
			checkStopped(t, l, n, failed)
			fault.SetHook(nil)
			if err := checkStory(l, acked); err != nil {
				t.Fatalf("call %d (%s), still running: %v", n, failed, err)
			}
			l.Close()
		}
		for _, fsys := range []vfs.FS{mem, mem.CrashClone(nil), mem.CrashClone(func() bool { return true })} {
			again, err := Open(fsys, "log", small)
			if err != nil {
				t.Fatalf("call %d (%s), opening again: %v", n, failed, err)
			}
			if err := checkStory(again, acked); err != nil {
				t.Fatalf("call %d (%s), opened again: %v", n, failed, err)
			}
			again.Close()
		}
	}
}

// checkStopped: once it has failed, a log stays failed.
func checkStopped(t *testing.T, l *Log, n int64, failed vfs.Op) {
	t.Helper()
	if l.Err() == nil {
		return
	}
	if _, err := l.Append(batch("x", 1, 1), 0); !errors.Is(err, errBoom) {
		t.Fatalf("call %d (%s): append after the failure: %v", n, failed, err)
	}
	if _, err := l.Sync(); !errors.Is(err, errBoom) {
		t.Fatalf("call %d (%s): sync after the failure: %v", n, failed, err)
	}
}

// TestSyncFailureIsFinal: the fsync after a failed one succeeds, as Linux has
// it, and must not be believed.
func TestSyncFailureIsFinal(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	l, err := Open(fault, "log", Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Append(batch("a", 1, 1), 0); err != nil {
		t.Fatal(err)
	}
	fault.SetHook(func(op vfs.Op, _ string) error {
		if op == vfs.OpSync {
			return errBoom
		}
		return nil
	})
	if _, err := l.Sync(); !errors.Is(err, errBoom) {
		t.Fatal(err)
	}
	fault.SetHook(nil)
	if _, err := l.Sync(); !errors.Is(err, errBoom) {
		t.Fatalf("second sync: %v", err)
	}
	if l.Synced() != 0 {
		t.Fatalf("synced %d", l.Synced())
	}
}

// TestEvictedSyncFailureIsNoticed: a file that had to be closed with unsynced
// writes was synced before, and that failed; the log hears of it.
func TestEvictedSyncFailureIsNoticed(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	files := NewFiles(1)
	open := func(dir string) *Log {
		l, err := Open(fault, dir, Config{Files: files})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	a, b := open("a"), open("b")
	if _, err := a.Append(batch("a", 1, 1), 0); err != nil {
		t.Fatal(err)
	}
	fault.SetHook(func(op vfs.Op, _ string) error {
		if op == vfs.OpSync {
			return errBoom
		}
		return nil
	})
	if _, err := b.Append(batch("b", 1, 1), 0); err != nil {
		t.Fatal(err)
	}
	fault.SetHook(nil)
	if _, err := a.Sync(); !errors.Is(err, errBoom) {
		t.Fatalf("sync of the evicted file: %v", err)
	}
	if _, err := b.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestDamageIsNotCutAway: a hole in the middle of synced segments is reported
// by Read, and costs nothing around it.
func TestDamageIsNotCutAway(t *testing.T) {
	mem := vfs.NewMem()
	l, err := Open(mem, "log", small)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 24 {
		if _, err := l.Append(batch(fmt.Sprint(i), 2, int64(i)), 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	segments := l.Segments()
	if len(segments) < 4 {
		t.Fatalf("%d segments", len(segments))
	}
	victim := segments[1]
	l.Close()
	f, err := mem.Open("log/" + fileName(victim.Base, dataSuffix))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 80), 0); err != nil {
		t.Fatal(err)
	}
	if err := mem.Remove("log/" + fileName(victim.Base, indexSuffix)); err != nil {
		t.Fatal(err)
	}
	l, err = Open(mem, "log", small)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Start() != segments[0].Base || l.End() != 48 {
		t.Fatalf("[%d, %d)", l.Start(), l.End())
	}
	if _, err := l.Read(victim.Base, 1000, 48); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("read of the damage: %v", err)
	}
	if got := values(t, l, victim.Next, 1000); len(got) != int(48-victim.Next) {
		t.Fatalf("after the damage: %v", got)
	}
}

// TestIndexIsNeverBelieved damages the index in every byte: reads and look-ups
// are right, before and after opening again.
func TestIndexIsNeverBelieved(t *testing.T) {
	mem := vfs.NewMem()
	c := Config{SegmentBytes: 4000, IndexIntervalBytes: 100}
	l, err := Open(mem, "log", c)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		if _, err := l.Append(batch(fmt.Sprint(i), 2, int64(10*i)), 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	manifest := l.Manifest()
	l.Close()
	index := "log/" + fileName(0, indexSuffix)
	good, err := vfs.ReadFile(mem, index)
	if err != nil || len(good) < indexHeaderBytes+20*entrySize {
		t.Fatal(len(good), err)
	}
	for at := 0; at < len(good); at += 3 {
		bad := append([]byte{}, good...)
		bad[at] ^= 0x41
		if at%2 == 0 {
			bad = bad[:at]
		}
		if err := vfs.WriteFile(mem, index, bad); err != nil {
			t.Fatal(err)
		}
		l, missing, err := OpenAt(mem, "log", c, manifest)
		if err != nil || len(missing) > 0 {
			t.Fatal(missing, err)
		}
		if err := checkStory(l, 120); err != nil {
			t.Fatalf("byte %d: %v", at, err)
		}
		for _, i := range []int64{0, 7, 31, 59} {
			if offset, _, ok, err := l.LookupTime(10*i + 1); err != nil || !ok || offset != 2*i+1 {
				t.Fatalf("byte %d: look-up found %d %v %v, want %d", at, offset, ok, err, 2*i+1)
			}
		}
		l.Close()
		l, err = Open(mem, "log", c)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Manifest(); !reflect.DeepEqual(got, manifest) {
			t.Fatalf("byte %d: %+v, want %+v", at, got, manifest)
		}
		l.Close()
	}
}

// TestCrashWithMarks crashes a log whose batches are so large that marks are
// written in the segment that is appended to: what is unsynced behind a mark
// may survive with holes, and must not be believed.
func TestCrashWithMarks(t *testing.T) {
	for seed := range uint64(12) {
		mem := vfs.NewMem()
		rng := rand.New(rand.NewPCG(seed, 3))
		acked := int64(0)
		l, err := Open(mem, "log", Config{SegmentBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		for range 30 {
			mustAppend(t, l, big(20_000+rng.IntN(60_000), 1))
			if rng.IntN(3) == 0 {
				mustSync(t, l)
				acked = l.End()
			}
			clone := mem.CrashClone(func() bool { return rng.IntN(10) > 0 })
			again, err := Open(clone, "log", Config{SegmentBytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			if again.End() < acked || again.End() > l.End() || again.Start() != 0 {
				t.Fatalf("seed %d: [%d, %d), synced %d of %d", seed, again.Start(), again.End(), acked, l.End())
			}
			for _, s := range again.Segments() {
				if err := again.Verify(s.Base, false, nil); err != nil {
					t.Fatal(err)
				}
			}
			for at := range allBatches(t, again) {
				if err := at.CheckCRC(); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			again.Close()
		}
		l.Close()
	}
}

// allBatches yields all batches of the log, one read for each.
func allBatches(t *testing.T, l *Log) func(func(record.Batch) bool) {
	return func(yield func(record.Batch) bool) {
		for at := l.Start(); at < l.End(); {
			c, err := l.Read(at, 1, l.End())
			if err != nil {
				t.Fatal(err)
			}
			data, err := c.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			at = c.Next()
			c.Release()
			if !yield(data) {
				return
			}
		}
	}
}
