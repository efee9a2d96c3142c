package commitlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"sluice/core/record"
)

// LookupTime returns the first record, by offset, whose timestamp is at or
// after ts (milliseconds); ok is false when there is none. Only what is
// between Start and End counts.
func (l *Log) LookupTime(ts int64) (offset, timestamp int64, ok bool, err error) {
	from := l.Start()
	for {
		s, bytes, start, err := l.timeView(ts, from)
		if err != nil || s == nil {
			return -1, -1, false, err
		}
		next := int64(0)
		offset, timestamp, next, err = l.lookupIn(s, bytes, start, ts)
		switch {
		case errors.Is(err, fs.ErrNotExist) && l.Start() > start:
			from = l.Start() // unlinked since
			continue
		case err != nil:
			if errors.Is(err, ErrCorrupt) {
				l.suspect(s.base, err)
			}
			return -1, -1, false, fmt.Errorf("look up time %d: %w", ts, err)
		case offset >= 0:
			return offset, timestamp, true, nil
		}
		from = next
	}
}

// timeView returns the first segment at or after offset from that has a
// record of ts or later, pinned.
func (l *Log) timeView(ts, from int64) (s *segment, bytes, start int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.closed {
		return nil, 0, 0, ErrClosed
	}
	for _, s := range l.mu.segments {
		if s.next <= from || s.next <= l.mu.start || s.bytes == 0 || s.maxTs < ts {
			continue
		}
		if s.missing != nil {
			return nil, 0, 0, ErrMissing
		}
		s.data.pin()
		return s, s.bytes, l.mu.start, nil
	}
	return nil, 0, 0, nil
}

// lookupIn looks in one pinned segment; offset is -1 when it has no such
// record at or above start, and next is then where to go on.
func (l *Log) lookupIn(s *segment, bytes, start, ts int64) (offset, timestamp, next int64, err error) {
	file, err := s.data.opened(false)
	if err != nil {
		return -1, -1, 0, err
	}
	defer s.data.release()
	l.ensure(s)
	scan := scanner{file: file, limit: bytes}
	// The batches before such an entry are all too early, or too low.
	e, err := l.search(s.index, func(e entry) bool { return (e.maxTs < ts || e.offset <= start) && e.position < bytes })
	if err != nil {
		l.distrust(s)
	} else if !scan.startAt(e) {
		l.distrust(s)
	}
	next = s.base
	for {
		head, size, err := scan.header()
		if err == io.EOF { //nolint:errorlint // header returns it bare at the limit
			return -1, -1, next, nil
		}
		if err != nil {
			return -1, -1, 0, err
		}
		next = head.NextOffset()
		if head.MaxTimestamp() >= ts && next > start {
			offset, timestamp, err := firstAt(&scan, start, ts)
			if err != nil || offset >= 0 {
				return offset, timestamp, next, err
			}
		}
		scan.skip(size)
	}
}

var errFound = errors.New("found")

// firstAt looks in the batch where the scanner is.
func firstAt(scan *scanner, start, ts int64) (offset, timestamp int64, err error) {
	b, err := scan.batch()
	if err != nil {
		return -1, -1, err
	}
	offset = -1
	err = b.Each(func(r record.Record) error {
		at := b.BaseOffset() + int64(r.OffsetDelta)
		if at < start || b.Timestamp(r) < ts {
			return nil
		}
		offset, timestamp = at, b.Timestamp(r)
		return errFound
	})
	if err != nil && !errors.Is(err, errFound) {
		return -1, -1, scan.corrupt(err)
	}
	return offset, timestamp, nil
}

// MaxTimestamp returns the record with the largest timestamp, the first one
// if there are several; ok is false when the log is empty, or has no
// timestamps. Where that record cannot be read, the offset is the last one of
// its batch.
func (l *Log) MaxTimestamp() (offset, timestamp int64, ok bool) {
	l.mu.Lock()
	offset, timestamp = -1, record.NoTimestamp
	for _, s := range l.mu.segments {
		if s.next > l.mu.start && s.maxTs > timestamp {
			offset, timestamp = s.maxTsOffset, s.maxTs
		}
	}
	l.mu.Unlock()
	if offset < 0 {
		return -1, -1, false
	}
	if exact, at, found, err := l.LookupTime(timestamp); err == nil && found {
		return exact, at, true
	}
	return offset, timestamp, true
}
