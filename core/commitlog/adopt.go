package commitlog

import "fmt"

// Adopt makes the log what the manifest says, without closing it, and returns
// the segments that have to be fetched with WriteSegment. A segment that the
// log has with the same base, size and CRC is kept. Of one it has a shorter
// version of, that becomes the beginning of what is fetched. The files of all
// others are set aside under another name; they are removed by RemoveStale or
// when the log is opened again.
//
// Until everything is fetched the log can be appended to as always, and reads
// of missing segments return ErrMissing. Call Sync before relying on it.
func (l *Log) Adopt(m Manifest) (missing []SegmentInfo, err error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	l.write.Lock()
	defer l.write.Unlock()
	l.sync.Lock()
	defer l.sync.Unlock()
	if err := l.usable(); err != nil {
		return nil, err
	}
	if err := l.adopt(m); err != nil {
		return nil, l.fail(fmt.Errorf("adopt manifest: %w", err))
	}
	return l.Missing(), nil
}

func (l *Log) adopt(m Manifest) error {
	old := map[int64]*segment{}
	for _, s := range l.hold() {
		old[s.base] = s
	}
	segments := make([]*segment, len(m.Segments))
	for i, info := range m.Segments {
		s := old[info.Base]
		delete(old, info.Base)
		kept, err := l.adoptSegment(s, info, i == len(m.Segments)-1)
		if err != nil {
			return err
		}
		segments[i] = kept
	}
	for _, s := range old {
		if err := l.setAside(s); err != nil {
			return err
		}
	}
	if l.moved {
		if err := l.syncRenames(); err != nil {
			return err
		}
		l.moved = false
	}
	l.install(m, segments)
	return l.adoptLast()
}

// syncRenames makes the new names durable before anything is written to the
// files: under its old name, a file that is being filled would be taken for the
// whole segment once it has the size.
func (l *Log) syncRenames() error {
	l.mu.Lock()
	l.mu.names++
	names := l.mu.names
	l.mu.Unlock()
	return l.syncNames(names)
}

// hold takes all segments out of the readers' sight while files are moved.
func (l *Log) hold() []*segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	segments := l.mu.segments
	l.mu.segments = nil
	l.mu.hints = nil
	return segments
}

func (l *Log) install(m Manifest, segments []*segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.segments = segments
	l.mu.start, l.mu.end, l.mu.synced = m.Start, m.End, m.End
	for _, s := range segments {
		if s.synced < s.bytes || s.recheck {
			l.mu.synced = min(l.mu.synced, s.base)
		}
	}
}

// adoptLast prepares the last segment for appends, if it is there and was not
// the last before.
func (l *Log) adoptLast() error {
	l.mu.Lock()
	var s *segment
	if n := len(l.mu.segments); n > 0 {
		s = l.mu.segments[n-1]
	}
	ready := s == nil || s.missing != nil || s.index.ready || s.index.off
	l.mu.Unlock()
	if ready {
		return nil
	}
	return l.prepareLast(s)
}

// adoptSegment returns the segment for info: s if it is that, or a new one,
// missing.
func (l *Log) adoptSegment(s *segment, info SegmentInfo, last bool) (*segment, error) {
	if s != nil && s.info(s.base) == info && (s.missing == nil || s.missing.want == info) {
		l.flush(s.index)
		return s, nil
	}
	if s != nil && s.unsettled { // the manifest counts already: nothing needs what it has replaced
		if err := l.removeFile(s.base, dataSuffix); err != nil {
			return nil, fmt.Errorf("remove replaced segment: %w", err)
		}
	}
	if staged, err := l.adoptStaged(s, info); staged != nil || err != nil {
		return staged, err
	}
	fresh := l.newSegment(info.Base)
	fresh.tally, fresh.synced = tallyOf(info), info.Bytes
	suffix := partSuffix
	if last {
		suffix = fillSuffix
	}
	resume, err := l.takePrefix(s, info, suffix)
	if err != nil {
		return nil, err
	}
	fresh.data = l.files.handle(l.fs, l.path(info.Base, suffix))
	l.setMissing(fresh, info, resume)
	return fresh, nil
}

// adoptStaged returns the segment for info if it was staged here for a swap that the manifest has behind it.
func (l *Log) adoptStaged(s *segment, info SegmentInfo) (*segment, error) {
	stat, err := l.fs.Stat(l.stagedPath(info))
	if err != nil || stat.Size() != info.Bytes {
		return nil, nil //nolint:nilerr // it is fetched
	}
	if s != nil {
		if err := l.setAside(s); err != nil {
			return nil, err
		}
	}
	if err := l.fs.Rename(l.stagedPath(info), l.path(info.Base, dataSuffix)); err != nil {
		return nil, fmt.Errorf("name staged segment: %w", err)
	}
	l.moved = true
	fresh := l.newSegment(info.Base)
	fresh.tally, fresh.synced = tallyOf(info), info.Bytes
	return fresh, nil
}

// takePrefix renames what s has of info's file to the name it is filled
// under, and returns how much that is.
func (l *Log) takePrefix(s *segment, info SegmentInfo, suffix string) (int64, error) {
	if s == nil {
		return 0, nil
	}
	resume := s.bytes
	if s.missing != nil {
		resume = s.missing.resume
	}
	if resume == 0 || resume > info.Bytes || s.missing == nil && s.bytes == info.Bytes {
		return 0, l.setAside(s)
	}
	if err := s.data.rename(l.path(s.base, suffix)); err != nil {
		return 0, fmt.Errorf("keep beginning of segment: %w", err)
	}
	return resume, l.forget(s)
}

// setAside renames a segment's file out of the way. A chunk of it stays
// readable.
func (l *Log) setAside(s *segment) error {
	if s.missing == nil || s.missing.created {
		if err := s.data.rename(l.path(s.base, staleSuffix)); err != nil {
			return fmt.Errorf("set segment aside: %w", err)
		}
	}
	return l.forget(s)
}

// forget lets go of a segment whose data file has been renamed.
func (l *Log) forget(s *segment) error {
	l.mu.Lock()
	s.dropped = true
	l.mu.Unlock()
	l.moved = true
	s.data.drop()
	s.index.h.drop()
	return l.removeFile(s.base, indexSuffix)
}

// RemoveStale removes the files that Adopt and Quarantine have set aside.
func (l *Log) RemoveStale() error {
	names, err := l.fs.List(l.dir)
	if err != nil {
		return fmt.Errorf("list log directory: %w", err)
	}
	var stale []string
	for _, name := range names {
		if _, suffix, ok := parseName(name); ok && suffix == staleSuffix {
			stale = append(stale, name)
		}
	}
	return l.removeOthers(stale)
}

// Quarantine sets the file of a damaged segment aside and returns what has to
// be fetched in its place.
func (l *Log) Quarantine(base int64) (SegmentInfo, error) {
	l.write.Lock()
	defer l.write.Unlock()
	l.sync.Lock()
	defer l.sync.Unlock()
	if err := l.usable(); err != nil {
		return SegmentInfo{}, err
	}
	l.mu.Lock()
	i, s := l.segmentLocked(base)
	missing := s != nil && s.missing != nil
	last := i == len(l.mu.segments)-1
	l.mu.Unlock()
	if s == nil || missing {
		return SegmentInfo{}, fmt.Errorf("quarantine segment %d: %w", base, ErrMissing)
	}
	info := s.info(base)
	if err := l.setAside(s); err != nil {
		return SegmentInfo{}, l.fail(err)
	}
	fresh, err := l.lacking(s, info, last)
	if err == nil {
		err = l.syncRenames()
	}
	if err != nil {
		return SegmentInfo{}, l.fail(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.segments[i] = fresh
	l.mu.hints = nil
	return info, nil
}

// lacking is the missing segment that takes the place of one that was set aside.
func (l *Log) lacking(s *segment, info SegmentInfo, last bool) (*segment, error) {
	if !s.unsettled {
		return l.adoptSegment(nil, info, last)
	}
	fresh := l.newSegment(info.Base)
	fresh.tally, fresh.synced, fresh.unsettled = tallyOf(info), info.Bytes, true
	return fresh, l.lackStaged(fresh, info)
}

func (l *Log) segmentLocked(base int64) (int, *segment) {
	for i, s := range l.mu.segments {
		if s.base == base {
			return i, s
		}
	}
	return -1, nil
}

// errReplaced is returned by a writer whose segment the log no longer misses.
var errReplaced = fmt.Errorf("%w: the log does not miss such a segment", ErrOutOfRange)
