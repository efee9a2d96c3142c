package commitlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// Read returns the whole batches from the one that contains offset on: as
// many as fit in maxBytes, but at least one, none with an offset at or above
// end, and all of one segment. The first may begin below offset. At end, or
// at the end of the log, the chunk is nil. The caller releases it.
//
// The error is ErrOutOfRange when offset is below Start or above End,
// ErrMissing when the segment has yet to be fetched, and wraps ErrCorrupt when
// the file is damaged there. A chunk carries nothing that was not compared
// with its checksums, but what this process has just appended (see trustedTail).
func (l *Log) Read(offset, maxBytes, end int64) (*Chunk, error) {
	v, err := l.view(offset, end)
	if err != nil || v.s == nil {
		return nil, err
	}
	file, err := v.s.data.opened(false)
	if errors.Is(err, fs.ErrNotExist) && offset < l.Start() {
		return nil, ErrOutOfRange // unlinked since
	}
	if errors.Is(err, fs.ErrNotExist) && !l.gone(v.s) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		l.suspect(v.s.base, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	c := &Chunk{h: v.s.data, file: file}
	if err := l.locate(c, v, offset, maxBytes); err != nil {
		c.Release()
		if errors.Is(err, ErrCorrupt) {
			l.suspect(v.s.base, err)
		}
		return nil, fmt.Errorf("read offset %d: %w", offset, err)
	}
	if c.length == 0 {
		c.Release()
		return nil, nil
	}
	if err := l.check(c, v, offset); err != nil {
		c.Release()
		return nil, fmt.Errorf("read offset %d: %w", offset, err)
	}
	l.remember(v.s, hint{offset: c.next, base: v.s.base, position: c.position + c.length})
	return c, nil
}

// view is the immutable part of the log that one read sees.
type view struct {
	s        *segment // its data pinned, not yet opened; nil: nothing to read
	bytes    int64
	next     int64
	end      int64
	position int64 // where offset begins, if a hint knows, else -1
	trusted  int64 // what lies from here on need not be checked; -1: everything must
	gaps     bool
}

func (l *Log) view(offset, end int64) (view, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.mu.closed:
		return view{}, ErrClosed
	case offset < l.mu.start || offset > l.mu.end:
		return view{}, ErrOutOfRange
	}
	end = min(end, l.mu.end)
	s := l.findLocked(offset)
	if offset >= end || s == nil {
		return view{}, nil
	}
	if s.missing != nil {
		return view{}, ErrMissing
	}
	s.data.pin()
	return view{
		s: s, bytes: s.bytes, next: s.next, end: end, position: l.recallLocked(s, offset),
		trusted: l.trustedLocked(s), gaps: l.mu.c.Gaps,
	}, nil
}

func (l *Log) trustedLocked(s *segment) int64 {
	if s != l.mu.segments[len(l.mu.segments)-1] || s.own > s.bytes {
		return -1
	}
	return max(s.own, s.bytes-trustedTail)
}

func (l *Log) recallLocked(s *segment, offset int64) int64 {
	if offset == s.base {
		return 0
	}
	if l.mu.hints == nil {
		return -1
	}
	for _, h := range l.mu.hints {
		if h.offset == offset && h.base == s.base && h.position > 0 && h.position < s.bytes {
			return h.position
		}
	}
	return -1
}

// remember notes where a read of s has ended. Of a segment that another one has taken the place of, with the same base, it must not be noted.
func (l *Log) remember(s *segment, h hint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, now := l.segmentLocked(s.base); now != s {
		return
	}
	if l.mu.hints == nil {
		l.mu.hints = new([hintsMax]hint)
	}
	for i := range l.mu.hints {
		if l.mu.hints[i] == h {
			return
		}
	}
	l.mu.hints[l.mu.hintNext] = h
	l.mu.hintNext = (l.mu.hintNext + 1) % hintsMax
}

// locate fills the chunk's position, length and next. A damaged index is
// passed by once: then the search begins at the segment's start.
func (l *Log) locate(c *Chunk, v view, offset, maxBytes int64) error {
	buf := l.files.buffer()
	defer l.files.putBuffer(buf)
	scan := scanner{file: c.file, limit: v.bytes, buf: (*buf)[:0]}
	defer func() { *buf = scan.buf }()
	if err := l.seek(&scan, v, offset); err != nil {
		return err
	}
	c.position, c.next = scan.pos, offset
	head, size, err := scan.header()
	if err == io.EOF && offset < v.next { //nolint:errorlint // header returns it bare at the limit
		return scan.corrupt(fmt.Errorf("no batch with offset %d before offset %d", offset, v.next))
	}
	if err == io.EOF { //nolint:errorlint // as above
		return nil
	}
	if err != nil {
		return err
	}
	if head.NextOffset() > v.end {
		return l.mustReach(c, &scan, v, offset, size)
	}
	c.next = head.NextOffset()
	scan.skip(size)
	if v.bytes-c.position <= maxBytes && v.end >= v.next {
		c.length, c.next = v.bytes-c.position, v.next
		return nil
	}
	return l.extend(c, &scan, v, maxBytes)
}

// mustReach makes sure that the batch where the scanner is lies beyond the end, and does not just say so.
func (l *Log) mustReach(c *Chunk, scan *scanner, v view, offset, size int64) error {
	c.length = size
	err := l.check(c, v, offset)
	c.length = 0
	return err
}

// seek moves the scanner to the batch that contains offset, or the first
// after it.
func (l *Log) seek(scan *scanner, v view, offset int64) error {
	if v.position >= 0 {
		scan.pos = v.position
		return nil
	}
	l.ensure(v.s)
	e, err := l.search(v.s.index, func(e entry) bool { return e.offset <= offset && e.position < v.bytes })
	if err == nil {
		scan.pos = e.position
		head, _, headErr := scan.header()
		if headErr != nil || head.BaseOffset() != e.offset && e.position > 0 {
			err = fmt.Errorf("%w: no batch with offset %d at %d", errIndex, e.offset, e.position)
		}
	}
	if err != nil {
		l.distrust(v.s)
		scan.pos = 0
	}
	return scan.forward(offset)
}

// forward skips the batches that end at or before offset.
func (s *scanner) forward(offset int64) error {
	for {
		head, size, err := s.header()
		if err == io.EOF { //nolint:errorlint // header returns it bare at the limit
			return nil
		}
		if err != nil {
			return err
		}
		if head.NextOffset() > offset {
			return nil
		}
		s.skip(size)
	}
}

// startAt moves to where an entry of an index says that a batch begins, unless that is not so.
func (s *scanner) startAt(e entry) bool {
	at := s.pos
	s.pos = e.position
	head, _, err := s.header()
	if err == io.EOF { //nolint:errorlint // header returns it bare at the limit
		return true
	}
	if err != nil || head.BaseOffset() != e.offset && e.position > 0 {
		s.pos = at
		return false
	}
	return true
}

// extend adds whole batches to the chunk, whose first the scanner has passed.
func (l *Log) extend(c *Chunk, scan *scanner, v view, maxBytes int64) error {
	limit := min(c.position+maxBytes, v.bytes)
	e, err := l.search(v.s.index, func(e entry) bool { return e.position <= limit && e.offset <= v.end })
	if err == nil && e.position > scan.pos {
		if scan.startAt(e) {
			c.next = e.offset
		} else {
			l.distrust(v.s)
		}
	}
	for {
		head, size, err := scan.header()
		if err == io.EOF { //nolint:errorlint // header returns it bare at the limit
			break
		}
		if err != nil {
			return err
		}
		if scan.pos+size > limit || head.NextOffset() > v.end {
			break
		}
		c.next = head.NextOffset()
		scan.skip(size)
	}
	c.length = scan.pos - c.position
	return nil
}
