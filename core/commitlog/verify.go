package commitlog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"

	"sluice/core/vfs"
)

// verifyBytes is how much Verify reads between two calls of pace.
const verifyBytes = 256 << 10

// checksum computes the CRC32C of the first n bytes of a file. pace, if not
// nil, is called after each block with its size.
func checksum(files *Files, file vfs.File, n int64, pace func(n int) error) (uint32, error) {
	buf := files.buffer()
	defer files.putBuffer(buf)
	if cap(*buf) < verifyBytes {
		*buf = make([]byte, verifyBytes)
	}
	var sum uint32
	for at := int64(0); at < n; {
		p := (*buf)[:min(verifyBytes, n-at)]
		if err := readFull(file, p, at); err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, p)
		at += int64(len(p))
		if pace == nil {
			continue
		}
		if err := pace(len(p)); err != nil {
			return 0, err
		}
	}
	return sum, nil
}

// Verify reads the segment with that base and compares its CRC with what it
// was when it was appended. The error wraps ErrCorrupt when they differ. pace
// is called now and then with the number of bytes read since the last call; it
// may wait, and its error ends Verify. With fromDisk the system is asked to
// forget what it holds of the file in memory, so that the disk is what is read.
// The file is opened apart from those that are in use.
func (l *Log) Verify(base int64, fromDisk bool, pace func(n int) error) error {
	err := l.verify(base, fromDisk, pace)
	if err != nil {
		return fmt.Errorf("verify segment %d: %w", base, err)
	}
	return nil
}

func (l *Log) verify(base int64, fromDisk bool, pace func(n int) error) error {
	l.mu.Lock()
	_, s := l.segmentLocked(base)
	if s == nil || s.missing != nil || l.mu.closed {
		l.mu.Unlock()
		return ErrMissing
	}
	info := s.info(base)
	l.mu.Unlock()
	path := s.data.name()
	file, err := l.fs.Open(path)
	for errors.Is(err, fs.ErrNotExist) && s.data.name() != path { // it was settled at this moment
		path = s.data.name()
		file, err = l.fs.Open(path)
	}
	if errors.Is(err, fs.ErrNotExist) && !l.gone(s) {
		return fmt.Errorf("%w: %s is gone", ErrCorrupt, path)
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if fromDisk {
		vfs.Uncache(file, 0, info.Bytes)
		defer vfs.Uncache(file, 0, info.Bytes)
	}
	sum, err := checksum(l.files, file, info.Bytes, pace)
	if err == nil && sum != info.CRC {
		err = fmt.Errorf("%w: %s: CRC %08x, want %08x", ErrCorrupt, file.Name(), sum, info.CRC)
	}
	if errors.Is(err, ErrCorrupt) && l.gone(s) {
		return ErrMissing // another file may have had the name by then
	}
	return err
}

// gone tells whether a segment is no longer read by its name.
func (l *Log) gone(s *segment) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return s.dropped || l.mu.closed
}
