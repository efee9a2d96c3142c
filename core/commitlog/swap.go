package commitlog

import (
	"errors"
	"fmt"
	"io/fs"
)

// Fits tells whether the segments that a swap replaces are what the log has, in one piece each, and not the last. It depends on nothing but the list of segments, so
// it is the same on all replicas.
func (l *Log) Fits(groups []SwapGroup) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := 0
	for _, g := range groups {
		if !g.valid() {
			return false
		}
		for at < len(l.mu.segments) && l.mu.segments[at].base < g.Old[0].Base {
			at++
		}
		for _, old := range g.Old {
			if at >= len(l.mu.segments)-1 || l.mu.segments[at].info(l.mu.segments[at].base) != old {
				return false
			}
			at++
		}
	}
	return true
}

// valid tells whether a group can be meant.
func (g SwapGroup) valid() bool {
	if len(g.Old) == 0 {
		return false
	}
	if g.New.Bytes == 0 {
		return g.New == SegmentInfo{}
	}
	return g.New.Bytes > 0 && g.New.Base == g.Old[0].Base && g.New.Next > g.New.Base && g.New.Next <= g.Old[len(g.Old)-1].Next
}

// Swap puts rewritten segments in the place of those that they were made of, for groups of which Fits is true. One that is not staged is missing from then on, and
// returned. From here on the log has gaps. Nothing is waited for, and the old files stay, under their names, until SettleSwap: a manifest that was taken before
// finds them after a crash. Readers that hold a chunk of them keep it. An error has stopped the log.
func (l *Log) Swap(groups []SwapGroup) (missing []SegmentInfo, err error) {
	l.write.Lock()
	defer l.write.Unlock()
	if err := l.usable(); err != nil {
		return nil, err
	}
	fresh := make([]*segment, len(groups))
	for i, g := range groups {
		if g.New.Bytes == 0 {
			continue
		}
		if fresh[i], err = l.swapped(g.New); err != nil {
			return nil, l.fail(fmt.Errorf("swap segment %d: %w", g.New.Base, err))
		}
		if fresh[i].missing != nil {
			missing = append(missing, g.New)
		}
	}
	for _, s := range l.exchangeAll(groups, fresh) {
		s.data.drop()
		s.index.h.drop()
		_ = l.removeFile(s.base, indexSuffix) // one that is left is found to be another segment's
	}
	return missing, nil
}

// swapped is the segment for a file that may be staged.
func (l *Log) swapped(info SegmentInfo) (*segment, error) {
	s := l.newSegment(info.Base)
	s.tally, s.synced, s.unsettled = tallyOf(info), info.Bytes, true
	stat, err := l.fs.Stat(l.stagedPath(info))
	if err == nil && stat.Size() == info.Bytes {
		s.data = l.files.handle(l.fs, l.stagedPath(info))
		return s, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return s, l.lackStaged(s, info)
}

// lackStaged makes s missing. Its file is made at once: its name says that what has the segment's name is another one.
func (l *Log) lackStaged(s *segment, info SegmentInfo) error {
	s.data = l.files.handle(l.fs, l.stagedPartPath(info))
	if _, err := s.data.create(); err != nil {
		return err
	}
	s.data.release()
	l.setMissing(s, info, 0)
	s.missing.created = true
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.names++
	return nil
}

// exchangeAll changes the list and returns the segments that are no longer in it.
func (l *Log) exchangeAll(groups []SwapGroup, fresh []*segment) (gone []*segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []*segment
	rest := l.mu.segments
	for i, g := range groups {
		for rest[0].base != g.Old[0].Base {
			list, rest = append(list, rest[0]), rest[1:]
		}
		for _, s := range rest[:len(g.Old)] {
			s.dropped = true
			gone = append(gone, s)
		}
		rest = rest[len(g.Old):]
		if fresh[i] != nil {
			list = append(list, fresh[i])
		}
	}
	l.mu.segments = append(list, rest...)
	l.mu.hints = nil
	l.mu.c.Gaps = true
	return gone
}

// SettleSwap is called once no manifest from before the swap can come back: rewritten segments get the names of those that they replace, whose files go. What a later swap has replaced again
// is left to that one. It can be repeated.
func (l *Log) SettleSwap(groups []SwapGroup) error {
	err := l.settleSwap(groups)
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		return fmt.Errorf("settle swap: %w", err)
	}
	return nil
}

func (l *Log) settleSwap(groups []SwapGroup) error {
	l.write.Lock()
	defer l.write.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	var errs error
	for _, g := range groups {
		errs = errors.Join(errs, l.settleGroup(g))
	}
	return errs
}

func (l *Log) settleGroup(g SwapGroup) error {
	var errs error
	if g.New.Bytes > 0 {
		errs = l.settleSegment(g.New)
	}
	for _, old := range g.Old {
		for _, path := range [...]string{l.stagedPath(old), l.stagedPartPath(old)} {
			if err := l.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = errors.Join(errs, err)
			}
		}
		if old.Base == g.New.Base && g.New.Bytes > 0 || l.has(old.Base) {
			continue
		}
		for _, suffix := range [...]string{indexSuffix, partSuffix, fillSuffix, fillMarkSuffix, dataSuffix} {
			errs = errors.Join(errs, l.removeFile(old.Base, suffix))
		}
	}
	return errs
}

// settleSegment gives a rewritten segment its last name, if it is still part of the log. One that is missing gets it when it is there.
func (l *Log) settleSegment(info SegmentInfo) error {
	l.mu.Lock()
	_, s := l.segmentLocked(info.Base)
	mine := s != nil && s.unsettled && s.info(s.base) == info
	missing := mine && s.missing != nil
	if missing {
		s.unsettled = false // its file may be called .log from now on
	}
	l.mu.Unlock()
	switch {
	case !mine:
		return nil
	case missing:
		return l.removeFile(info.Base, dataSuffix)
	}
	if err := s.data.rename(l.path(info.Base, dataSuffix)); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.unsettled = false
	return nil
}

// settledName is where the file of a segment that is whole belongs.
func (l *Log) settledName(s *segment, info SegmentInfo) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.unsettled {
		return l.stagedPath(info)
	}
	return l.path(s.base, dataSuffix)
}

// SegmentPath returns the file of the segment with that base, whatever its name is now.
func (l *Log) SegmentPath(base int64) string {
	l.mu.Lock()
	_, s := l.segmentLocked(base)
	l.mu.Unlock()
	if s == nil {
		return l.path(base, dataSuffix)
	}
	return s.data.name()
}

// restoreStaged takes a rewritten segment up that has not got its last name yet. found is false when there is nothing of the kind.
func (l *Log) restoreStaged(f found, s *segment, info SegmentInfo) (found bool, err error) {
	if f.staged[stagedName(info)] {
		stat, err := l.fs.Stat(l.stagedPath(info))
		if err != nil {
			return false, fmt.Errorf("stat staged segment: %w", err)
		}
		if stat.Size() == info.Bytes {
			if err := l.fs.Rename(l.stagedPath(info), l.path(info.Base, dataSuffix)); err != nil {
				return false, fmt.Errorf("name staged segment: %w", err)
			}
			return true, l.removeFile(info.Base, indexSuffix)
		}
	}
	if !f.staged[stagedPartName(info)] {
		return false, nil
	}
	// What is called .log is another segment. It has to be gone for good before the part loses the name that says so.
	if err := l.removeFile(info.Base, dataSuffix); err != nil {
		return false, fmt.Errorf("remove replaced segment: %w", err)
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return false, fmt.Errorf("sync log directory: %w", err)
	}
	if err := l.fs.Rename(l.stagedPartPath(info), l.path(info.Base, partSuffix)); err != nil {
		return false, fmt.Errorf("take up part of a rewritten segment: %w", err)
	}
	f.parts[info.Base] = true
	return false, nil
}
