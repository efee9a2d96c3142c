package commitlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"sluice/core/vfs"
)

// catchUpStory is what a follower does that fell behind: it has a beginning,
// adopts the leader's manifest, fetches while it appends, and syncs.
func catchUpStory(fsys vfs.FS, begin Manifest, leader *Log, manifest Manifest) (*Log, error) {
	l, missing, err := OpenAt(fsys, "log", small, begin)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return l, fmt.Errorf("missing %v", missing)
	}
	if missing, err = l.Adopt(manifest); err != nil {
		return l, err
	}
	for i, info := range missing {
		if _, err := l.Append(batch(fmt.Sprint("after", i), 1, 1), 1); err != nil {
			return l, err
		}
		if err := fetchWhole(l, leader, info); err != nil {
			return l, err
		}
	}
	_, err = l.Sync()
	return l, err
}

func fetchWhole(l, leader *Log, info SegmentInfo) error {
	w, err := l.WriteSegment(info)
	if err != nil {
		return err
	}
	defer w.Close()
	at := w.Resume()
	c, err := leader.ReadSegment(info.Base, at, info.Bytes-at)
	if err != nil {
		return err
	}
	defer c.Release()
	data, err := c.Bytes()
	if err != nil {
		return err
	}
	half := len(data) / 2
	for _, part := range [][]byte{data[:half], data[half:]} {
		if _, err := w.WriteAt(part, at); err != nil {
			return err
		}
		at += int64(len(part))
	}
	if err := w.Commit(); !errors.Is(err, ErrCorrupt) {
		return err
	}
	// What an earlier attempt left was torn: all of it once more.
	if c, err = leader.ReadSegment(info.Base, 0, info.Bytes); err != nil {
		return err
	}
	defer c.Release()
	if data, err = c.Bytes(); err != nil {
		return err
	}
	if _, err := w.WriteAt(data, 0); err != nil {
		return err
	}
	return w.Commit()
}

// begun returns a follower's disk with the first appends of the leader.
func begun(t *testing.T) (mem *vfs.Mem, begin Manifest) {
	t.Helper()
	l, mem := leader(t, 5)
	return mem.CrashClone(nil), l.Manifest()
}

// finishCatchUp opens what is left by the leader's manifest, fetches what is
// missing, and compares.
func finishCatchUp(fsys vfs.FS, leader *Log, manifest Manifest) error {
	l, missing, err := OpenAt(fsys, "log", small, manifest)
	if err != nil {
		return err
	}
	defer l.Close()
	for _, info := range missing {
		if err := fetchWhole(l, leader, info); err != nil {
			return err
		}
	}
	for _, info := range manifest.Segments {
		if err := l.Verify(info.Base, false, nil); err != nil {
			return err
		}
	}
	for at := l.Start(); at < l.End(); {
		c, err := l.Read(at, 500, l.End())
		if err != nil {
			return err
		}
		at = c.Next()
		c.Release()
	}
	return nil
}

// TestCatchUpCrashesAtEveryCall: a crash before any change during catch-up
// costs at most fetching again.
func TestCatchUpCrashesAtEveryCall(t *testing.T) {
	from, _ := leader(t, 14)
	manifest := from.Manifest()
	for seed := range uint64(6) {
		mem, begin := begun(t)
		fault := vfs.NewFault(mem)
		rng := rand.New(rand.NewPCG(seed, 2))
		busy := false
		fault.SetHook(func(op vfs.Op, path string) error {
			if busy || !op.Changes() {
				return nil
			}
			busy = true
			defer func() { busy = false }()
			clone := mem.CrashClone(func() bool { return rng.Uint64N(5) < seed })
			if err := finishCatchUp(clone, from, manifest); err != nil {
				t.Fatalf("seed %d, crash before %s %s: %v", seed, op, path, err)
			}
			return nil
		})
		l, err := catchUpStory(fault, begin, from, manifest)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}

// TestCatchUpWithEveryCallFailing: an error during catch-up is reported, and
// the next start makes it good.
func TestCatchUpWithEveryCallFailing(t *testing.T) {
	from, _ := leader(t, 14)
	manifest := from.Manifest()
	for n := int64(1); ; n++ {
		mem, begin := begun(t)
		fault := vfs.NewFault(mem)
		calls, failed := int64(0), vfs.Op(0)
		fault.SetHook(func(op vfs.Op, _ string) error {
			if calls++; calls != n {
				return nil
			}
			failed = op
			return errBoom
		})
		l, err := catchUpStory(fault, begin, from, manifest)
		if l != nil {
			l.Close()
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
		for _, fsys := range []vfs.FS{mem, mem.CrashClone(nil)} {
			if err := finishCatchUp(fsys, from, manifest); err != nil {
				t.Fatalf("call %d (%s) failed, and then: %v", n, failed, err)
			}
		}
	}
}
