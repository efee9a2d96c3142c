package commitlog

import (
	"errors"
	"fmt"
)

// RetentionStart returns where the log would start if it kept records for
// retentionMs before nowMs, and no more than retentionBytes; -1 is unlimited.
// Whole segments go, oldest first: by time when all of a segment is too old,
// the last one included; by size as long as what remains is not less than
// retentionBytes, and never the last. Segments without timestamps do not age.
// The answer is never below Start.
func (l *Log) RetentionStart(nowMs, retentionMs, retentionBytes int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	start := l.mu.start
	excess := -retentionBytes
	for _, s := range l.mu.segments {
		excess += s.bytes
	}
	for i, s := range l.mu.segments {
		last := i == len(l.mu.segments)-1
		expired := retentionMs >= 0 && s.bytes > 0 && s.maxTs >= 0 && s.maxTs < nowMs-retentionMs
		excess -= s.bytes
		tooMuch := retentionBytes >= 0 && excess >= 0 && !last
		if !expired && !tooMuch {
			break
		}
		start = max(start, s.next)
	}
	return start
}

// SegmentBase returns the base of the segment that has offset, or offset
// itself at the end: SetStart there forgets the segments before it and no
// other. It is what a caller passes on who trims often: when all of the last
// segment is below the start, that is forgotten too and a new file begun.
func (l *Log) SegmentBase(offset int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.findLocked(offset); s != nil && s.base <= offset {
		return s.base
	}
	if n := len(l.mu.segments); n > 0 && offset == l.mu.end {
		return l.mu.segments[n-1].base
	}
	return offset
}

// SetStart moves the start up to offset, at most to the end; it never goes
// back. The segments wholly below are no longer part of the log and are
// returned; their files stay until Unlink. Readers that hold a chunk of them
// keep it.
func (l *Log) SetStart(offset int64) (dropped []SegmentInfo) {
	l.write.Lock()
	defer l.write.Unlock()
	l.mu.Lock()
	l.mu.start = max(l.mu.start, min(offset, l.mu.end))
	var gone []*segment
	for len(l.mu.segments) > 0 && l.mu.segments[0].next <= l.mu.start && l.mu.segments[0].bytes > 0 {
		s := l.mu.segments[0]
		s.dropped = true
		gone = append(gone, s)
		l.mu.segments = l.mu.segments[1:]
	}
	for _, s := range gone {
		dropped = append(dropped, s.info(s.base))
	}
	if len(gone) > 0 {
		l.mu.segments = append([]*segment(nil), l.mu.segments...) // let the array with the old ones go
	}
	l.mu.Unlock()
	for _, s := range gone {
		s.data.drop()
		s.index.h.drop()
	}
	return dropped
}

// Unlink deletes the files of segments that SetStart returned, durably. Files
// that are gone already are no error, so it can be repeated. When the log has
// no file left, an empty one is made first, so that Open knows the end.
func (l *Log) Unlink(dropped []SegmentInfo) error {
	if len(dropped) == 0 {
		return nil
	}
	l.write.Lock()
	defer l.write.Unlock()
	if err := l.keepEnd(); err != nil {
		return err
	}
	var errs error
	for _, info := range dropped {
		if l.has(info.Base) {
			continue // adopted again since
		}
		for _, suffix := range [...]string{indexSuffix, partSuffix, fillSuffix, fillMarkSuffix, dataSuffix} {
			errs = errors.Join(errs, l.removeFile(info.Base, suffix))
		}
		for _, name := range [...]string{stagedName(info), stagedPartName(info)} {
			errs = errors.Join(errs, l.removeOthers([]string{name}))
		}
	}
	if errs != nil {
		return fmt.Errorf("unlink segments: %w", errs)
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return fmt.Errorf("sync log directory: %w", err)
	}
	return nil
}

func (l *Log) has(base int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, s := l.segmentLocked(base)
	return s != nil
}

// keepEnd makes sure that there is a file to tell the end by.
func (l *Log) keepEnd() error {
	l.mu.Lock()
	empty, closed := len(l.mu.segments) == 0, l.mu.closed
	l.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if empty {
		if _, err := l.roll(); err != nil {
			return l.fail(err)
		}
	}
	l.mu.Lock()
	names := l.mu.names
	l.mu.Unlock()
	if err := l.syncNames(names); err != nil {
		return l.fail(err)
	}
	return nil
}
