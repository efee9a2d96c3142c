package commitlog

import (
	"errors"
	"fmt"
)

// CheckIndex reads all of the index of a closed segment and makes it anew when a part of it is not what was written, or
// when it is absent. pace is as for Verify. It tells whether the index was damaged. An index is not needed: errors are
// those of making it anew.
func (l *Log) CheckIndex(base int64, pace func(n int) error) (damaged bool, err error) {
	l.mu.Lock()
	i, s := l.segmentLocked(base)
	open := s == nil || s.missing != nil || l.mu.closed || i == len(l.mu.segments)-1
	l.mu.Unlock()
	if open {
		return false, nil
	}
	err = l.readIndex(s, pace)
	if !errors.Is(err, errIndex) {
		return false, err
	}
	l.distrust(s)
	l.ensure(s)
	return true, nil
}

// readIndex compares every part of an index with its checksum. That there is none is no error.
func (l *Log) readIndex(s *segment, pace func(n int) error) error {
	x := s.index
	x.io.Lock() // nobody makes it anew meanwhile
	defer x.io.Unlock()
	file, err := l.fs.Open(l.path(s.base, indexSuffix))
	if err != nil {
		return nil //nolint:nilerr // it is made when it is needed
	}
	defer file.Close()
	header, size, err := x.read(file)
	if err != nil {
		return err
	}
	for slot := range int64(2) {
		if m := header[markAt+slot*markSize:][:markSize]; !zero(m) {
			if _, ok := x.parseMark(m); !ok {
				return fmt.Errorf("%w: %s: mark %d", errIndex, file.Name(), slot)
			}
		}
	}
	count := (size - indexHeaderBytes) / entrySize
	buf := l.files.buffer()
	defer l.files.putBuffer(buf)
	last := entry{offset: -1, position: -1}
	for first := int64(0); first < count; first += indexBlock {
		n := min(indexBlock, count-first)
		block, err := x.readEntries(file, buf, first, n)
		if err != nil {
			return err
		}
		for ; len(block) > 0; block = block[entrySize:] {
			e, ok := x.parseEntry(block[:entrySize])
			if !ok || e.offset <= last.offset || e.position <= last.position {
				return fmt.Errorf("%w: %s: entry near %d", errIndex, file.Name(), first)
			}
			last = e
		}
		if err := pace(int(n * entrySize)); err != nil {
			return err
		}
	}
	return nil
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// rebuildsMax is how often in one life of the log an index that was found wrong is made anew: one that is wrong again
// lies on a bad disk, and look-ups scan.
const rebuildsMax = 3

// distrust has the index of a segment made anew by the next look-up. That of the segment being appended to is given up
// until the log is opened again, and so is that of one that is not synced: an index made anew says that it is.
func (l *Log) distrust(s *segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.mu.segments)
	if n == 0 || l.mu.segments[n-1] == s || s.synced < s.bytes || s.index.rebuilds >= rebuildsMax {
		s.index.giveUpLocked()
		return
	}
	s.index.wrong, s.index.ready, s.index.off = true, false, false
	s.index.count, s.index.pending = 0, nil
}
