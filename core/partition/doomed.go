package partition

import (
	"errors"
	"sync"

	"sluice/core/commitlog"
)

// doomed is what is on disk and no longer part of the state: the segments below
// a log's start, or the directory of a deleted partition. The last checkpoint
// may name it, and a restart from there needs it.
type doomed struct {
	since     uint64 // the first capture that does not name it
	partition *Partition
	segments  []commitlog.SegmentInfo
	swapped   []commitlog.SwapGroup
	dir       string
}

// doomedList holds what waits for a checkpoint. Apply adds, and the goroutine
// that persists checkpoints takes.
type doomedList struct {
	sync.Mutex
	captures uint64 // taken so far
	list     []doomed
	swept    bool // directories left by an earlier run have been looked for
}

func (l *doomedList) add(d doomed) {
	l.Lock()
	defer l.Unlock()
	d.since = l.captures + 1
	l.list = append(l.list, d)
}

// capture counts one more capture and returns its number.
func (l *doomedList) capture() uint64 {
	l.Lock()
	defer l.Unlock()
	l.captures++
	return l.captures
}

// take removes and returns what no checkpoint from capture seq on names.
func (l *doomedList) take(seq uint64) []doomed {
	l.Lock()
	defer l.Unlock()
	var ready []doomed
	kept := l.list[:0]
	for _, d := range l.list {
		if d.since <= seq {
			ready = append(ready, d)
		} else {
			kept = append(kept, d)
		}
	}
	clear(l.list[len(kept):])
	l.list = kept
	return ready
}

func (l *doomedList) len() int {
	l.Lock()
	defer l.Unlock()
	return len(l.list)
}

// sweep removes from disk what the durable checkpoint of capture seq no longer
// names.
func (s *Set) sweep(seq uint64) error {
	var errs []error
	for _, d := range s.doomed.take(seq) {
		switch {
		case d.dir != "":
			errs = append(errs, s.o.Dirs.remove(d.dir))
		case d.swapped != nil:
			if err := d.partition.log.SettleSwap(d.swapped); err != nil && !d.partition.Removed() {
				errs = append(errs, err)
			}
		case !d.partition.Removed():
			if err := d.partition.log.Unlink(d.segments); err != nil && !d.partition.Removed() {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(append(errs, s.sweepLeftovers())...)
}

// sweepLeftovers removes, once, the directories of partitions that were deleted
// before a crash and are named by nothing any more.
func (s *Set) sweepLeftovers() error {
	s.doomed.Lock()
	defer s.doomed.Unlock()
	if s.doomed.swept {
		return nil
	}
	paths, err := s.o.Dirs.deletedOf(s.o.Shard)
	if err != nil {
		return err
	}
	waiting := make(map[string]bool, len(s.doomed.list))
	for _, d := range s.doomed.list {
		waiting[d.dir] = true
	}
	for _, path := range paths {
		if waiting[path] {
			continue
		}
		if err := s.o.Dirs.remove(path); err != nil {
			return err
		}
	}
	s.doomed.swept = true
	return nil
}

// Dropped returns how many directories of partitions that the set no longer has wait for a checkpoint.
func (s *Set) Dropped() int {
	s.doomed.Lock()
	defer s.doomed.Unlock()
	n := 0
	for _, d := range s.doomed.list {
		if d.dir != "" {
			n++
		}
	}
	return n
}
